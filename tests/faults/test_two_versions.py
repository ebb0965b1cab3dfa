"""Two versions of the library on one Redis, as in a rolling deploy: one account, one limit.

The other version is this one's script with another text, so that a server knows it by another
name, and what an earlier release has left there, byte for byte. A commit of this repository's past
would not do: what is packed for release, and what is checked out shallow, has none.
"""

import asyncio
import contextlib
import hashlib
import itertools
from collections.abc import AsyncIterator, Iterable

from msgspec.structs import replace

from inf_middleware.domain.limits import Admission, Ask, Held, Refusal
from inf_middleware.stores.redis import RedisStore
from tests.faults.load import SLOTS, TIER
from tests.redis_servers import RedisServer, redis_server

# In the place of clock.lua: what it says, in other words.
OTHER = """
local function clock()
  local moment = redis.call('TIME')
  return moment[1] * 1000000 + moment[2]
end
"""

NOW_US = 1_800_000_000_000_000
LEASE_US = 30_000_000
FORGET_US = 300_000_000
MINUTE_US = 60_000_000
CALL = "left by 0.1.0"


def left_by_0_1_0(*, lost: bool = False) -> bytes:
    """What version 0.1.0 leaves of an account with one call in progress that reserved 10 tokens.

    Or with one whose lease was lost, when it was known to have used 6. Written down field by field,
    by no code of the package: who changes the form must change the prefix of the keys with it.
    """
    ends_us, tokens, used = (NOW_US + LEASE_US, 10, 0) if not lost else (NOW_US + FORGET_US, 6, 6)
    header = (NOW_US, 7), (ends_us, 7), (int(not lost), 4), (1, 4), (2, 1)
    call = hashlib.blake2b(CALL.encode(), digest_size=8).digest()
    lease = (int(lost), 1), (ends_us, 7), (NOW_US, 7), (tokens, 5), (tokens, 5), (used, 5)
    windows = [
        ((metric, 1), (MINUTE_US, 7), (NOW_US, 7), (total, 7), (1, 1), (NOW_US, 7), (total, 5))
        for metric, total in ((1, 1), (2, tokens))
    ]

    def packed(fields: Iterable[tuple[int, int]]) -> bytes:
        return b"".join(value.to_bytes(size, "little") for value, size in fields)

    return packed(header) + call + packed(lease) + b"".join(map(packed, windows))


def ask(call: str) -> Ask:
    return Ask(call, "acme", TIER.groups_for(None), 10)


@contextlib.asynccontextmanager
async def both(server: RedisServer) -> AsyncIterator[tuple[RedisStore, RedisStore]]:
    stores = (
        RedisStore(server.uri, timeout_s=5.0),
        RedisStore(server.uri, timeout_s=5.0, clock=OTHER),
    )
    try:
        yield stores
    finally:
        for store in stores:
            await store.aclose()


def test_each_counts_what_the_other_admits_and_settles_it_too() -> None:
    async def go(server: RedisServer) -> None:
        async with both(server) as stores:
            numbers = itertools.count()
            held = []
            for _, store in zip(range(SLOTS), itertools.cycle(stores), strict=False):
                answer = await store.admit(ask(f"{next(numbers)}"))
                assert isinstance(answer, Admission)
                held.append(answer)
            for store in stores:
                assert isinstance(await store.admit(ask("over")), Refusal)
                assert await store.renew([Held(one, 5) for one in held]) == frozenset()
                assert store.workers == 2 or store is stores[0]
            # Each ends what the other has begun: the process that did is gone.
            for one, store in zip(held, reversed(stores), strict=True):
                await store.settle(one, 7)
            for store in stores:
                (group,) = await store.read("acme", TIER.groups_for(None))
                assert (group.running, [rate.total for rate in group.rates]) == (
                    0,
                    [SLOTS, 7 * SLOTS],
                )

    with redis_server() as server:
        asyncio.run(go(server))
        scripts = server.ask("INFO", "memory")["number_of_cached_scripts"]
    assert scripts == 2, "they are two versions to the server"


def test_what_an_earlier_version_has_left_counts_and_is_settled() -> None:
    clock = f"local function clock() return {NOW_US + 1} end"

    async def go(server: RedisServer) -> None:
        store = RedisStore(server.uri, timeout_s=5.0, clock=clock)
        assert isinstance(await store.admit(ask("to see the key")), Admission)
        (key,) = server.ask("KEYS", "inf1:*")
        server.ask("SET", key, left_by_0_1_0())
        (group,) = await store.read("acme", TIER.groups_for(None))
        assert (group.running, [rate.total for rate in group.rates]) == (1, [1, 10])
        admission = await store.admit(ask("second"))
        assert isinstance(admission, Admission)
        assert isinstance(await store.admit(ask("third")), Refusal)
        assert await store.renew([Held(replace(admission, ask=ask(CALL)), 5)]) == frozenset()
        await store.settle(replace(admission, ask=ask(CALL)), 4)
        (group,) = await store.read("acme", TIER.groups_for(None))
        assert (group.running, [rate.total for rate in group.rates]) == (1, [2, 14])
        await store.aclose()

    with redis_server() as server:
        asyncio.run(go(server))


def test_what_an_earlier_version_has_lost_is_settled_with_what_it_used_beyond() -> None:
    clock = f"local function clock() return {NOW_US + 1} end"

    async def go(server: RedisServer) -> None:
        store = RedisStore(server.uri, timeout_s=5.0, clock=clock)
        admission = await store.admit(ask("to see the key"))
        assert isinstance(admission, Admission)
        (key,) = server.ask("KEYS", "inf1:*")
        server.ask("SET", key, left_by_0_1_0(lost=True))
        # A call of this version beside it, whose lease is written in its own way.
        assert isinstance(await store.admit(ask("second")), Admission)
        lost = replace(admission, ask=ask(CALL))
        assert await store.renew([Held(lost, 5)]) == {CALL}
        await store.settle(lost, 9)
        (group,) = await store.read("acme", TIER.groups_for(None))
        assert (group.running, [rate.total for rate in group.rates]) == (1, [2, 19])
        await store.aclose()

    with redis_server() as server:
        asyncio.run(go(server))
