"""What `inf-middleware doctor` looks at: each part by itself, each finding in words."""

import asyncio
import platform
import shutil
import time
from collections.abc import AsyncIterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import apsw

from inf_middleware.cli.in_force import InForce
from inf_middleware.cli.look_at import look_at
from inf_middleware.domain.errors import (
    ConfigError,
    LedgerMissing,
    LedgerUnavailable,
    LimitsUnavailable,
)
from inf_middleware.files import TableFile, fault_of_place
from inf_middleware.ledgers.connection import SQLITE_MIN, connect_to_read
from inf_middleware.ledgers.filesystem import network_filesystem
from inf_middleware.ledgers.sqlite import SqliteLedger
from inf_middleware.ledgers.steps import Ask, Steps
from inf_middleware.ledgers.uris import ledger_of
from inf_middleware.ports import Sink
from inf_middleware.settings import MEMORY, shown
from inf_middleware.sinks.jsonl import JsonlSink
from inf_middleware.sinks.uris import sink_from_uri
from inf_middleware.tokens.counters import Counters

# Limits are counted by the server's clock; records and price changes by this host's. Further apart
# than this, a bill's time and its limits do not tell the same story.
CLOCK_APART_MAX_S = 2.0

# A server that takes longer than this to say anything is not one for every request.
REDIS_TIMEOUT_S = 5.0

# A database that counts many requests takes a while; one that says nothing is away.
LEDGER_TIMEOUT_S = 30.0

# A busy service writes some 1 KB per request: a million of them.
DISK_FREE_MIN = 1024**3

# A larger ledger is not read page by page: that takes minutes.
CHECKED_BYTES_MAX = 1024**3

# Before any release of this library: a host whose clock says so was not set.
_CLOCK_MIN_S = 1_750_000_000

_PACKAGES = ("inf-middleware", "starlette", "limits", "redis", "tiktoken", "msgspec")

_TEXT = "The clocks of 银行 and bank agree."


class Finding(NamedTuple):
    """What was found of one part."""

    part: str
    is_right: bool
    words: str


async def examine(in_force: InForce) -> AsyncIterator[Finding]:
    """Look at everything that the settings name, one after the other."""
    yield _versions()
    yield Finding("settings", True, in_force.config or "no settings file is named")
    yield _clock()
    yield await _storage(in_force)
    for uri in _ledgers(in_force):
        yield await _ledger(uri)
    yield await _counter(in_force)
    yield _accounts(in_force)
    yield _sinks(in_force)
    if in_force.upstream is not None:
        yield Finding("upstream", *await look_at(in_force.upstream, CLOCK_APART_MAX_S))


def _versions() -> Finding:
    found = [f"Python {platform.python_version()}"]
    for package in _PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            return Finding("versions", False, f"{package} is not installed")
    sqlite = apsw.sqlite_lib_version()
    found.append(f"SQLite {sqlite}")
    if tuple(map(int, sqlite.split("."))) < SQLITE_MIN:
        least = ".".join(map(str, SQLITE_MIN))
        words = f"SQLite {sqlite} can corrupt a shared file; install an apsw with {least} or later"
        return Finding("versions", False, words)
    return Finding("versions", True, ", ".join(found))


def _clock() -> Finding:
    now_s = time.time()
    now = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(now_s))
    if now_s < _CLOCK_MIN_S:
        return Finding("clock", False, f"this host says {now} UTC, long ago: set its clock")
    return Finding("clock", True, f"this host says {now} UTC")


async def _storage(in_force: InForce) -> Finding:
    storage = in_force["storage"]
    if storage == MEMORY:
        words = "limits are counted in the memory of each process: right for one process alone"
        return Finding("storage", True, words)
    from inf_middleware.stores.examine import (  # noqa: PLC0415 - 100 ms at import, for this alone
        examine as examine_storage,
    )

    name = shown("storage", storage)
    try:
        async with asyncio.timeout(REDIS_TIMEOUT_S):
            found = await examine_storage(storage)
    except TimeoutError:
        return Finding("storage", False, f"{name} did not answer within {REDIS_TIMEOUT_S:g} s")
    except LimitsUnavailable as error:
        return Finding("storage", False, f"{name} cannot be used: {error}")
    words = (
        f"{name} answers in {found.answer_s * 1000:.1f} ms, version {found.version};"
        f" its clock is {abs(found.ahead_s):.3f} s {'ahead' if found.ahead_s > 0 else 'behind'}"
    )
    if abs(found.ahead_s) > CLOCK_APART_MAX_S:
        return Finding("storage", False, f"{words}: set the clocks of both hosts by NTP")
    if found.evicts:
        more = "it drops keys when memory is short: set maxmemory-policy noeviction"
        return Finding("storage", False, f"{words}; {more}")
    if found.answer_s > in_force["storage_timeout_s"]:
        more = f"storage_timeout_s is {in_force['storage_timeout_s']:g}: it would be taken for away"
        return Finding("storage", False, f"{words}; {more}")
    return Finding("storage", True, words)


def _ledgers(in_force: InForce) -> list[str]:
    """Return the ledger's URI, and that of the accounts where it is another."""
    accounts = in_force["accounts"]
    uris = [in_force["ledger"], *([accounts] if isinstance(accounts, str) else [])]
    return list(dict.fromkeys(uris))


async def _ledger(uri: str) -> Finding:
    name = shown("ledger", uri)
    made = ledger_of(uri)
    if isinstance(made, SqliteLedger):
        return await asyncio.to_thread(_ledger_file, name, made.path)
    try:
        async with asyncio.timeout(LEDGER_TIMEOUT_S):
            await made.check()
            count, latest = await made.read(_requests)
    except TimeoutError:
        return Finding("ledger", False, f"{name} did not answer within {LEDGER_TIMEOUT_S:g} s")
    except LedgerMissing:
        return Finding("ledger", True, f"{name} answers, and a ledger is made at first use")
    except LedgerUnavailable as error:
        return Finding("ledger", False, f"{name} cannot be used: {error}")
    finally:
        await made.aclose()
    return Finding("ledger", True, f"{name} opens, {count:,} requests, latest {latest}")


def _requests() -> Steps[tuple[int, str | None]]:
    rows = yield Ask("SELECT count(*), max(settled_at) FROM request")
    count, latest = rows[0]
    return int(count), latest


def fault_of_folder(path: Path) -> str | None:
    """Say why a ledger's file cannot be where it shall be; None where it can."""
    fault = fault_of_place(path)
    if fault is not None:
        return fault
    where = network_filesystem(path)
    if where is not None:
        return f"it is on a network file system ({where}), whose locks do not hold"
    return None


def _ledger_file(name: str, path: Path) -> Finding:
    fault = fault_of_folder(path)
    if fault is not None:
        return Finding("ledger", False, f"{name}: {fault}")
    free = shutil.disk_usage(path.absolute().parent).free
    room = f"{free / 1024**3:,.1f} GiB are free"
    if free < DISK_FREE_MIN:
        return Finding("ledger", False, f"{name}: only {room}; a full disk stops sales")
    if not path.exists():
        return Finding("ledger", True, f"{name} is not there yet and is made at first use; {room}")
    return _open_ledger(name, path, room)


def _open_ledger(name: str, path: Path, room: str) -> Finding:
    try:
        db = connect_to_read(path)
    except LedgerUnavailable as error:
        return Finding("ledger", False, f"{name} cannot be used: {error}")
    try:
        ((count, latest),) = db.execute("SELECT count(*), max(settled_at) FROM request")
        broken = "ok"
        if path.stat().st_size <= CHECKED_BYTES_MAX:
            ((broken,),) = db.execute("PRAGMA quick_check(1)")
    except apsw.Error as error:
        return Finding("ledger", False, f"{name} cannot be read: {error}")
    finally:
        db.close()
    if broken != "ok":
        return Finding("ledger", False, f"{name} is damaged: {broken}; restore it from a backup")
    return Finding("ledger", True, f"{name} opens, {count:,} requests, latest {latest}; {room}")


async def _counter(in_force: InForce) -> Finding:
    name = shown("counter", in_force["counter"])
    began = time.perf_counter()
    counters = Counters(in_force["counter"])
    try:
        await counters.load()
        count = await counters.of(None).count([_TEXT])
    except ConfigError as error:
        return Finding("counter", False, str(error))
    return Finding(
        "counter",
        True,
        f"{name} loads in {time.perf_counter() - began:.1f} s and counts"
        f" {count.tokens} tokens in {_TEXT!r}",
    )


def _accounts(in_force: InForce) -> Finding:
    levels = f"{len(in_force.tiers.tiers)} levels"
    prices = in_force["prices"]
    if isinstance(prices, TableFile):
        levels += f", {len(prices.value.prices)} prices"
    accounts = in_force["accounts"]
    if accounts is None:
        level = in_force["anonymous"]
        who = f"addresses are accounts of level {level}" if level else "nobody is served"
        return Finding("accounts", level is not None, f"none are given: {who}; {levels}")
    return Finding("accounts", True, f"{shown('accounts', accounts)}; {levels}")


def fault_of_sinks(sinks: Mapping[str, Sink | str]) -> str | None:
    """Say why what a sink names cannot be there; None where it can, or only the far end knows."""
    for name, given in sinks.items():
        sink = sink_from_uri(given) if isinstance(given, str) else given
        fault = fault_of_place(sink.path) if isinstance(sink, JsonlSink) else None
        if fault is not None:
            return f"{name}: {fault}"
    return None


def _sinks(in_force: InForce) -> Finding:
    sinks = in_force["sinks"]
    fault = fault_of_sinks(sinks)
    if fault is not None:
        return Finding("sinks", False, fault)
    words = f"{shown('sinks', sinks)}; they are not sent anything by this command"
    return Finding("sinks", True, words if sinks else "none: events stay in the ledger")
