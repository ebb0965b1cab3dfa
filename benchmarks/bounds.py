"""What must stay bounded: round trips, memory, cost at many accounts, the loop's pauses."""

import asyncio
import gc
import itertools
import statistics
import time
import tracemalloc
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

import redis
import uvloop

from benchmarks.in_process import call, scope_of
from benchmarks.model_app import KEY, STREAM, asked, bare
from benchmarks.subjects import LEVEL, WIDE, Places
from inf_middleware import Account, Gate, Tier, TierLimiter
from inf_middleware.domain.limits import Admission, Ask, Held
from inf_middleware.stores.memory import MemoryStore
from inf_middleware.stores.redis import RedisStore


async def _round_trips(uri: str, count: int) -> tuple[float, float]:
    place = urlsplit(uri)
    assert place.hostname is not None
    client = redis.Redis(place.hostname, place.port or 6379)
    accounts = {KEY: Account("acme", tier=LEVEL)}
    before_app = 0

    def calls() -> int:
        stats = client.info("commandstats")
        return sum(int(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"]) for name in _SCRIPTS)

    inner = bare()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal before_app
        before_app += calls()
        await inner(scope, receive, send)
        before_app -= calls()  # the settlement has been made before the end left: not counted

    limited = TierLimiter(app, accounts=accounts, storage=uri)
    body = asked(stream=False)
    await call(limited, body)  # opens, loads the scripts, and renews for the first time
    await asyncio.sleep(0.2)
    before_app, began = 0, calls()
    for _ in range(count):
        await call(limited, body)
    whole = (calls() - began) / count
    settlements = -before_app / count
    client.close()
    return whole - settlements, settlements


_SCRIPTS = ("evalsha", "eval")


def round_trips(uri: str, count: int = 100) -> tuple[float, float]:
    """Return scripts run on Redis per request before the app answers, and for its settlement."""
    return uvloop.run(_round_trips(uri, count))


def _ask(number: int, account: str) -> Ask:
    return Ask(f"call-{number}", account, LEVEL.groups_for(None), 1_000)


async def _account_bytes(accounts: int, spread: int) -> tuple[float, float]:
    """Return the bytes of an account that asked `spread` times in its minute, and of an idle one.

    Asked `spread` times at equal distances; idle: a minute after its last call has ended.
    """
    now = 1_000.0
    numbers = itertools.count()
    gc.collect()
    tracemalloc.start()
    begin = tracemalloc.get_traced_memory()[0]
    store = MemoryStore(clock=lambda: now)
    for _ in range(spread):
        for account in range(accounts):
            answer = await store.admit(_ask(next(numbers), f"account-{account}"))
            assert isinstance(answer, Admission)
            await store.settle(answer, 700)
        now += 60 / spread * 0.99
    gc.collect()
    active = (tracemalloc.get_traced_memory()[0] - begin) / accounts
    now += 61.0
    for _ in range(accounts):  # each admission looks at some of the oldest
        answer = await store.admit(_ask(next(numbers), "busy"))
        assert isinstance(answer, Admission)
        await store.settle(answer, 700)
    left = len(store) - 1
    gc.collect()
    idle = (tracemalloc.get_traced_memory()[0] - begin) / accounts if left else 0.0
    tracemalloc.stop()
    return active, idle


def account_bytes(accounts: int = 500, spread: int = 20) -> tuple[float, float]:
    """Return the memory of an active account in process, and of one that is idle."""
    return asyncio.run(_account_bytes(accounts, spread))


async def _requests_us(stores: dict[int, MemoryStore], calls: int, rounds: int) -> dict[int, float]:
    body, numbers = asked(stream=False), itertools.count()
    apps = {}
    for accounts, store in stores.items():
        for account in range(accounts):
            answer = await store.admit(_ask(next(numbers), f"account-{account}"))
            assert isinstance(answer, Admission)
            await store.settle(answer, 700)
        # Those of a minute are a small part of all: as in life, most accounts are at rest.
        keys = [f"sk-{number % accounts}" for number in range(calls)]
        known = {key: Account(key.replace("sk", "account"), tier=LEVEL) for key in keys}
        apps[accounts] = keys, TierLimiter(bare(), accounts=known, storage=store)
    gc.collect()
    gc.freeze()
    found: dict[int, list[float]] = {accounts: [] for accounts in stores}
    for _ in range(rounds):
        for accounts, (keys, app) in apps.items():
            began = time.thread_time()
            for key in keys:
                await call(app, body, key)
            found[accounts].append((time.thread_time() - began) / calls * 1e6)
    gc.unfreeze()
    return {accounts: statistics.median(times) for accounts, times in found.items()}


def accounts_us(accounts: Sequence[int], calls: int = 2_000, rounds: int = 9) -> dict[int, float]:
    """Return the µs of a request that is limited in process, by number of accounts."""
    stores = {number: MemoryStore() for number in accounts}
    return uvloop.run(_requests_us(stores, calls, rounds))


async def _stall(rounds: int, prompts: int) -> tuple[float, float, float]:
    accounts = {KEY: Account("acme", tier=Tier("Narrow", 1_000, WIDE, 10**6))}
    app = TierLimiter(bare(), accounts=accounts)
    await call(app, asked(stream=False))
    bodies = [asked(stream=False, size=130_000, seed=number) for number in range(prompts)]
    quiet, stalled = [], []
    for _ in range(rounds):
        quiet.append(await _longest_pause(asyncio.sleep(0.25)))
        stalled.append(await _longest_pause(asyncio.gather(*(call(app, b) for b in bodies))))
    return statistics.median(stalled), min(stalled), statistics.median(quiet)


async def _longest_pause(work: Any) -> float:
    longest = 0.0
    done = False

    async def beat() -> None:
        nonlocal longest
        last = time.perf_counter()
        while not done:
            await asyncio.sleep(0.001)
            now = time.perf_counter()
            longest = max(longest, now - last - 0.001)
            last = now

    beating = asyncio.ensure_future(beat())
    await asyncio.sleep(0.005)
    await work
    await asyncio.sleep(0.002)
    done = True
    await beating
    return longest * 1e3


def stall_ms(rounds: int = 7, prompts: int = 8) -> tuple[float, float, float]:
    """Return the loop's longest pause in ms: median, least, and with nothing to do."""
    return uvloop.run(_stall(rounds, prompts))


async def _open_streams(make: Callable[[Any], Any], count: int) -> float:
    go = asyncio.Event()
    opened = 0

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        nonlocal opened
        await receive()
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for piece in STREAM[:20]:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        opened += 1
        await go.wait()
        for piece in STREAM[-2:]:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    wrapped = make(app)
    body = asked(stream=True)

    async def one() -> None:
        sent = False

        async def receive() -> Any:
            nonlocal sent
            if sent:
                await go.wait()
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            pass

        await wrapped(scope_of(body), receive, send)

    async def opening(number: int, tasks: list[Any]) -> None:
        while opened < number:
            for task in tasks:
                if task.done():  # refused, or failed: the others would be waited for in vain
                    raise SystemExit(f"a stream did not open: {task.exception()}")
            await asyncio.sleep(0.01)

    ready = asyncio.ensure_future(one())
    await opening(1, [ready])
    gc.collect()
    tracemalloc.start()
    begin = tracemalloc.get_traced_memory()[0]
    streams = [asyncio.ensure_future(one()) for _ in range(count)]
    await opening(count + 1, streams)
    gc.collect()
    held = (tracemalloc.get_traced_memory()[0] - begin) / count
    tracemalloc.stop()
    go.set()
    await asyncio.gather(ready, *streams)
    return held


def stream_bytes(places: Places, count: int) -> float:
    """Return the memory of ours that an open stream takes, all three in place."""
    accounts = {KEY: Account("acme", tier=Tier("Open", WIDE, WIDE, WIDE))}

    def ours(app: Any) -> Any:
        return Gate(app, accounts=accounts, ledger=f"sqlite:///{places.folder}/open.db")

    own = uvloop.run(_open_streams(lambda app: app, count))
    return uvloop.run(_open_streams(ours, count)) - own


async def _renewal(store: Any, count: int) -> float:
    held = []
    for number in range(count):
        answer = await store.admit(_ask(number, f"account-{number % 1_000}"))
        assert isinstance(answer, Admission)
        held.append(Held(answer, 100))
    times = []
    for _ in range(5):
        began = time.process_time()
        await store.renew(held)
        times.append(time.process_time() - began)
    await store.aclose()
    return min(times)


def renewal_share(uri: str, count: int, lease_s: float = 30.0) -> float:
    """Return the share of one core that renewing so many leases takes."""
    store: Any = RedisStore(uri, timeout_s=60.0) if uri else MemoryStore(lease_s=lease_s)
    return uvloop.run(_renewal(store, count)) / (lease_s / 3)
