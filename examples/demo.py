"""The main job, seen done: `make demo`.

Starts quickstart.py on a free port, drives it with the `openai` client as two accounts, runs into
each limit, waits just as long as the refusal says, and compares the ledger with the events.
"""

import asyncio
import contextlib
import json
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import openai

HERE = Path(__file__).parent
FOLDER = HERE.parent / ".demo"
LEDGER = f"sqlite:///{FOLDER / 'ledger.db'}"
EVENTS = FOLDER / "events.jsonl"

MODEL = "inf-chat-v1"
START_TIMEOUT_S = 30.0
PROGRESS_S = 10.0

# Which account a key belongs to is the server's business; here only to label what is printed.
KEYS = {"free-riders": "sk-free", "acme": "sk-acme"}

refusals: Counter[tuple[str, str]] = Counter()


def say(text: str = "") -> None:
    """Print a line at once, also into a pipe."""
    print(text, flush=True)


@contextlib.contextmanager
def server() -> Iterator[str]:
    """Run the quickstart as a process of its own; it ends with this block, whatever happens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    output = (FOLDER / "server.log").open("wb")
    command = [sys.executable, str(HERE / "quickstart.py"), "--port", str(port)]
    command += ["--ledger", LEDGER, "--events", str(EVENTS)]
    process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit(
                    f"the server did not start; it said:\n{(FOLDER / 'server.log').read_text()}"
                )
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(START_TIMEOUT_S)
        output.close()


def ask(client: openai.AsyncOpenAI, prompt: str, **more: Any) -> Any:
    """Ask the model one thing."""
    messages: Any = [{"role": "user", "content": prompt}]
    return client.chat.completions.create(
        **{"model": MODEL, "max_tokens": 40, "messages": messages, **more}
    )


async def refused(account: str, client: openai.AsyncOpenAI, prompt: str, **more: Any) -> Any:
    """Ask what the limits refuse, and show what the client is told."""
    try:
        await ask(client.with_options(max_retries=0), prompt, **more)
    except openai.RateLimitError as error:
        refusals[account, str(error.code)] += 1
        say(f"  {account}: {error.status_code} {error.code}")
        say(f"    {error.body['message'] if isinstance(error.body, dict) else error.message}")
        return error
    sys.exit(f"the request of {account} was expected to be refused, and was not")


@contextlib.asynccontextmanager
async def progress(seconds: float) -> AsyncIterator[None]:
    """Count down while something waits: in place on a terminal, else a line now and then."""

    async def count_down() -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if sys.stdout.isatty():
                print(f"\r  waiting, {left:4.0f} s to go ", end="", flush=True)
                await asyncio.sleep(1)
            else:
                say(f"  waiting, {left:.0f} s to go")
                await asyncio.sleep(PROGRESS_S)

    task = asyncio.create_task(count_down())
    try:
        yield
    finally:
        task.cancel()
        if sys.stdout.isatty():
            print("\r" + " " * 40 + "\r", end="", flush=True)


async def waits_as_told(account: str, client: openai.AsyncOpenAI, told: Any, **more: Any) -> str:
    """Ask again with the client's own retry: it sleeps as long as the refusal says."""
    told_s = int(told.response.headers["retry-after-ms"]) / 1000
    began = time.monotonic()
    raw = await client.with_options(max_retries=2).chat.completions.with_raw_response.create(
        **{"model": MODEL, **more}
    )
    waited_s = time.monotonic() - began
    refusals[account, str(told.code)] += raw.retries_taken
    return (
        f"  {account}: told to wait {told_s:.3f} s; admitted after {waited_s:.3f} s"
        f" and {raw.retries_taken} retry"
    )


async def show_answers(free: openai.AsyncOpenAI, acme: openai.AsyncOpenAI) -> None:
    """One answer as JSON, one as a stream."""
    say("1. Answers, as JSON and as a stream")
    answer = await ask(free, "Tell me about tea.")
    say(f"  free-riders, JSON:   {answer.choices[0].message.content[:70]}…")
    usage = answer.usage
    say(f"    usage as reported: {usage.prompt_tokens} in, {usage.completion_tokens} out")
    text = ""
    chunks = 0
    async for chunk in await ask(acme, "你好，港口在哪里？", stream=True):
        text += chunk.choices[0].delta.content or ""
        chunks += 1
    say(f"  acme, stream:        {text[:36]}…")
    say(f"    {chunks} chunks; the usage chunk that the meter asked for stays hidden")
    say()


async def show_concurrency(free: openai.AsyncOpenAI) -> None:
    """A second request while the first runs."""
    say("2. Concurrency: the level Free has one request in progress at a time")
    running = await ask(free, "Tell me about the harbour.", stream=True, max_tokens=200)
    await anext(aiter(running))
    await refused("free-riders", free, "And about the market?")
    async for _ in running:
        pass
    await ask(free, "And about the market?")
    say("  free-riders: admitted as soon as the first was answered")
    say()


async def show_minute_limits(free: openai.AsyncOpenAI, acme: openai.AsyncOpenAI) -> None:
    """Requests and tokens per minute, and the exact wait for each."""
    say("3. Requests per minute (Free: 4) and tokens per minute (Tier1: 128,000)")
    await ask(free, "One more.")
    rpm = await refused("free-riders", free, "And one too many.")
    # Long inputs are really exchanged and stay counted for a minute; 30,000 words each.
    long = "tea " * 30_000
    for _ in range(4):
        await ask(acme, long, max_tokens=5)
    tpm = await refused("acme", acme, long, max_tokens=5)
    say("  The clients now wait by their own retry, which obeys the refusal to the millisecond:")
    longest = max(int(e.response.headers["retry-after-ms"]) for e in (rpm, tpm)) / 1000
    one: Any = [{"role": "user", "content": "And one too many."}]
    other: Any = [{"role": "user", "content": long}]
    async with progress(longest):
        lines = await asyncio.gather(
            waits_as_told("free-riders", free, rpm, messages=one, max_tokens=40),
            waits_as_told("acme", acme, tpm, messages=other, max_tokens=5),
        )
    for line in lines:
        say(line)
    say()


def account_rows() -> list[dict[str, Any]]:
    """What the ledger holds, by the library's own command."""
    command = [str(Path(sys.executable).with_name("inf-middleware")), "usage", "--json"]
    shown = subprocess.run([*command, "--ledger", LEDGER], capture_output=True, check=True)
    return list(json.loads(shown.stdout))


def show_sums() -> bool:
    """Print the table; tell whether ledger and events agree."""
    rows = account_rows()
    events = [json.loads(line)["data"] for line in EVENTS.read_text("utf-8").splitlines()]
    say("4. What the operator sees")
    say(
        f"  {'account':<12} {'level':<6} {'requests':>8} {'in':>8} {'out':>6} {'cost':>9}"
        "  refused for"
    )
    for row in rows:
        account = row["account"]
        counts = [
            f"{code.removesuffix('_limit_exceeded')} {count}"
            for (who, code), count in sorted(refusals.items())
            if who == account
        ]
        say(
            f"  {account:<12} {row['tier']:<6} {row['requests']:>8,} {row['input_tokens']:>8,}"
            f" {row['output_tokens']:>6,} {'¥' + row['amount']:>9}  {', '.join(counts)}"
        )
    in_ledger = sum(int(row["amount_nano"]) for row in rows)
    in_events = sum(int(event["amount_nano"]) for event in events)
    requests = sum(row["requests"] for row in rows)
    say()
    say(f"  ledger: {requests} requests, {in_ledger:>13,} nano-CNY")
    say(f"  events: {len(events)} events,   {in_events:>13,} nano-CNY")
    return in_ledger == in_events and requests == len(events) and requests > 0


async def drive(url: str) -> None:
    """Show all that needs a running server."""
    async with (
        openai.AsyncOpenAI(base_url=url, api_key=KEYS["free-riders"], max_retries=0) as free,
        openai.AsyncOpenAI(base_url=url, api_key=KEYS["acme"], max_retries=0) as acme,
    ):
        await show_answers(free, acme)
        await show_concurrency(free)
        await show_minute_limits(free, acme)


def main() -> None:
    """Run the demo; the exit code tells whether ledger and events agree."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    say("A model server behind TokenMeter, TierLimiter and CostLedger, about a minute:")
    say()
    with server() as url:
        asyncio.run(drive(url))
    # The server has shut down: it has delivered what was left.
    if not show_sums():
        sys.exit("  they differ: something is wrong")
    say("  they agree.")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("stopped")
