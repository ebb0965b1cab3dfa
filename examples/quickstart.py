"""A model server that is metered, limited and billed: run it, and try it with curl.

python examples/quickstart.py --port 8000
"""

import argparse
from collections.abc import Sequence

import uvicorn

# The example next to this one; in your project it is the model server you have already.
from model_app import build_app

from inf_middleware import Account, BillingEvent, CostLedger, TierLimiter, TokenMeter

ACCOUNTS = {
    "sk-free": Account("free-riders"),  # a new account is on the level Free
    "sk-acme": Account("acme", recharged="500"),  # ¥500 recharged in all: Tier1
}

TRY = """
Try it:
  curl -i http://{host}:{port}/v1/chat/completions -H "Authorization: Bearer sk-free" \\
    -d '{{"model": "inf-chat-v1", "messages": [{{"role": "user", "content": "tea?"}}]}}'

  the other account, as a stream:
  curl -N http://{host}:{port}/v1/chat/completions -H "Authorization: Bearer sk-acme" \\
    -d '{{"model": "inf-chat-v1", "stream": true,
         "messages": [{{"role": "user", "content": "你好"}}]}}'

  who has used how much:
  inf-middleware usage --ledger {ledger}
"""


async def send(events: Sequence[BillingEvent]) -> None:
    """Take billing events: here your own billing begins."""
    for event in events:
        print(f"billed {event.account}: {event.input_tokens}+{event.output_tokens} tokens", end="")
        print(f" of {event.model}, ¥{event.amount}")


def main() -> None:
    """Serve until stopped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--ledger", default="sqlite:///inf-ledger.db")
    parser.add_argument("--events", default="inf-events.jsonl")
    options = parser.parse_args()

    app = build_app(pace_s=0.01)
    app.add_middleware(TokenMeter)
    app.add_middleware(TierLimiter, accounts=ACCOUNTS)
    app.add_middleware(
        CostLedger,
        ledger=options.ledger,
        sinks={"mine": send, "file": f"jsonl:{options.events}"},
    )

    print(TRY.format(host=options.host, port=options.port, ledger=options.ledger), flush=True)
    uvicorn.run(app, host=options.host, port=options.port, log_level="warning")


if __name__ == "__main__":
    main()
