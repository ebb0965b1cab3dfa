"""A worker that was stopped for longer than its lease: its slots are others', and stay so."""

import asyncio
import tempfile
from pathlib import Path

from tests.live.client import Client
from tests.live.fleet import Server, fleet
from tests.live.subject import MESSAGES
from tests.processes import paused
from tests.redis_servers import redis_server

LEASE_S = 1.5
SLOTS = 2
TIERS = f"""
[[tier]]
name = "Slots"
concurrency = {SLOTS}
requests_per_minute = 1000000
tokens_per_minute = 1000000000
recharged_from = "0"
"""


def test_a_worker_paused_past_its_lease_gives_its_slots_up_and_never_takes_them_back() -> None:
    with (
        tempfile.TemporaryDirectory(prefix="inf-paused-") as name,
        redis_server() as redis,
    ):
        folder = Path(name)
        (folder / "tiers.toml").write_text(TIERS)
        limiter = {
            "storage": redis.uri,
            "tiers": str(folder / "tiers.toml"),
            "accounts": {"sk": "Slots"},
            "lease_s": LEASE_S,
            "on_storage_error": "refuse",
            "storage_timeout_s": 5.0,
        }
        with fleet(folder, limiter, [1, 1]) as (stopped, other):
            asyncio.run(_story(stopped, other))


async def _story(stopped: Server, other: Server) -> None:
    clients: list[Client] = []

    async def ask(server: Server, hold_s: float) -> int:
        client = Client()
        clients.append(client)
        metadata = {"hold_s": str(hold_s)}
        asked = {"model": "m", "messages": MESSAGES, "max_tokens": 1, "metadata": metadata}
        return (await client.post(server.port, "sk", asked)).status

    async def burst(server: Server) -> list[int]:
        return sorted(await asyncio.gather(*(ask(server, 0.5) for _ in range(SLOTS + 1))))

    full = [200] * SLOTS + [429]
    theirs = [asyncio.create_task(ask(stopped, 6.0)) for _ in range(SLOTS)]
    await asyncio.sleep(0.5)
    assert await ask(other, 0.0) == 429
    with paused(stopped.running):
        await asyncio.sleep(LEASE_S + 0.2)
        ours = [asyncio.create_task(ask(other, 6.0)) for _ in range(SLOTS)]
        await asyncio.sleep(0.5)
        assert not any(task.done() for task in ours), "the slots were not given up"
    # It goes on, in the middle of its requests: they run without slots, and take none.
    await asyncio.sleep(LEASE_S)
    assert await ask(stopped, 0.0) == 429
    assert not any(task.done() for task in (*theirs, *ours))
    assert await asyncio.gather(*theirs) == [200] * SLOTS
    # Their end frees nothing: the slots are of those that run elsewhere.
    assert await ask(stopped, 0.0) == 429
    assert not any(task.done() for task in ours)
    assert await asyncio.gather(*ours) == [200] * SLOTS
    assert await burst(stopped) == full
    assert await burst(other) == full
    for client in clients:
        await client.aclose()
