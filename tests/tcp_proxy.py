"""A TCP proxy that misbehaves on command: partition, delay, cut connections."""

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Literal

_PIECE_BYTES = 64 * 1024

Direction = Literal["requests", "answers"]
_BOTH: tuple[Direction, Direction] = ("requests", "answers")


class TcpProxy:
    """Forwards bytes to a port of this host. Its methods are called from any thread."""

    def __init__(self, target_port: int) -> None:
        self.target_port = target_port
        self.port = 0
        self.delay_s = 0.0  # of each piece, in each direction; later pieces wait behind it
        self._loop = asyncio.new_event_loop()
        self._open: dict[Direction, asyncio.Event] = {}
        self._writers: set[asyncio.StreamWriter] = set()
        self._forgotten: set[asyncio.StreamWriter] = set()
        self._started = threading.Event()
        self._ended = asyncio.Event()
        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(self._run()))

    def partition(self, *directions: Direction) -> None:
        """Stop forwarding, both ways unless told: connections stay, and no byte arrives.

        Only "answers": what is asked is done, and nobody hears of it.
        """
        self._call(lambda: [self._open[way].clear() for way in directions or _BOTH])

    def heal(self) -> None:
        """Forward again, first what was held back, as TCP would."""
        self._call(lambda: [self._open[way].set() for way in _BOTH])

    def cut(self) -> None:
        """Reset all connections there are; new ones are welcome."""
        self._call(self._cut)

    def forget(self) -> None:
        """Lose all connections there are, as a firewall does: each ends at its next request."""
        self._call(lambda: self._forgotten.update(self._writers))

    def start(self) -> None:
        self._thread.start()
        assert self._started.wait(10), "the proxy did not start"

    def stop(self) -> None:
        self._call(self._ended.set)
        self._thread.join()
        self._loop.close()

    def _call(self, action: Callable[[], object]) -> None:
        async def run() -> None:
            action()

        asyncio.run_coroutine_threadsafe(run(), self._loop).result()

    def _cut(self) -> None:
        for writer in self._writers:
            _reset(writer)

    async def _run(self) -> None:
        self._open = {way: asyncio.Event() for way in _BOTH}
        for is_open in self._open.values():
            is_open.set()
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._started.set()
        await self._ended.wait()
        server.close()
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        self._cut()
        await asyncio.gather(*rest, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.CancelledError):
            await self._connect(reader, writer)
        self._writers.discard(writer)
        writer.transport.abort()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        # Behind a partition even the handshake with the target would not come through.
        await self._open["requests"].wait()
        behind, target = await asyncio.open_connection("127.0.0.1", self.target_port)
        self._writers.add(target)
        try:
            ways = [
                asyncio.create_task(self._pump("requests", reader, target)),
                asyncio.create_task(self._pump("answers", behind, writer)),
            ]
            _, rest = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in rest:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            if target in self._forgotten:
                _reset(writer)
        finally:
            self._writers.discard(target)
            self._forgotten -= {target, writer}
            target.transport.abort()

    async def _pump(
        self, way: Direction, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while piece := await reader.read(_PIECE_BYTES):
            if self.delay_s:
                await asyncio.sleep(self.delay_s)
            await self._open[way].wait()
            if writer in self._forgotten and way == "requests":
                return
            writer.write(piece)
            await writer.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    # Without it the other side would see a polite end, not an accident.
    found = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):  # its client has left: it is closed already
        found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@contextlib.contextmanager
def proxying(target_port: int) -> Iterator[TcpProxy]:
    """A proxy before a port of this host."""
    proxy = TcpProxy(target_port)
    proxy.start()
    try:
        yield proxy
    finally:
        proxy.stop()
