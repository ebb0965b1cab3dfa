"""Everything that a soak stands on, as real as it comes: two workers, Redis, PostgreSQL, sinks."""

import asyncio
import contextlib
import hashlib
import json
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from tests.apps import read_all
from tests.ledgers.postgres_server import PostgresServer, serving_postgres
from tests.processes import Running, free_ports, wait_until
from tests.redis_servers import RedisServer, redis_server
from tests.servers import serving
from tests.sinks.far_ends import split
from tests.tcp_proxy import TcpProxy, proxying

_ROOT = Path(__file__).parents[2]

WORKERS = 2

# A worker that is asked to end finishes what it has, and hands over what sinks take within 5 s.
_STOP_TIMEOUT_S = 120.0

# On a machine that is busy with other tests; nothing is judged by how long it takes.
_START_TIMEOUT_S = 120.0

_SLOW_S = 1.0  # of a delivery to a slow far end: many commits, and below every deadline


class FarEnd:
    """An HTTP server that takes CloudEvents batches: at once, slowly, or not at all.

    `is_forgetful`: it takes them, and says that it does not. Of each event only a digest is kept.
    """

    def __init__(self) -> None:
        self.url = ""
        self.is_down = self.is_slow = self.is_forgetful = False
        self.digests: dict[str, bytes] = {}
        self.again = 0  # deliveries of an event that had come before
        self.altered: list[str] = []  # ids of events that came with other bytes again

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = await read_all(receive)
        if self.is_slow:
            await asyncio.sleep(_SLOW_S)
        if not self.is_down:
            for one in split(body):
                self._take(one)
        status = 503 if self.is_down or self.is_forgetful else 204
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    def _take(self, one: bytes) -> None:
        event_id = json.loads(one)["id"]
        digest = hashlib.blake2b(one, digest_size=16).digest()
        known = self.digests.setdefault(event_id, digest)
        self.again += known is not digest
        if known != digest:
            self.altered.append(event_id)


class Server:
    """One uvicorn with its workers; each of them is started again should it die."""

    def __init__(self, folder: Path, places: dict[str, Any]) -> None:
        self.output = folder / "uvicorn.txt"
        self._folder = folder
        self._places = places
        (self.port,) = free_ports(1)
        self._running: Running | None = None

    @property
    def running(self) -> Running:
        assert self._running is not None, "it was not started"
        return self._running

    @property
    def workers(self) -> set[int]:
        """The processes that serve."""
        return self.running.workers

    def start(self) -> None:
        """Start, and return when all workers serve."""
        command = [sys.executable, "-m", "uvicorn", "--factory", "tests.soak.app:build"]
        command += ["--port", str(self.port), "--workers", str(WORKERS), "--no-access-log"]
        command += ["--log-level", "warning", "--timeout-graceful-shutdown", "30"]
        # A worker that is paused for some seconds is not dead, and is not to be killed for it.
        command += ["--timeout-worker-healthcheck", "120"]
        environment = {
            "SOAK": json.dumps(self._places),
            "PYTHONPATH": f"{_ROOT / 'src'}:{_ROOT}",
        }
        # Where it stands it keeps its spool, as with a ledger on another host.
        running = self._running = Running(
            command, self.output, env=environment, folder=self._folder
        )

        def serves() -> bool:
            assert running.is_alive, running.said()
            return len(running.workers) == WORKERS and accepts(self.port)

        wait_until(serves, "all workers serve", timeout_s=_START_TIMEOUT_S)

    def kill(self) -> None:
        """End it whatever it does; nothing where it was not started."""
        if self._running is not None:
            self._running.stop()

    def stop(self) -> bool:
        """Ask it to end; tell whether it did by itself, with nothing left behind."""
        running = self.running
        workers = running.workers
        running.terminate()
        with contextlib.suppress(AssertionError):
            wait_until(lambda: not running.is_alive, "it ends", timeout_s=_STOP_TIMEOUT_S)
        return not running.is_alive and not any(Path(f"/proc/{pid}").exists() for pid in workers)


def accepts(port: int) -> bool:
    """Tell whether somebody listens on a port of this host."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@dataclass
class House:
    """All of it, running."""

    folder: Path
    redis: RedisServer
    redis_way: TcpProxy
    postgres: PostgresServer
    postgres_way: TcpProxy
    ledger_uri: str  # straight to the server, for operators and for the audit
    far_end: FarEnd
    tables: "Tables"
    server: Server

    @property
    def events_path(self) -> Path:
        """The file that is the other sink."""
        return self.folder / "events.jsonl"

    @property
    def spool_bytes(self) -> int:
        """What waits on this host for the ledger."""
        return sum(path.stat().st_size for path in self.folder.glob("*.spool/*.jsonl"))


class Tables:
    """The levels and the price list, in files that operators change while all runs."""

    def __init__(self, folder: Path) -> None:
        self.tiers = folder / "tiers.toml"
        self.prices = folder / "prices.toml"
        domain = files("inf_middleware") / "domain"
        self._tiers = (domain / "tiers.toml").read_text("utf-8")
        self._prices = (domain / "prices.toml").read_text("utf-8")
        self.change_tiers(4)
        self.change_prices(10)

    def change_tiers(self, free_requests: int) -> None:
        """Give the lowest level so many requests a minute."""
        old, new = "requests_per_minute = 4\n", f"requests_per_minute = {free_requests}\n"
        _replace(self.tiers, self._tiers.replace(old, new))

    def change_prices(self, yuan: int) -> None:
        """Let a million tokens of the model that is asked for cost so much."""
        old, new = 'input = "10"\noutput = "10"', f'input = "{yuan}"\noutput = "{yuan}"'
        _replace(self.prices, self._prices.replace(old, new))

    def touch(self) -> None:
        """Make both files newer, with nothing else in them."""
        self.tiers.touch()
        self.prices.touch()


def _replace(path: Path, text: str) -> None:
    # As operators' tools do: nobody ever reads half of it.
    partial = path.with_suffix(".partial")
    partial.write_text(text, "utf-8")
    partial.replace(path)


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[House]:
    """Start all but the server, whose accounts have to be there first; all is stopped."""
    with contextlib.ExitStack() as stack:
        redis = stack.enter_context(redis_server(appendonly=True))
        redis_way = stack.enter_context(proxying(redis.port))
        (port,) = free_ports(1)
        postgres = stack.enter_context(serving_postgres(port))
        postgres_way = stack.enter_context(proxying(port))
        far_end = FarEnd()
        far_end.url = stack.enter_context(serving(far_end, lifespan="off"))
        tables = Tables(folder)
        straight, through = postgres.uris(postgres_way.port)
        places = {
            "ledger": through,
            "storage": f"redis://127.0.0.1:{redis_way.port}",
            "tiers": str(tables.tiers),
            "prices": str(tables.prices),
            "sinks": {"http": far_end.url, "file": f"jsonl:{folder / 'events.jsonl'}"},
        }
        server = Server(folder, places)
        stack.callback(server.kill)
        yield House(
            folder, redis, redis_way, postgres, postgres_way, straight, far_end, tables, server
        )
