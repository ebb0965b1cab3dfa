"""A load generator that costs little: keep-alive connections, one request at a time on each.

python -m benchmarks.client PORT CONNECTIONS SECONDS     # prints requests/s and latencies as JSON
"""

import asyncio
import json
import socket
import statistics
import sys
import time
from typing import cast

import uvloop

from benchmarks.model_app import KEY, PATH, asked


def request_of(body: bytes) -> bytes:
    """Return a request as it goes over the wire."""
    return (
        b"POST %s HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer %s\r\n"
        b"accept: application/json\r\nuser-agent: benchmark\r\n"
        b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%s"
        % (PATH.encode(), KEY.encode(), len(body), body)
    )


class _Connection(asyncio.Protocol):
    def __init__(self, request: bytes, until: float, times: list[float]) -> None:
        self._request = request
        self._until = until
        self._times = times
        self._wanted = 0  # bytes of the answer; 0: its head is not whole
        self._got = b""
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)
        self._ask()

    def data_received(self, data: bytes) -> None:
        self._got += data
        if not self._wanted:
            head, found, _ = self._got.partition(b"\r\n\r\n")
            if not found:
                return
            if not head.startswith(b"HTTP/1.1 200"):
                raise SystemExit(f"the server answers {self._got[:500]!r}")
            length = head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]
            self._wanted = len(head) + 4 + int(length)
        if len(self._got) >= self._wanted:
            now = time.perf_counter()
            self._times.append(now - self._asked)
            if now < self._until:
                self._ask()
            else:
                self._transport.close()

    def connection_lost(self, _: Exception | None) -> None:
        if not self.done.done():
            self.done.set_result(None)

    def _ask(self) -> None:
        self._got, self._wanted = b"", 0
        self._asked = time.perf_counter()
        self._transport.write(self._request)


async def load(port: int, connections: int, seconds: float) -> dict[str, float]:
    """Ask for so long; return requests per second and latencies in ms."""
    loop = asyncio.get_running_loop()
    times: list[float] = []
    request = request_of(asked(stream=False))
    began = time.perf_counter()
    made = [
        await loop.create_connection(
            lambda: _Connection(request, began + seconds, times), "127.0.0.1", port
        )
        for _ in range(connections)
    ]
    await asyncio.gather(*(protocol.done for _, protocol in made))
    took = time.perf_counter() - began
    times.sort()
    return {
        "requests": len(times),
        "per_s": len(times) / took,
        "p50_ms": times[len(times) // 2] * 1e3,
        "p99_ms": times[len(times) * 99 // 100] * 1e3,
    }


def first_chunk_ms(port: int, count: int) -> float:
    """Return the median time to a stream's first chunk, one stream at a time."""
    request = request_of(asked(stream=True))
    times = []
    with socket.create_connection(("127.0.0.1", port)) as link:
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(count):
            began = time.perf_counter()
            link.sendall(request)
            got = b""
            while b"data: " not in got:
                got += link.recv(65_536)
            times.append(time.perf_counter() - began)
            while not got.endswith(b"0\r\n\r\n"):
                got = got[-8:] + link.recv(65_536)
    return statistics.median(times) * 1e3


def main() -> None:
    """Ask a server, and print what came of it."""
    port, connections, seconds = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    print(json.dumps(uvloop.run(load(port, connections, seconds))))


if __name__ == "__main__":
    main()
