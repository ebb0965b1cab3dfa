"""What a request costs over real uvicorn: processor time of the server's processes, throughput.

Server and load run in processes of their own; the servers are all up, and are asked in turn.
"""

import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.client import first_chunk_ms
from benchmarks.subjects import Places, Subject

_START_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 20.0
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Served:
    """What one subject gave, per round: requests per second, and the server's µs per request."""

    per_s: tuple[float, ...]
    cpu_us: tuple[float, ...]
    p50_ms: tuple[float, ...]

    @property
    def rate(self) -> float:
        """The median of the requests per second."""
        return statistics.median(self.per_s)

    @property
    def us(self) -> float:
        """The median of the processor time per request."""
        return statistics.median(self.cpu_us)


class Server:
    """A subject on uvicorn."""

    def __init__(self, subject: Subject, places: Places, workers: int = 1) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [sys.executable, "-m", "benchmarks.serve", subject.name, str(self.port)]
        command += [str(places.folder), places.redis, places.postgres]
        environment = {**os.environ, "WORKERS": str(workers)}
        self._command = command
        self._process = subprocess.Popen(command, env=environment)

    def wait(self) -> None:
        """Wait until it listens."""
        deadline = time.monotonic() + _START_TIMEOUT_S
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port)).close()
                return
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"a server did not start: {self._command}")
            time.sleep(0.05)

    def load(self, connections: int, seconds: float) -> dict[str, float]:
        """Ask it; also tells the processor time in µs that it took per request."""
        before = cpu_s(self._process.pid)
        found = load(self.port, connections, seconds)
        found["cpu_us"] = (cpu_s(self._process.pid) - before) / found["requests"] * 1e6
        return found

    def stop(self) -> None:
        """End it."""
        self._process.terminate()
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def load(port: int, connections: int, seconds: float) -> dict[str, float]:
    """Ask a server from a process of its own."""
    command = [sys.executable, "-m", "benchmarks.client"]
    command += [str(port), str(connections), str(seconds)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def cpu_s(pid: int) -> float:
    """Return the processor time of a process so far, of its children too."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split()
    return _own_cpu_s(pid) + sum(map(cpu_s, map(int, children)))


def _own_cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


@contextlib.contextmanager
def serving(
    subjects: Sequence[Subject], places: Places, workers: int = 1
) -> Iterator[dict[str, Server]]:
    """Start a server per subject."""
    with contextlib.ExitStack() as stack:
        servers = {}
        for subject in subjects:
            servers[subject.name] = server = Server(subject, places, workers)
            stack.callback(server.stop)
        for server in servers.values():
            server.wait()
        yield servers


def served(
    subjects: Sequence[Subject],
    places: Places,
    *,
    connections: int,
    rounds: int,
    seconds: float,
    workers: int = 1,
) -> dict[str, Served]:
    """Ask all subjects in turn, round by round."""
    found: dict[str, list[dict[str, float]]] = {subject.name: [] for subject in subjects}
    with serving(subjects, places, workers) as servers:
        for server in servers.values():
            server.load(connections, min(seconds, 0.5))
        for _ in range(rounds):
            for name, server in servers.items():
                found[name].append(server.load(connections, seconds))
    return {
        name: Served(
            *(tuple(one[field] for one in rounds) for field in ("per_s", "cpu_us", "p50_ms"))
        )
        for name, rounds in found.items()
    }


def first_chunks(
    subjects: Sequence[Subject], places: Places, *, rounds: int, streams: int
) -> dict[str, float]:
    """Return the median time to the first chunk in ms, asked in turn."""
    found: dict[str, list[float]] = {subject.name: [] for subject in subjects}
    with serving(subjects, places) as servers:
        for server in servers.values():
            first_chunk_ms(server.port, 10)
        for _ in range(rounds):
            for name, server in servers.items():
                found[name].append(first_chunk_ms(server.port, streams))
    return {name: statistics.median(times) for name, times in found.items()}
