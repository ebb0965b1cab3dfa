"""What the machine itself gives while it is measured: its noise, its disk, its Redis."""

import os
import platform
import socket
import statistics
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

_SPIN = 200_000


def _spin_ms() -> float:
    began = time.thread_time()
    total = 0
    for number in range(_SPIN):
        total += number & 7
    return (time.thread_time() - began) * 1e3


def noise(rounds: int = 15) -> float:
    """Return the middle half of one loop's processor times, as a ratio of their median."""
    times = [_spin_ms() for _ in range(rounds)]
    low, middle, high = statistics.quantiles(times, n=4)
    return (high - low) / middle


def fsync_ms(folder: Path, count: int = 100) -> float:
    """Return the median time of one fsync after a small write."""
    times = []
    with (folder / "fsync").open("wb") as file:
        for _ in range(count):
            file.write(b"x" * 4096)
            file.flush()
            began = time.perf_counter()
            os.fsync(file.fileno())
            times.append(time.perf_counter() - began)
    return statistics.median(times) * 1e3


def redis_ms(uri: str, count: int = 300) -> float:
    """Return the median time of a PING over a plain socket, as a client in this process sees it."""
    place = urlsplit(uri)
    times = []
    with socket.create_connection((place.hostname, place.port)) as link:
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(count):
            began = time.perf_counter()
            link.sendall(b"PING\r\n")
            link.recv(64)
            times.append(time.perf_counter() - began)
    return statistics.median(times) * 1e3


def described(folder: Path, redis: str) -> dict[str, Any]:
    """Return date, processor, load, versions, and the noise and waits of now."""
    lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if "model name" in line), "?")
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "processor": f"{os.cpu_count()} x {model}",
        "system": platform.platform(),
        "python": platform.python_version(),
        "load average": [round(value, 2) for value in os.getloadavg()],
        "noise": round(noise(), 3),
        "fsync p50, ms": round(fsync_ms(folder), 3),
        **({"Redis PING p50, ms": round(redis_ms(redis), 3)} if redis else {}),
    }
