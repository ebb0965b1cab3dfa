"""What a durable settlement costs, as a Markdown table.

    python -m benchmarks.ledger [URI ...]

Without a URI a ledger in a file of the working directory is measured, and PostgreSQL where its
programs are installed: a server of its own. All is measured in rounds, in turns, and told as
medians; beside them the disk's own fsync and the machine's load, which say how far a figure can be
trusted. Of the event loop's CPU the making of the events, which is the benchmark's own, is told
apart. What holding back an answer's end until its bill is durable adds to a call is the whole stack
with the ledger, against the same with one that is durable at once, in turns.
"""

import asyncio
import contextlib
import multiprocessing
import os
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from inf_middleware import Account, BillingEvent, CostLedger, Tier, TierLimiter
from inf_middleware.domain.ids import uuid7
from inf_middleware.ledgers.sqlite import SqliteLedger
from inf_middleware.ledgers.uris import ledger_of
from tests.apps import JsonApp
from tests.driver import post
from tests.ledgers.postgres_server import program_of_postgres, serving_postgres

SECONDS = 2.0  # of each measurement
ROUNDS = 3
AT_ONCE = (1, 64, 256)
PROCESSES = (2, 4)
CALLS = 100  # held back, of each round
# Settled before the calls that are held back: SQLite's log has then come to its end, as that of a
# server that runs for an hour has, and is written over; a log that grows costs each fsync twice.
SETTLED_BEFORE = 25_000
EVENTS = 2_000  # made to see what making them costs
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
        for _ in range(50):
            file.write(b"x" * 4096)
            file.flush()
            start = time.perf_counter()
            os.fsync(file.fileno())
            times.append(time.perf_counter() - start)
    return statistics.median(times) * 1000


class Measured(NamedTuple):
    """Settlements per second, latencies, and the CPU of loop and process per settlement."""

    rate: float
    p50_ms: float
    p99_ms: float
    loop_us: float  # the making of events included
    event_us: float
    process_us: float


async def measure(uri: str, at_once: int) -> Measured:
    """Settle for a while, so many at once."""
    ledger = ledger_of(uri)
    await ledger.settle(event_of(0))
    latencies: list[float] = []
    end = time.perf_counter() + SECONDS

    async def settle(number: int) -> None:
        while (start := time.perf_counter()) < end:
            await ledger.settle(event_of(number))
            latencies.append(time.perf_counter() - start)

    loop, process, start = time.thread_time(), time.process_time(), time.perf_counter()
    await asyncio.gather(*(settle(number) for number in range(at_once)))
    loop, process = time.thread_time() - loop, time.process_time() - process
    took = time.perf_counter() - start
    event = time.thread_time()
    for number in range(EVENTS):
        event_of(number)
    event = time.thread_time() - event
    await ledger.aclose()
    latencies.sort()
    count = len(latencies)
    return Measured(
        count / took,
        latencies[count // 2] * 1000,
        latencies[count * 99 // 100] * 1000,
        loop / count * 1e6,
        event / EVENTS * 1e6,
        process / count * 1e6,
    )


def measure_here(uri: str, at_once: int) -> Measured:
    """Measure in this process."""
    return asyncio.run(measure(uri, at_once))


def measure_together(uri: str, processes: int, at_once: int) -> Measured:
    """Measure in several processes on one ledger: rates add up, of all else the worst counts."""
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        found = pool.starmap(measure_here, [(uri, at_once)] * processes)
    worst = [max(values) for values in zip(*found, strict=True)]
    return Measured(sum(one.rate for one in found), *worst[1:])


def median_of(rounds: Sequence[Measured]) -> Measured:
    """Return the median of each figure."""
    return Measured(*(statistics.median(values) for values in zip(*rounds, strict=True)))


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
    for start in range(0, SETTLED_BEFORE, 500):
        batch = range(start, start + 500)
        await asyncio.gather(*(ledgers[0].settle(event_of(number)) for number in batch))
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


HEADER = """\
| ledger | processes × at once | settlements/s | p50 ms | p99 ms | loop µs each | of which the \
benchmark's events | loop µs, ours | process µs each |
|---|---|---|---|---|---|---|---|---|"""


def row_of(name: str, processes: int, at_once: int, found: Measured) -> str:
    """Write one line of the table."""
    return (
        f"| {name} | {processes} × {at_once} | {found.rate:,.0f} | {found.p50_ms:.2f} |"
        f" {found.p99_ms:.1f} | {found.loop_us:.1f} | {found.event_us:.1f} |"
        f" {found.loop_us - found.event_us:.1f} | {found.process_us:.1f} |"
    )


def compare(ledgers: Mapping[str, str], folder: str) -> None:
    """Measure ledgers in turns, and print what was found."""
    kinds = [(1, at_once) for at_once in AT_ONCE] + [(number, 64) for number in PROCESSES]
    found: dict[tuple[str, int, int], list[Measured]] = {}
    held: dict[str, list[tuple[float, float]]] = {name: [] for name in ledgers}
    fsyncs, loads = [], []
    for number in range(ROUNDS):
        print(f"round {number + 1} of {ROUNDS}", file=sys.stderr)
        for processes, at_once in kinds:
            for name, uri in ledgers.items():
                fsyncs.append(fsync_ms(Path(folder)))
                loads.append(os.getloadavg()[0])
                one = (
                    measure_here(uri, at_once)
                    if processes == 1
                    else measure_together(uri, processes, at_once)
                )
                found.setdefault((name, processes, at_once), []).append(one)
        for name, uri in ledgers.items():
            # The disk's own time changes within seconds: each round is held against its own.
            before = fsync_ms(Path(folder))
            whole, without = asyncio.run(measure_held_back(uri, folder))
            fsync = (before + fsync_ms(Path(folder))) / 2
            held[name].append((whole - without, fsync))
    print(
        f"fsync {statistics.median(fsyncs):.2f} ms ({min(fsyncs):.2f} to {max(fsyncs):.2f}),"
        f" {os.cpu_count()} CPUs, load {min(loads):.1f} to {max(loads):.1f},"
        f" medians of {ROUNDS} rounds in turns\n\n{HEADER}"
    )
    for (name, processes, at_once), rounds in found.items():
        print(row_of(name, processes, at_once, median_of(rounds)))
    print("\n| ledger | the answer's end is held back, p50 ms | in fsyncs |\n|---|---|---|")
    for name, pairs in held.items():
        ms = statistics.median(ms for ms, _ in pairs)
        in_fsyncs = statistics.median(ms / fsync for ms, fsync in pairs)
        print(f"| {name} | {ms:.2f} | {in_fsyncs:.1f} |")


def bytes_each(path: Path) -> float:
    """Return what a settlement takes of an SQLite file: record, posting, event, indices."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        ((count,),) = db.execute("SELECT count(*) FROM request")
    return path.stat().st_size / count


def main() -> None:
    """Measure each ledger that is named; else SQLite, and PostgreSQL where there is one."""
    with (
        tempfile.TemporaryDirectory(dir=".", prefix="bench-") as folder,
        contextlib.ExitStack() as stack,
    ):
        ledgers = {uri.partition("://")[0]: uri for uri in sys.argv[1:]}
        if not ledgers:
            ledgers["sqlite"] = f"sqlite:///{folder}/ledger.db"
            if Path(program_of_postgres("initdb")).is_file():
                ledgers["postgresql"] = stack.enter_context(serving_postgres()).uri()
        compare(ledgers, folder)
        file = Path(folder) / "ledger.db"
        if file.exists():
            print(f"\nA settlement takes {bytes_each(file):,.0f} bytes of the SQLite file.")


if __name__ == "__main__":
    main()
