"""Money first: a server whose accounts pay in advance, with a recharge and a level-up seen live.

python examples/prepaid.py                # starts the server, drives it with the openai client
python examples/prepaid.py --serve 8000   # the server alone
"""

import argparse
import asyncio
import contextlib
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import openai
import uvicorn

# The example next to this one; in your project it is the model server you have already.
from model_app import build_app
from starlette.applications import Starlette

from inf_middleware import CostLedger, TierLimiter, TokenMeter, open_ledger

MODEL = "inf-chat-v1"
SERVER_TIMEOUT_S = 30.0  # to start, and again to stop
LEVEL_TIMEOUT_S = 5.0  # every process sees a new level within a second


def build(ledger: str) -> Starlette:
    """Return a model server whose accounts, keys, levels and money are all in one ledger."""
    app = build_app()
    app.add_middleware(TokenMeter)
    app.add_middleware(TierLimiter, accounts=ledger)
    app.add_middleware(CostLedger, ledger=ledger, mode="prepaid")
    return app


@contextlib.contextmanager
def server(ledger: str) -> Iterator[str]:
    """Run the server as a process of its own; it ends with this block, whatever happens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, __file__, "--ledger", ledger, "--serve", str(port)]
    process = subprocess.Popen(command)
    try:
        deadline = time.monotonic() + SERVER_TIMEOUT_S
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit("the server did not start")
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(SERVER_TIMEOUT_S)


def ask(client: openai.AsyncOpenAI, **more: Any) -> Any:
    """Ask the model one thing; the cap says how much is held for it."""
    messages: Any = [{"role": "user", "content": "Tell me about tea."}]
    return client.chat.completions.create(model=MODEL, messages=messages, **more)


async def drive(url: str, uri: str) -> None:
    """Be the operator, who takes money, and the customer, who spends it."""
    async with (
        await open_ledger(uri) as ledger,
        openai.AsyncOpenAI(
            base_url=url,
            api_key=(await _new_key(ledger)),
            max_retries=0,
            # This server is on this machine: no proxy of the environment stands before it.
            http_client=openai.DefaultAsyncHttpxClient(trust_env=False),
        ) as client,
    ):
        print("1. Without money nothing is served")
        try:
            await ask(client, max_tokens=40)
        except openai.APIStatusError as error:
            told: Any = error.body
            print(f"   {error.status_code} {error.code}: {told['message']}")

        print("2. ¥0.006 pays for 600 tokens")
        await ledger.recharge("acme", "0.006", reference="alipay:1")
        usage = (await ask(client, max_tokens=40)).usage
        print(f"   used {usage.total_tokens} tokens; {await _standing(ledger)}")

        print("3. A stream that outgrows the balance ends as at its cap")
        reason, tokens = "", 0
        stream = await ask(
            client, n=4, max_tokens=1000, stream=True, stream_options={"include_usage": True}
        )
        async for chunk in stream:
            for choice in chunk.choices:
                reason = choice.finish_reason or reason
            tokens = chunk.usage.total_tokens if chunk.usage else tokens
        print(f"   finish_reason={reason} after {tokens} tokens; {await _standing(ledger)}")

        print("4. ¥500 more, and the level rises while the server runs")
        receipt = await ledger.recharge("acme", "500", reference="alipay:2")
        print(f"   the ledger says {receipt.account.tier}")
        limit = await _limit(client)
        deadline = time.monotonic() + LEVEL_TIMEOUT_S
        while limit == "4" and time.monotonic() < deadline:
            await asyncio.sleep(0.2)
            limit = await _limit(client)
        print(f"   the server allows {limit} requests per minute; {await _standing(ledger)}")


async def _new_key(ledger: Any) -> str:
    await ledger.create_account("acme")
    key: str = (await ledger.issue_key("acme")).key
    return key


async def _standing(ledger: Any) -> str:
    account = await ledger.account("acme")
    return f"balance ¥{Decimal(account.balance_nano) / 10**9:f}, held {account.held_nano} nano"


async def _limit(client: openai.AsyncOpenAI) -> str:
    """Return how many requests per minute the server says it allows."""
    try:
        raw = await client.chat.completions.with_raw_response.create(
            model=MODEL, messages=[{"role": "user", "content": "Hi"}], max_tokens=1
        )
        headers = raw.headers
    except openai.RateLimitError as error:  # the old level's limits: it says them too
        headers = error.response.headers
    return str(headers["x-ratelimit-limit-requests"])


def main() -> None:
    """Serve until stopped, or serve and drive."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", type=int, metavar="PORT", help="only serve, on this port")
    parser.add_argument("--ledger", default=None, help="default: a new one, for the drive alone")
    options = parser.parse_args()
    if options.serve is not None:
        app = build(options.ledger or "sqlite:///inf-ledger.db")
        uvicorn.run(app, host="127.0.0.1", port=options.serve, log_level="warning")
        return
    with tempfile.TemporaryDirectory() as folder:
        uri = options.ledger or f"sqlite:///{Path(folder) / 'ledger.db'}"
        with server(uri) as url:
            asyncio.run(drive(url, uri))


if __name__ == "__main__":
    main()
