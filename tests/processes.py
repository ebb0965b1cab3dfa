"""Real processes for tests: started with their output in a file, always stopped by their pid."""

import contextlib
import ctypes
import os
import random
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# Below the ephemeral range of Linux (32768 and up): no outgoing connection takes the port of a
# server that is down for a moment, and no client of it connects to itself.
_PORTS = range(15_000, 32_000)

# Slow machines under the load of other tests start a server in a second or two.
START_TIMEOUT_S = 20.0
_STOP_TIMEOUT_S = 5.0

# To the kernel the parent of a process is the thread that started it: this one lives to the end.
_SPAWNER = ThreadPoolExecutor(1)


_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent() -> None:
    """Have the kernel kill this process where its parent is killed, as a worker's supervisor is."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, all different."""
    with contextlib.ExitStack() as stack:
        found: list[int] = []
        while len(found) < count:
            taken = stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                taken.bind(("127.0.0.1", random.choice(_PORTS)))
                found.append(taken.getsockname()[1])
        return found


def wait_until(
    is_true: Callable[[], bool], what: str, *, timeout_s: float = START_TIMEOUT_S
) -> None:
    """Return as soon as something is true; fail, saying what was awaited, when it is not."""
    deadline = time.monotonic() + timeout_s
    while not is_true():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.02)


class Running:
    """A process and its output; `stop` ends it and whatever it has started and left behind."""

    def __init__(
        self,
        command: Sequence[str],
        output: Path,
        *,
        env: Mapping[str, str] | None = None,
        folder: Path | None = None,
    ) -> None:
        self.output = output
        # The kernel kills it should this process be killed before it can: util-linux has setpriv
        # on every Debian, and elsewhere the tests only lose this last resort.
        guard = ["setpriv", "--pdeathsig", "KILL", "--"] if shutil.which("setpriv") else []
        with output.open("ab") as file:
            self._process = _SPAWNER.submit(
                subprocess.Popen,
                [*guard, *command],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
                cwd=folder,
            ).result()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    @property
    def children(self) -> list[int]:
        """The processes that it started and that live."""
        path = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        try:
            return [int(pid) for pid in path.read_text("ascii").split()]
        except OSError:
            return []

    @property
    def workers(self) -> set[int]:
        """Of these the worker processes, where it is a uvicorn of several."""
        return {pid for pid in self.children if b"spawn_main" in _command_of(pid)}

    def said(self) -> str:
        """What it has written, for the message of a failure."""
        return self.output.read_text("utf-8", "replace")[-4_000:]

    def pause(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def terminate(self) -> None:
        """Ask it to end, and do not wait for that."""
        self._process.terminate()

    def kill(self) -> None:
        """Kill -9, and see it gone."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """Ask it to end, then make it; some servers leave the processes of their workers."""
        started = _descendants(self.pid) if self.is_alive else []
        if self.is_alive:
            self.resume()
            self.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_STOP_TIMEOUT_S)
        self.kill()
        _kill_all(started)

    def kill_all(self) -> None:
        """Kill -9 of it and of all that it has started, and see them gone: their port is free."""
        started = _descendants(self.pid)
        self.kill()
        _kill_all(started)


def processes_of(pid: int) -> list[int]:
    """A process, and those that it has started."""
    return [pid, *_children(pid)]


def _children(pid: int) -> list[int]:
    children: list[str] = []
    for thread in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            children += thread.read_text("ascii").split()
    return [int(child) for child in children]


def _descendants(pid: int) -> list[int]:
    """Descriptors of the processes that it has started, and those have: ids may be given anew."""
    found: list[int] = []
    for child in _children(pid):
        with contextlib.suppress(OSError):  # the same
            found.append(os.pidfd_open(child))
            found += _descendants(child)
    return found


def _kill_all(processes: list[int]) -> None:
    for left in processes:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(left, signal.SIGKILL)
    for left in processes:
        select.select([left], [], [], _STOP_TIMEOUT_S)  # until it has ended
        os.close(left)


def _command_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@contextlib.contextmanager
def outlived_by_a_child(code: str, *arguments: str) -> Iterator[None]:
    """Run code whose process forks and ends at once; its child, whose id it prints, lives on.

    Once the child runs, what happens to it at a fork has happened.
    """
    command = [sys.executable, "-W", "ignore", "-c", code, *arguments]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    try:
        parent.wait()
        parent.stdout.close()
        yield
    finally:
        os.kill(child, signal.SIGKILL)


@contextlib.contextmanager
def paused(process: Running) -> Iterator[None]:
    """Stop a process in its tracks (SIGSTOP), and let it go on afterwards."""
    process.pause()
    try:
        yield
    finally:
        process.resume()


def kill_rounds() -> int:
    """How often tests kill what they test, each time at any moment: more by hand than in CI."""
    return int(os.environ.get("INF_TEST_KILL_ROUNDS", "3"))
