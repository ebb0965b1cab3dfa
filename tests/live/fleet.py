"""Several server processes before one store: uvicorn with workers, and independent ones."""

import json
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.processes import Running, free_ports, wait_until

_ROOT = Path(__file__).parent.parent.parent


class Server:
    """One uvicorn with `workers` processes, on a port that it keeps over restarts."""

    def __init__(self, folder: Path, limiter: Mapping[str, Any], *, workers: int = 1) -> None:
        self.folder = folder
        self.workers = workers
        (self.port,) = free_ports(1)
        self._env = {
            "SUBJECT_LIMITER": json.dumps(limiter),
            # Each server as on a host of its own, with its own ledger.
            "SUBJECT_LEDGER": json.dumps({"ledger": f"sqlite:///{folder}/ledger-{self.port}.db"}),
            "SUBJECT_FOLDER": str(folder),
            "PYTHONPATH": f"{_ROOT / 'src'}:{_ROOT}",
        }
        self.process: Running | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def running(self) -> Running:
        assert self.process is not None, "it was not started"
        return self.process

    def start(self) -> None:
        """Start without waiting; `wait` does."""
        command = [sys.executable, "-m", "uvicorn", "--factory", "tests.live.subject:build"]
        command += ["--port", str(self.port), "--workers", str(self.workers), "--no-access-log"]
        # Longer than any run: a kept connection is never closed just as a client uses it.
        command += ["--timeout-keep-alive", "3600", "--timeout-graceful-shutdown", "5"]
        output = self.folder / f"uvicorn-{self.port}.txt"
        output.unlink(missing_ok=True)
        self.process = Running(command, output, env=self._env)

    def wait(self) -> None:
        """Return when all workers serve."""

        def serves() -> bool:
            assert self.running.is_alive, self.running.said()
            if self.said().count("startup complete") < self.workers:
                return False
            # A uvicorn of one process says so before it listens.
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", self.port)) == 0

        wait_until(serves, f"{self.workers} workers on {self.url}")

    def said(self) -> str:
        return self.running.said()

    def pids(self) -> list[int]:
        """The processes that serve: the one, or the workers that live just now."""
        if self.workers == 1:
            return [self.running.pid]
        logged = [int(path.stem) for path in self.folder.glob("*.log")]
        return [pid for pid in logged if _parent_of(pid) == self.running.pid]

    def stop(self) -> None:
        if self.process is not None:
            self.process.stop()
            self.process = None


def _parent_of(pid: int) -> int | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(stat.rpartition(")")[2].split()[1])


@contextmanager
def fleet(
    folder: Path, limiter: Mapping[str, Any], workers: Sequence[int] = (1,)
) -> Iterator[list[Server]]:
    """One server for each number of `workers`, all started and stopped."""
    servers = [Server(folder, limiter, workers=count) for count in workers]
    try:
        for server in servers:
            server.start()
        for server in servers:
            server.wait()
        yield servers
    finally:
        for server in servers:
            server.stop()
