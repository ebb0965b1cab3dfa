r"""Billing events over HTTP, as a CloudEvents batch: to OpenMeter, or to a service of your own.

python examples/http_sink.py receive --port 9000
METER_KEY=secret python examples/http_sink.py serve --port 8000 \
    --events-url http://127.0.0.1:9000/api/v1/events

The first is a small stand-in for the far end. The same with OpenMeter:

METER_KEY=om_… python examples/http_sink.py serve \
    --events-url https://openmeter.cloud/api/v1/events
"""

import argparse
import os

import uvicorn

# The example next to this one; in your project it is the model server you have already.
from model_app import build_app
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from inf_middleware import Account, CostLedger, TierLimiter, TokenMeter
from inf_middleware.sinks.http import CONTENT_TYPE, HttpSink

ACCOUNTS = {"sk-acme": Account("acme", recharged="500")}


def server(ledger: str, events_url: str, key: str) -> Starlette:
    """Return a model server whose events go to `events_url`."""
    app = build_app()
    app.add_middleware(TokenMeter)
    app.add_middleware(TierLimiter, accounts=ACCOUNTS)
    # Without a header of your own the URL alone will do: sinks={"meter": events_url}.
    meter = HttpSink(events_url, headers={"authorization": f"Bearer {key}"})
    app.add_middleware(CostLedger, ledger=ledger, sinks={"meter": meter})
    return app


class Receiver:
    """Keeps what it is sent, by source and id: an event that comes twice counts once."""

    def __init__(self) -> None:
        self.events: dict[tuple[str, str], dict[str, object]] = {}

    async def take(self, request: Request) -> Response:
        """Take a batch whole, or say by 415 or 400 that none of it was taken."""
        if request.headers.get("content-type") != CONTENT_TYPE:
            return JSONResponse({"error": f"send {CONTENT_TYPE}"}, status_code=415)
        batch = await request.json()
        if not all({"id", "source", "subject", "data"} <= event.keys() for event in batch):
            return JSONResponse({"error": "an event lacks an attribute"}, status_code=400)
        for event in batch:
            data = event["data"]
            self.events[event["source"], event["id"]] = event
            print(f"{event['subject']}: {data['amount']} {data['currency']}", flush=True)
        return Response(status_code=204)

    async def sums(self, _: Request) -> Response:
        """Show what each account has spent, in nano units."""
        sums: dict[str, int] = {}
        for event in self.events.values():
            data = event["data"]
            assert isinstance(data, dict)
            sums[data["account"]] = sums.get(data["account"], 0) + int(data["amount_nano"])
        return JSONResponse(sums)


def receiver() -> Starlette:
    """Return the stand-in for the far end."""
    far_end = Receiver()
    return Starlette(
        routes=[
            Route("/api/v1/events", far_end.take, methods=["POST"]),
            Route("/sums", far_end.sums),
        ]
    )


def main() -> None:
    """Serve, or receive, until stopped."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["serve", "receive"])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--ledger", default="sqlite:///inf-ledger.db")
    parser.add_argument("--events-url", default="http://127.0.0.1:9000/api/v1/events")
    options = parser.parse_args()

    if options.what == "receive":
        app = receiver()
    else:
        app = server(options.ledger, options.events_url, os.environ.get("METER_KEY", ""))
    uvicorn.run(app, host=options.host, port=options.port, log_level="warning")


if __name__ == "__main__":
    main()
