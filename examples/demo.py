"""The main job, seen done: `make demo`.

Starts quickstart.py on a free port, drives it with the `openai` client as two accounts, runs into
each limit, waits just as long as the refusal says, and compares the ledger with the events.
"""

import asyncio
import contextlib
import json
import shutil
import signal
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
TOO_MANY_REQUESTS = 429
SERVER_TIMEOUT_S = 30.0  # to start, and again to stop
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
    log = FOLDER / "server.log"
    output = log.open("wb")
    command = [sys.executable, str(HERE / "quickstart.py"), "--port", str(port)]
    command += ["--ledger", LEDGER, "--events", str(EVENTS)]
    process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + SERVER_TIMEOUT_S
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"the server did not start; it said:\n{log.read_text('utf-8')}")
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        try:
            process.wait(SERVER_TIMEOUT_S)
        finally:
            process.kill()  # does nothing to a process that has ended
            process.wait()
            output.close()


def clip(text: str, length: int) -> str:
    """Return the beginning of a text, on one line."""
    return " ".join(text.split())[:length] + "…"


def ask(client: openai.AsyncOpenAI, prompt: str, **more: Any) -> Any:
    """Ask the model one thing."""
    messages: Any = [{"role": "user", "content": prompt}]
    return client.chat.completions.create(
        **{"model": MODEL, "max_tokens": 40, "messages": messages, **more}
    )


async def refused(account: str, client: openai.AsyncOpenAI, prompt: str, **more: Any) -> Any:
    """Ask what the limits refuse, and show what the client is told."""
    try:
        await ask(client, prompt, **more)
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


class Waits:
    """Watches one client's retries: how long it was told to wait, and how long it did."""

    def __init__(self) -> None:
        self.told_s: list[float] = []
        self.waited_s: list[float] = []
        self._refused_at: float | None = None

    async def on_request(self, request: Any) -> None:
        """Note that the client asks (again)."""
        if self._refused_at is not None:
            self.waited_s.append(time.monotonic() - self._refused_at)
            self._refused_at = None

    async def on_response(self, response: Any) -> None:
        """Note a refusal, and the wait it tells of."""
        if response.status_code == TOO_MANY_REQUESTS:
            self.told_s.append(int(response.headers["retry-after-ms"]) / 1000)
            self._refused_at = time.monotonic()


def client_of(account: str, url: str, waits: Waits | None = None) -> openai.AsyncOpenAI:
    """Return the client of an account: with its own retries where these are watched, else none."""
    hooks: Any = {"request": [waits.on_request], "response": [waits.on_response]} if waits else {}
    # This server is on this machine: no proxy of the environment stands before it.
    http = openai.DefaultAsyncHttpxClient(trust_env=False, event_hooks=hooks)
    retries = openai.DEFAULT_MAX_RETRIES if waits else 0
    return openai.AsyncOpenAI(
        base_url=url, api_key=KEYS[account], max_retries=retries, http_client=http
    )


async def waits_as_told(account: str, url: str, code: str, prompt: str, **more: Any) -> str:
    """Ask again with the client's own retry: it sleeps as long as the refusal says."""
    waits = Waits()
    async with client_of(account, url, waits) as client:
        await ask(client, prompt, **more)
    refusals[account, code] += len(waits.told_s)
    return (
        f"  {account:<11}  told to wait {sum(waits.told_s):.3f} s,"
        f" waited {sum(waits.waited_s):.3f} s, admitted at retry {len(waits.waited_s)}"
    )


async def show_answers(free: openai.AsyncOpenAI, acme: openai.AsyncOpenAI) -> None:
    """One answer as JSON, one as a stream."""
    say("1. Answers, as JSON and as a stream")
    answer = await ask(free, "Tell me about tea.")
    say(f"  free-riders, JSON:   {clip(answer.choices[0].message.content, 70)}")
    usage = answer.usage
    say(f"    usage as reported: {usage.prompt_tokens} in, {usage.completion_tokens} out")
    text = ""
    chunks = 0
    async for chunk in await ask(acme, "你好，港口在哪里？", stream=True):
        text += chunk.choices[0].delta.content or ""
        chunks += 1
    say(f"  acme, stream:        {clip(text, 36)}")
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


async def show_minute_limits(free: openai.AsyncOpenAI, acme: openai.AsyncOpenAI, url: str) -> None:
    """Requests and tokens per minute, and the exact wait for each."""
    say("3. Requests per minute (Free: 4) and tokens per minute (Tier1: 128,000)")
    await ask(free, "One more.")
    rpm = await refused("free-riders", free, "And one too many.")
    # Long inputs are really exchanged and stay counted for a minute; 30,000 words each.
    long = "tea " * 30_000
    for _ in range(4):
        await ask(acme, long, max_tokens=5)
    tpm = await refused("acme", acme, long, max_tokens=5)
    say("  The clients now wait by their own retry, which sleeps as long as the refusal says:")
    longest = max(int(e.response.headers["retry-after-ms"]) for e in (rpm, tpm)) / 1000
    async with progress(longest):
        lines = await asyncio.gather(
            waits_as_told("free-riders", url, str(rpm.code), "And one too many."),
            waits_as_told("acme", url, str(tpm.code), long, max_tokens=5),
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
    """Print the table; tell whether ledger and events agree, account by account."""
    rows = account_rows()
    lines = [json.loads(line) for line in EVENTS.read_text("utf-8").splitlines()]
    # A sink is delivered to at least once: its reader knows an event again by its id.
    events = list({line["id"]: line["data"] for line in lines}.values())
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
    say()
    in_ledger, in_events = sums(rows), sums(events)
    for name, by_account in (("ledger", in_ledger), ("events", in_events)):
        requests, tokens, nano = map(sum, zip(*by_account.values(), strict=True))
        say(f"  {name}: {requests} requests, {tokens:,} tokens, {nano:,} nano-CNY")
    return in_ledger == in_events and all(requests for requests, _, _ in in_ledger.values())


def sums(rows: list[dict[str, Any]]) -> dict[str, tuple[int, int, int]]:
    """Return the requests, tokens and nano-CNY of each account; an event is one request."""
    found: dict[str, tuple[int, int, int]] = dict.fromkeys(KEYS, (0, 0, 0))
    for row in rows:
        requests, tokens, nano = found.get(row["account"], (0, 0, 0))
        found[row["account"]] = (
            requests + row.get("requests", 1),
            tokens + row["input_tokens"] + row["output_tokens"],
            nano + int(row["amount_nano"]),
        )
    return found


async def drive(url: str) -> None:
    """Show all that needs a running server."""
    async with (
        client_of("free-riders", url) as free,
        client_of("acme", url) as acme,
    ):
        await show_answers(free, acme)
        await show_concurrency(free)
        await show_minute_limits(free, acme, url)


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
    say("  they agree, account by account.")


if __name__ == "__main__":
    # Being terminated ends the server too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("stopped")
