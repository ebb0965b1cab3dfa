"""What an admission costs: in Redis' own time and memory, and in the memory of a process.

    python -m benchmarks.limits             # about two minutes; starts a redis-server of its own

Targets: script time p50 at most 60 µs for the three limits and 15 µs more for each further one,
whatever the limits' size and the number of accounts; at most 4 KB of Redis' memory per active
account and 1.5 KB more per further limit, at any rate; the in-process store's cost at 1,000,000
accounts at most 1.2 times that at one.
"""

import argparse
import asyncio
import json
import random
import statistics
import time
from collections.abc import Sequence
from typing import Any

import redis

from inf_middleware.domain.limits import Admission, Ask
from inf_middleware.domain.tiers import Tier
from inf_middleware.stores.memory import MemoryStore
from inf_middleware.stores.redis import RedisStore
from tests.redis_servers import RedisServer, redis_server

ROUNDS = 7
CALLS = 4_000  # a round
MEMORY_ACCOUNTS = 1_000_000

# A clock that runs as the test says: a minute is filled slot by slot without waiting for it.
MOVED_CLOCK = """
local function clock() return tonumber(redis.call('GET', 'the-clock')) end
"""


def tier(further: int = 0, size: int = 10**9) -> Tier:
    """Make a level of the three limits and `further` ones, that never refuse."""
    # Little longer than a minute, so that all their slots fill, too.
    rates = [f"{size}/{seconds} second" for seconds in range(61, 61 + further)]
    return Tier("Bench", 48, size, size, tokens=rates)


def ask(number: int, level: Tier, account: str) -> Ask:
    """Ask for what a request of 1,000 tokens asks."""
    return Ask(f"{number}-{random.getrandbits(40)}", account, level.groups_for(None), 1_000)


async def _cycle(store: Any, level: Tier, accounts: int, calls: int) -> None:
    for number in range(calls):
        account = f"account-{random.randrange(accounts)}"
        answer = await store.admit(ask(number, level, account))
        assert isinstance(answer, Admission), answer
        await store.settle(answer, 700)


async def _script_us(
    server: RedisServer, client: redis.Redis, levels: Sequence[tuple[str, Tier, int]]
) -> dict[str, float]:
    """Return the p50 of script time in µs for each case: medians of interleaved rounds."""
    found: dict[str, list[float]] = {name: [] for name, _, _ in levels}
    stores = {
        name: RedisStore(server.uri, deployment=f"{accounts} {level.tokens}", timeout_s=30.0)
        for name, level, accounts in levels
    }
    for name, level, accounts in levels:
        await _cycle(stores[name], level, accounts, 200)
    for _ in range(ROUNDS):
        for name, level, accounts in levels:
            client.config_resetstat()
            await _cycle(stores[name], level, accounts, CALLS // 2)
            stats = client.info("latencystats")["latency_percentiles_usec_evalsha"]
            found[name].append(float(stats["p50"]))
    for store in stores.values():
        await store.aclose()
    return {name: statistics.median(rounds) for name, rounds in found.items()}


async def _fill_accounts(server: RedisServer, level: Tier, accounts: int) -> None:
    store = RedisStore(server.uri, deployment=f"{accounts} {level.tokens}", timeout_s=60.0)
    for start in range(0, accounts, 500):
        numbers = range(start, min(start + 500, accounts))
        answers = await asyncio.gather(
            *(store.admit(ask(number, level, f"account-{number}")) for number in numbers)
        )
        await asyncio.gather(*(store.settle(answer, 700) for answer in answers))
    await store.aclose()


async def _account_bytes(server: RedisServer, client: redis.Redis, level: Tier) -> int:
    """Return the memory of an account that is busy in every slot of its minute."""
    client.flushall()
    store = RedisStore(server.uri, timeout_s=30.0, clock=MOVED_CLOCK)
    held: list[Admission] = []
    for number in range(8 * 130):
        client.set("the-clock", 1_700_000_000_000_000 + number * 62_500)
        answer = await store.admit(ask(number, level, "busy"))
        assert isinstance(answer, Admission)
        held.append(answer)
        if len(held) > 4:
            await store.settle(held.pop(0), 700)
    (key,) = client.keys("inf1:*:{*")
    await store.aclose()
    used = client.memory_usage(key)
    assert used is not None
    return int(used)


async def _memory_us(accounts: int) -> float:
    """Return what an admission and its settlement cost in this process, with so many accounts."""
    store = MemoryStore()
    level = tier()
    for number in range(accounts):
        answer = await store.admit(ask(number, level, f"account-{number}"))
        assert isinstance(answer, Admission)
        if accounts > 1:
            await store.settle(answer, 700)
    asks = [ask(n, level, f"account-{random.randrange(accounts)}") for n in range(CALLS)]
    rounds = []
    for number in range(ROUNDS):
        fresh = [
            Ask(f"{one.call_id}-{number}", one.account_id, one.groups, one.tokens) for one in asks
        ]
        begin = time.perf_counter()
        for one in fresh:
            answer = await store.admit(one)
            await store.settle(answer, 700)
        rounds.append((time.perf_counter() - begin) / CALLS * 1e6)
    return statistics.median(rounds)


async def measure() -> dict[str, Any]:
    """Measure everything, and return the figures."""
    with redis_server() as server, redis.Redis.from_url(server.uri) as client:
        small, large = tier(size=10**8), tier(size=10**12)
        script = await _script_us(
            server,
            client,
            [
                ("three limits, one account", tier(), 1),
                ("three limits of 10^8", small, 1),
                ("three limits of 10^12", large, 1),
                ("one further limit", tier(1), 1),
                ("four further limits", tier(4), 1),
            ],
        )
        await _fill_accounts(server, tier(), 100_000)
        many = await _script_us(server, client, [("three limits, 100,000 accounts", tier(), 10**5)])
        bytes_of = {
            "three limits": await _account_bytes(server, client, tier()),
            "one further limit": await _account_bytes(server, client, tier(1)),
            "four further limits": await _account_bytes(server, client, tier(4)),
        }
    one = await _memory_us(1)
    million = await _memory_us(MEMORY_ACCOUNTS)
    return {
        "script_us": {**script, **many},
        "account_bytes": bytes_of,
        "memory_us": {"one account": one, "1,000,000 accounts": million},
        "memory_ratio": million / one,
    }


def main() -> None:
    """Print the figures as Markdown, or as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    found = asyncio.run(measure())
    if chosen.json:
        print(json.dumps(found, indent=2))
        return
    print("| Redis, one script (admit or settle) | p50, µs |\n| --- | ---: |")
    for name, value in found["script_us"].items():
        print(f"| {name} | {value:.0f} |")
    print("\n| Redis, one account busy in all of its minute | bytes |\n| --- | ---: |")
    for name, value in found["account_bytes"].items():
        print(f"| {name} | {value:,} |")
    print("\n| in process, admit and settle | µs |\n| --- | ---: |")
    for name, value in found["memory_us"].items():
        print(f"| {name} | {value:.1f} |")
    print(f"| ratio | {found['memory_ratio']:.2f} |")


if __name__ == "__main__":
    main()
