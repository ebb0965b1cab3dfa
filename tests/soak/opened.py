"""What a process has open, told by kinds: tasks, threads, file descriptors, memory."""

import asyncio
import os
import re
import socket
import threading
from collections import Counter
from pathlib import Path

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

ENDED = "ended by the server"

# Numbers in names of threads, tasks and files say which one, not of what kind.
_NUMBER = re.compile(r"[0-9a-f-]*\d[0-9a-f-]*")


def rss_bytes(pid: int) -> int:
    """The resident memory of a process; 0 where it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1]) * _PAGE_BYTES
    except (OSError, IndexError):
        return 0


def descriptors(pid: int) -> int:
    """How many file descriptors a process has; 0 where it is gone."""
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return 0


def tasks_of(loop: asyncio.AbstractEventLoop) -> Counter[str]:
    """The tasks of an event loop by what they run; not the one that asks."""
    asking = asyncio.current_task(loop)
    return Counter(
        getattr(task.get_coro(), "__qualname__", "?") + f" ({_NUMBER.sub('*', task.get_name())})"
        for task in asyncio.all_tasks(loop)
        if task is not asking
    )


def threads() -> Counter[str]:
    """The threads of this process."""
    return Counter(_NUMBER.sub("*", thread.name) for thread in threading.enumerate())


def open_files() -> Counter[str]:
    """The file descriptors of this process; sockets by the port of the other side."""
    peers = _peers()
    found: Counter[str] = Counter()
    for number in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{number}")
        except OSError:  # that of this very look
            continue
        if target.startswith("socket:["):
            found[peers.get(target[len("socket:[") : -1]) or _without_peer(int(number))] += 1
        else:
            found[_kind_of(target)] += 1
    return found


def _without_peer(number: int) -> str:
    """Tell a TCP connection that the other side has ended, and we not, from other sockets."""
    try:
        with socket.socket(fileno=os.dup(number)) as copy:
            return ENDED if copy.family == socket.AF_INET else "socket"
    except OSError:
        return "socket"


def _kind_of(target: str) -> str:
    if target.startswith("/"):
        path = Path(target.removesuffix(" (deleted)"))
        return f"file {_NUMBER.sub('*', path.parent.name)}/{_NUMBER.sub('*', path.name)}"
    return target.split(":", 1)[0].removesuffix("]")


def _peers() -> dict[str, str]:
    """For each TCP socket, by its inode: whom it is connected to, or that it listens."""
    lines = Path("/proc/self/net/tcp").read_text("ascii").splitlines()[1:]
    table = [(_port(words[1]), _port(words[2]), words[9]) for words in map(str.split, lines)]
    listening = {own for own, other, _ in table if not other}
    return {inode: _told(own, other, own in listening) for own, other, inode in table}


def _port(address: str) -> int:
    return int(address.rpartition(":")[2], 16)


def _told(own: int, other: int, listens: bool) -> str:
    if not other:
        return f"listens on {own}"
    return f"client of {own}" if listens else f"server {other}"
