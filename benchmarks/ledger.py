"""What a durable settlement costs.

    python -m benchmarks.ledger [URI ...]

Without a URI a ledger in a file of the working directory is measured. Told are settlements per
second and their latency with so many at once, the CPU of the event loop per settlement, and the
disk's own fsync beside them; then the same in two and four processes on one ledger. Last, what
holding back an answer's end until its bill is durable adds to a call: the whole stack with the
ledger, against the same with one that is durable at once, in turns.
"""

import asyncio
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

from inf_middleware import Account, BillingEvent, CostLedger, Tier, TierLimiter
from inf_middleware.domain.ids import uuid7
from inf_middleware.ledgers.sqlite import SqliteLedger
from inf_middleware.ledgers.uris import ledger_of
from tests.apps import JsonApp
from tests.driver import post

SECONDS = 3.0
AT_ONCE = (1, 16, 64, 256)
CALLS = 300
CHAT = {"model": "inf-chat-v1", "messages": [{"role": "user", "content": "tea?"}], "max_tokens": 5}
ANSWER = {"choices": [], "usage": {"prompt_tokens": 8, "completion_tokens": 5, "total_tokens": 13}}


def event_of(number: int) -> BillingEvent:
    """Make a bill as a call makes it."""
    return BillingEvent(
        request_id=uuid7(time.time_ns()),
        account=f"account-{number % 100}",
        key_id="0123456789ab",
        tier="Tier1",
        endpoint="/v1/chat/completions",
        model="inf-chat-v1",
        response_model="inf-chat-v1",
        response_id="chatcmpl-1",
        input_tokens=1000,
        output_tokens=100,
        cached_input_tokens=0,
        cache_write_tokens=0,
        reasoning_tokens=0,
        basis="reported",
        lines=(),
        amount_nano="11000000",
        amount="0.011",
        currency="CNY",
        price_version="inf-2026-11/inf-chat-v1",
        outcome="complete",
        unpriced=False,
        started_at="2026-11-24T00:00:00.000000Z",
        settled_at="2026-11-24T00:00:01.000000Z",
        metadata={},
        source="urn:inf-middleware:default",
    )


def fsync_ms(folder: Path) -> float:
    """Return the median time of one fsync after a small write."""
    times = []
    with (folder / "fsync").open("wb") as file:
        for _ in range(200):
            file.write(b"x" * 4096)
            file.flush()
            start = time.perf_counter()
            os.fsync(file.fileno())
            times.append(time.perf_counter() - start)
    return statistics.median(times) * 1000


async def measure(uri: str, at_once: int) -> tuple[float, float, float, float]:
    """Return settlements per second, p50 and p99 in ms, and the loop's CPU in µs per settlement."""
    ledger = ledger_of(uri)
    await ledger.settle(event_of(0))
    latencies: list[float] = []
    end = time.perf_counter() + SECONDS

    async def settle(number: int) -> None:
        while (start := time.perf_counter()) < end:
            await ledger.settle(event_of(number))
            latencies.append(time.perf_counter() - start)

    cpu, start = time.thread_time(), time.perf_counter()
    await asyncio.gather(*(settle(number) for number in range(at_once)))
    cpu, took = time.thread_time() - cpu, time.perf_counter() - start
    await ledger.aclose()
    latencies.sort()
    count = len(latencies)
    return (
        count / took,
        latencies[count // 2] * 1000,
        latencies[count * 99 // 100] * 1000,
        cpu / count * 1e6,
    )


def measure_here(uri: str, at_once: int) -> tuple[float, float, float, float]:
    """Measure in this process."""
    return asyncio.run(measure(uri, at_once))


class AtOnce(SqliteLedger):
    """A ledger whose settlements are durable at once: what a call costs without its ledger."""

    def settle(self, event: BillingEvent) -> Awaitable[None]:
        """Take a bill, and forget it."""
        event.encode()
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done


def stack_of(ledger: Any) -> Any:
    """Wrap a model app that answers at once, with no limit in the way."""
    account = Account("acme", tier=Tier("Wide", 10**6, 10**9, 10**12))
    limited = TierLimiter(JsonApp(ANSWER), accounts={"sk-one": account})
    return CostLedger(limited, ledger=ledger)


async def measure_held_back(uri: str, folder: str) -> tuple[float, float]:
    """Return the p50 of a call in ms with the ledger, and without, one call at a time."""
    ledgers = [ledger_of(uri), AtOnce(f"{folder}/nothing.db")]
    apps = [stack_of(ledger) for ledger in ledgers]
    times: list[list[float]] = [[], []]
    for _ in range(CALLS):
        for app, took in zip(apps, times, strict=True):
            start = time.perf_counter()
            answered = await post(app, CHAT, key="sk-one")
            took.append(time.perf_counter() - start)
            if answered.status != 200:
                raise SystemExit(f"the stack answers {answered.status}: {answered.body!r}")
    for ledger in ledgers:
        await ledger.aclose()
    with_ledger, without = (statistics.median(took) * 1000 for took in times)
    return with_ledger, without


def main() -> None:
    """Measure each ledger that is named."""
    with tempfile.TemporaryDirectory(dir=".") as folder:
        print(f"fsync: {fsync_ms(Path(folder)):.2f} ms (median), {os.cpu_count()} CPUs")
        for uri in sys.argv[1:] or [f"sqlite:///{folder}/ledger.db"]:
            print(uri.partition("://")[0])
            for at_once in AT_ONCE:
                rate, p50, p99, cpu = measure_here(uri, at_once)
                print(
                    f"  1 process, {at_once:>3} at once: {rate:>7,.0f} /s,"
                    f" p50 {p50:.2f} ms, p99 {p99:.2f} ms, loop {cpu:.1f} µs"
                )
            for processes in (2, 4):
                with multiprocessing.get_context("spawn").Pool(processes) as pool:
                    found = pool.starmap(measure_here, [(uri, 64)] * processes)
                print(
                    f"  {processes} processes, 64 at once each:"
                    f" {sum(f[0] for f in found):>7,.0f} /s, p99 {max(f[2] for f in found):.0f} ms"
                )
            whole, without = asyncio.run(measure_held_back(uri, folder))
            print(
                f"  a call, p50: {whole:.2f} ms, without its ledger {without:.2f} ms: the end is"
                f" held back {whole - without:.2f} ms; fsync now {fsync_ms(Path(folder)):.2f} ms"
            )


if __name__ == "__main__":
    main()
