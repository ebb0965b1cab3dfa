"""Workers that are killed under load: what was acknowledged stays, what was held ends at its
checkpoint, and every nano is explained."""

import asyncio
import contextlib
import json
import os
import random
import signal
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from inf_middleware.call.hold import SLICE_TOKENS
from inf_middleware.ledgers import holds, reconcile
from inf_middleware.ledgers.book import LedgerBook
from inf_middleware.ledgers.steps import Ask, Steps
from inf_middleware.ledgers.uris import ledger_of
from tests.kit import STREAM
from tests.ledgers.postgres_server import serving_postgres
from tests.live.killed_app import WORDS, WORDS_PER_PIECE
from tests.processes import Running, free_ports, kill_rounds

ROOT = Path(__file__).parent.parent.parent

# Clients that ask one stream after the other: each worker has several under way when it is killed.
CLIENTS = 6

# A worker or a server is there again within seconds; machines under the load of other tests differ.
PATIENCE_S = 90.0

# What a killed worker may have given away of one stream: its checkpoint moves at half a slice, and
# a stream waits only where the whole of the next one is used.
GIVEN_AWAY_MAX = SLICE_TOKENS + SLICE_TOKENS // 2


@dataclass
class Asked:
    """What a client saw of one stream."""

    worker: int
    received: int = 0  # words
    whole: bool = False


class Clients:
    """Ask streams without end, and remember what came of them."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.asked: dict[str, Asked] = {}
        self.failures: Counter[str] = Counter()
        self.changed = asyncio.Event()

    def acknowledged(self, workers: set[int]) -> int:
        """How many streams of these workers were seen to their end."""
        return sum(one.whole for one in self.asked.values() if one.worker in workers)

    async def run(self) -> None:
        while True:
            try:
                await self._ask()
            except (OSError, EOFError, asyncio.IncompleteReadError):
                await asyncio.sleep(0.05)  # the server is being started again

    async def _ask(self) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            body = json.dumps({**STREAM, "max_tokens": 2 * WORDS}).encode()
            writer.write(
                b"POST /v1/chat/completions HTTP/1.1\r\nhost: test\r\nconnection: close\r\n"
                b"authorization: Bearer sk-one\r\ncontent-type: application/json\r\n"
                b"content-length: %d\r\n\r\n%s" % (len(body), body)
            )
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
            headers = dict(line.split(": ", 1) for line in head[1:] if line)
            if head[0].split()[1] != "200":
                self.failures[head[0]] += 1
                return
            asked = self.asked[headers["x-request-id"]] = Asked(int(headers["x-worker"]))
            tail = b""
            while data := await reader.read(65_536):
                lines, _, tail = (tail + data).rpartition(b"\n")
                asked.received += lines.count(b" one")
                asked.whole = asked.whole or b"data: [DONE]" in lines
        finally:
            self.changed.set()
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def until(self, is_true: Callable[[], bool], what: str) -> None:
        """Wait for something that more answers, or their end, bring."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not is_true():
                    self.changed.clear()
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self.changed.wait(), 0.1)
        except TimeoutError:
            pytest.fail(f"not within {PATIENCE_S:g} s: {what}; {self.failures}")


class Server:
    """Uvicorn with two workers on one ledger."""

    def __init__(self, uri: str, port: int, output: Path) -> None:
        self._uri, self._port, self._output = uri, port, output
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "uvicorn", "tests.live.killed_app:make", "--factory"]
        command += ["--app-dir", str(ROOT), "--workers", "2", "--port", str(self._port)]
        environment = {"LEDGER": self._uri, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
        self._running = Running(command, self._output, env=environment)

    @property
    def workers(self) -> set[int]:
        """The processes that serve."""
        return self._running.workers

    def said(self) -> str:
        return self._running.said()

    def kill(self) -> None:
        """Kill -9 all of it: nobody is there any more who could end anything well."""
        self._running.kill_all()


async def kill_one_worker(server: Server, clients: Clients, rng: random.Random) -> None:
    """Kill one worker of two: the other goes on, and a third takes its place."""
    both = server.workers
    killed = rng.choice(sorted(both))
    os.kill(killed, signal.SIGKILL)
    others = both - {killed}
    done = clients.acknowledged(others)
    await clients.until(
        lambda: clients.acknowledged(others) > done + CLIENTS, "the other worker goes on"
    )
    await clients.until(
        lambda: killed not in server.workers and len(server.workers) == 2, "a new worker"
    )


async def kill_the_server(server: Server, clients: Clients, rng: random.Random) -> None:
    """Kill the whole server, and start it again."""
    server.kill()
    server.start()
    await clients.until(lambda: len(server.workers) == 2, "two workers")


Kill = Callable[[Server, Clients, random.Random], Awaitable[None]]


@pytest.fixture(params=["sqlite", "postgres"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/ledger.db"
    else:
        with serving_postgres() as postgres:
            yield postgres.uri()


@pytest.mark.parametrize("kill", [kill_one_worker, kill_the_server])
def test_killed_under_load_nothing_acknowledged_is_lost_and_holds_end_at_their_checkpoint(
    kill: Kill, uri: str, tmp_path: Path
) -> None:
    rounds = kill_rounds()
    (port,) = free_ports(1)

    async def story() -> Clients:
        async with LedgerBook(ledger_of(uri)) as book:
            await book.recharge("acme", "1000000", reference="r")
        rng = random.Random(6)
        clients = Clients(port)
        server = Server(uri, port, tmp_path / "server.out")
        tasks = [asyncio.create_task(clients.run()) for _ in range(CLIENTS)]
        try:
            for _ in range(rounds):
                done = clients.acknowledged(server.workers)
                await clients.until(
                    lambda done=done: (  # type: ignore[misc]
                        len(server.workers) == 2
                        and clients.acknowledged(server.workers) > done + CLIENTS
                    ),
                    "streams of the workers that live",
                )
                await asyncio.sleep(rng.uniform(0, 0.4))  # the moment is meant to be any
                await kill(server, clients, rng)
        finally:
            server.kill()
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        return clients

    clients = asyncio.run(story())
    ended, wrong, account, stored = asyncio.run(settled(uri))
    asked = clients.asked
    whole = {request_id for request_id, one in asked.items() if one.whole}
    lost = {name: row for name, row in stored.items() if row[0] == "worker_lost"}
    mismatches = [name for name in whole if stored.get(name, ())[:2] != ("complete", WORDS)]
    given_away = [
        asked[name].received - row[1] if name in asked else -row[1] for name, row in lost.items()
    ]
    print(
        f"{uri.partition(':')[0]}, {kill.__name__}: {rounds} rounds, {len(asked)} streams begun,"
        f" {len(whole)} acknowledged, {len(stored)} stored, {len(lost)} ended at a checkpoint"
        f" ({sum(row[1] > 0 for row in lost.values())} of them with tokens, at most"
        f" {max(given_away, default=0)} tokens behind), {len(mismatches)} mismatches"
    )
    assert mismatches == []
    assert wrong == []
    assert account.held_nano == 0
    assert account.balance_nano == 10**15 - sum(row[2] for row in stored.values())
    assert {row[0] for row in stored.values()} == {"complete", "worker_lost"}
    assert ended > 0  # those of the last kill, at the least
    # What was made until the checkpoint is paid: no more than was sent, and nearly all of it.
    assert any(row[1] > 0 for row in lost.values())
    assert all(-WORDS_PER_PIECE <= tokens <= GIVEN_AWAY_MAX for tokens in given_away)


Stored = dict[str, tuple[str, int, int]]


async def settled(uri: str) -> tuple[int, list[Any], Any, Stored]:
    """End all holds, as when the leases of the dead are over; say what the ledger then has."""

    def rows(sql: str) -> Steps[list[Any]]:
        return (yield Ask(sql))

    async with LedgerBook(ledger_of(uri)) as book:
        ledger = book.ledger
        now = "2026-11-25T00:00:00.000000Z"
        # A clock beyond all leases; some hundred holds of dead processes end in one beat.
        ended = await ledger.transact(lambda: holds.beat(None, "", 2**60, 0, now))
        checks = await ledger.read(reconcile.checks)
        wrong: list[Any] = [check for check in checks if not check.ok and "sink" not in check.check]
        place: int | None = 0
        while place is not None:
            at = place
            place, differences = await ledger.read(lambda at=at: reconcile.check_events(at))  # type: ignore[misc]
            wrong += differences
        sql = (
            "SELECT request_id, outcome, output_tokens, amount_nano FROM request"
            " WHERE kind = 'usage'"
        )
        stored = {row[0]: tuple(row[1:]) for row in await ledger.read(lambda: rows(sql))}
        return ended, wrong, await book.account("acme"), stored
