"""Redis paused, restarted, cut off: the service answers throughout, as its policy says, and heals.

One service for each policy, and two for "local", all behind a proxy that can cut them off from
Redis. Each keeps being asked for more than its limits while the fault is there, and is looked at
again after the lease and the window have passed.
"""

import asyncio
import contextlib
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.live.admissions import most_at_once, most_in_window, one, read_logs
from tests.live.client import Answer, Client
from tests.live.fleet import Server, fleet
from tests.live.subject import MESSAGES
from tests.redis_servers import RedisServer, redis_server
from tests.tcp_proxy import TcpProxy, proxying

# How many servers each policy has: with "local" two share the limits between them.
SERVERS = {"local": 2, "refuse": 1, "admit": 1}

WINDOW_S = 1
LEASE_S = 1.5
REQUESTS = 10  # in a window, for the one account
SLOTS = 3  # at a time, for the other

TIERS = f"""
[[tier]]
name = "Rate"
concurrency = 1000000
requests_per_minute = 1000000000
tokens_per_minute = 1000000000
recharged_from = "0"
requests = ["{REQUESTS}/{WINDOW_S} second"]

[[tier]]
name = "Slots"
concurrency = {SLOTS}
requests_per_minute = 1000000000
tokens_per_minute = 1000000000
recharged_from = "1"
"""

# An answer that takes longer has not come: some twenty times the deadline of a command.
_PATIENCE_S = 5.0

# From a fault to its being noticed by all: the deadline of a command (0.25 s), twice.
_NOTICED_S = 0.5

# Until a service that is whole again may be expected to have seen it: it looks each second.
_BACK_S = 1.5


@dataclass(frozen=True, slots=True)
class Seen:
    """One request as its client saw it; without an answer its status is 0."""

    begun: float
    ended: float
    status: int
    code: str = ""
    retry_after: str = ""


@dataclass(frozen=True, slots=True)
class Story:
    """What happened under one fault and one policy."""

    policy: str
    fault: "Fault"
    seen: list[Seen]
    away: list[Seen]  # begun and ended while Redis was certainly away
    after: list[Seen]  # begun when it was certainly back
    most_requests: int
    most_requests_away: int
    most_slots: int
    room_left: tuple[int, int]  # at rest: requests that got in at once, and slots


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that happens to Redis, and how it ends."""

    name: str
    inflict: Callable[[RedisServer, TcpProxy], None]
    heal: Callable[[RedisServer, TcpProxy], None]
    lasting_s: float
    loses_data: bool = False


def _start_empty(redis: RedisServer, _: TcpProxy) -> None:
    redis.forget()
    redis.start()


FAULTS = [
    Fault(
        "paused for 10 s",
        lambda redis, _: redis.running.pause(),
        lambda redis, _: redis.running.resume(),
        lasting_s=10.0,
    ),
    Fault(
        "restarted with its data",
        lambda redis, _: redis.running.kill(),
        lambda redis, _: redis.start(),
        lasting_s=2.0,
    ),
    Fault(
        "restarted without its data",
        lambda redis, _: redis.running.kill(),
        _start_empty,
        lasting_s=2.0,
        loses_data=True,
    ),
    Fault(
        "cut off",
        lambda _, proxy: proxy.partition(),
        lambda _, proxy: proxy.heal(),
        lasting_s=2.0,
    ),
    Fault(
        "heard and not answering",
        lambda _, proxy: proxy.partition("answers"),
        lambda _, proxy: proxy.heal(),
        lasting_s=2.0,
    ),
]


class House:
    """The services, and what lies between them and Redis."""

    def __init__(self, redis: RedisServer, proxy: TcpProxy) -> None:
        self.redis = redis
        self.proxy = proxy
        self.folders: dict[str, Path] = {}
        self.servers: dict[str, list[Server]] = {}

    async def tell(self, fault: Fault) -> dict[str, Story]:
        """Ask all services on, through one fault and its end; returns the story of each."""
        seen: dict[str, list[Seen]] = {policy: [] for policy in SERVERS}
        begun = time.monotonic()
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(_ask_on(server.port, seen[policy]))
                for policy, servers in self.servers.items()
                for server in servers
            ]
            await asyncio.sleep(WINDOW_S + 0.2)
            struck = time.monotonic()
            await asyncio.to_thread(fault.inflict, self.redis, self.proxy)
            await asyncio.sleep(fault.lasting_s)
            ending = time.monotonic()
            await asyncio.to_thread(fault.heal, self.redis, self.proxy)
            healed = time.monotonic()
            await asyncio.sleep(_BACK_S + WINDOW_S)
            for task in tasks:
                task.cancel()
        await asyncio.sleep(LEASE_S + WINDOW_S * 1.01)
        rooms = await asyncio.gather(*(_room(servers) for servers in self.servers.values()))
        stories = {}
        for policy, room in zip(self.servers, rooms, strict=True):
            logged = [call for call in read_logs(self.folders[policy]) if call.arrived > begun]
            requests = [call for call in logged if call.key == "sk-rate"]
            while_away = [
                call
                for call in requests
                if call.arrived > struck + _NOTICED_S and call.entered < ending
            ]
            stories[policy] = Story(
                policy=policy,
                fault=fault,
                seen=seen[policy],
                away=[
                    one_seen
                    for one_seen in seen[policy]
                    if one_seen.begun > struck + _NOTICED_S and one_seen.ended < ending
                ],
                after=[s for s in seen[policy] if s.begun > healed + _BACK_S],
                most_requests=most_in_window(requests, WINDOW_S, one),
                most_requests_away=most_in_window(while_away, WINDOW_S, one),
                most_slots=most_at_once(call for call in logged if call.key == "sk-slots"),
                room_left=room,
            )
        return stories


async def _ask_on(port: int, seen: list[Seen]) -> None:
    """Keep asking one server for more than both accounts may have, until cancelled."""

    async def lane(key: str, hold_s: float, rest_s: float) -> None:
        client = Client()
        try:
            while True:
                seen.append(await _ask(client, port, key, hold_s))
                await asyncio.sleep(rest_s)
        finally:
            await client.aclose()

    async with asyncio.TaskGroup() as group:
        group.create_task(lane("sk-rate", 0.0, 0.04))
        for _ in range(SLOTS + 1):
            group.create_task(lane("sk-slots", 0.2, 0.02))


async def _ask(client: Client, port: int, key: str, hold_s: float) -> Seen:
    asked: dict[str, Any] = {
        "model": "inf-chat-v1",
        "messages": MESSAGES,
        "max_tokens": 1,
        "metadata": {"hold_s": str(hold_s)},
    }
    begun = time.monotonic()
    try:
        async with asyncio.timeout(_PATIENCE_S):
            answer = await client.post(port, key, asked)
    except (OSError, TimeoutError, asyncio.IncompleteReadError):
        return Seen(begun, time.monotonic(), 0)
    retry_after = answer.headers.get("retry-after", "")
    return Seen(begun, time.monotonic(), answer.status, _code(answer), retry_after)


def _code(answer: Answer) -> str:
    return "" if answer.status == 200 else answer.code


async def _room(servers: list[Server]) -> tuple[int, int]:
    """How much of both accounts' limits can be had at once, over all servers of a policy."""
    clients = [Client() for _ in range(REQUESTS + 1)]
    ports = [servers[number % len(servers)].port for number in range(len(clients))]
    found = []
    for key, limit, hold_s in (("sk-rate", REQUESTS, 0.0), ("sk-slots", SLOTS, 0.8)):
        pairs = list(zip(clients, ports, strict=True))[: limit + 1]
        seen = await asyncio.gather(*(_ask(client, port, key, hold_s) for client, port in pairs))
        found.append(sum(one_seen.status == 200 for one_seen in seen))
    for client in clients:
        await client.aclose()
    return found[0], found[1]


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    with contextlib.ExitStack() as stack:
        redis = stack.enter_context(redis_server(appendonly=True))
        proxy = stack.enter_context(proxying(redis.port))
        house = House(redis, proxy)
        for policy, count in SERVERS.items():
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="inf-outage-")))
            (folder / "tiers.toml").write_text(TIERS)
            limiter = {
                "storage": f"redis://127.0.0.1:{proxy.port}",
                "on_storage_error": policy,
                "deployment": policy,
                "lease_s": LEASE_S,
                "tiers": str(folder / "tiers.toml"),
                "accounts": {"sk-rate": "Rate", "sk-slots": "Slots"},
            }
            house.folders[policy] = folder
            house.servers[policy] = stack.enter_context(fleet(folder, limiter, [1] * count))
        yield house


@pytest.fixture(scope="module", params=FAULTS, ids=lambda fault: fault.name)
def stories(request: pytest.FixtureRequest, house: House) -> dict[str, Story]:
    telling: Awaitable[dict[str, Story]] = house.tell(request.param)
    return asyncio.run(telling)  # type: ignore[arg-type]


@pytest.fixture(params=SERVERS)
def story(request: pytest.FixtureRequest, stories: dict[str, Story]) -> Story:
    return stories[request.param]


def test_every_request_is_answered_as_the_policy_says(story: Story) -> None:
    allowed = {200, 429, 503} if story.policy == "refuse" else {200, 429}
    assert {seen.status for seen in story.seen} <= allowed
    for seen in story.seen:
        if seen.status == 503:
            assert seen.code == "limits_unavailable"
            assert int(seen.retry_after) >= 1


def test_while_redis_is_away_the_policy_decides(story: Story) -> None:
    statuses = {seen.status for seen in story.away}
    assert len(story.away) >= 20
    # "local" holds to the limits still: there is more demand than they allow.
    assert statuses == {"local": {200, 429}, "refuse": {503}, "admit": {200}}[story.policy]


def test_while_redis_is_away_workers_that_go_on_alone_share_the_limit(story: Story) -> None:
    if story.policy == "local":
        share = -(-REQUESTS // SERVERS["local"])
        assert 0 < story.most_requests_away <= share * SERVERS["local"]
    elif story.policy == "refuse":
        assert story.most_requests_away == 0


def test_what_is_admitted_stays_within_the_promised_bound(story: Story) -> None:
    if story.policy == "refuse" and not story.fault.loses_data:
        assert story.most_requests <= REQUESTS
        assert story.most_slots <= SLOTS
    elif story.policy != "admit":
        # Once more, by shares, where Redis does not know what was admitted meanwhile, or before.
        servers = SERVERS[story.policy]
        assert story.most_requests <= REQUESTS + -(-REQUESTS // servers) * servers
        assert story.most_slots <= SLOTS + -(-SLOTS // servers) * servers


def test_afterwards_the_limits_hold_again_by_themselves(story: Story) -> None:
    assert {seen.status for seen in story.after} == {200, 429}


def test_nothing_leaks_all_can_be_used_again_after_lease_and_window(story: Story) -> None:
    assert story.room_left == (REQUESTS, SLOTS)
