"""A Redis server in the simulation, and the storage of `limits` that reaches it.

The server runs the library's own scripts, by Lua 5.1, on the time of the simulation. Between it and
each worker is a network that delays, loses and resets. Values are never changed in place, so that a
copy of the keys is a replica of that moment.
"""

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lupa.lua51
from redis.exceptions import ConnectionError as LostConnection
from redis.exceptions import NoScriptError

from tests.simulate.machine import Machine

# There and back in a data centre.
NETWORK_US = (100, 3_000)


class Server:
    """One server of all workers; `down`, `slow_us`, `lose` and `reset` are its faults.

    A reply that is `lose`d was given by a server that has done its work; a `reset` connection may
    or may not have carried the command.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._lua = lupa.lua51.LuaRuntime(encoding=None, unpack_returned_tuples=False)
        text = (Path(__file__).parent / "server.lua").read_bytes()
        self._server = self._lua.execute(text)
        self.known: set[str] = set()
        self.down = False
        self.slow_us = 0
        self.lose = 0
        self.reset = 0
        self.failed_over = 0  # how often it has lost its last writes
        self.watch: Callable[[Any, Any, Any], None] = lambda *_: None
        self._replica = self._server[b"save"]()

    def run(self, text: str, sha: str, keys: Sequence[Any], arguments: Sequence[Any]) -> bytes:
        """Run a script now."""
        reply = self.run_at(self._machine.now_us, text, sha, keys, arguments)
        self.watch(keys, arguments, reply)
        return reply

    def run_at(
        self, now_us: int, text: str, sha: str, keys: Sequence[Any], arguments: Sequence[Any]
    ) -> bytes:
        """Run a script at a moment."""
        given = [self._table(keys), self._table(arguments)]
        reply: bytes = self._server[b"run"](sha.encode(), text.encode(), now_us, *given)
        return reply

    def save(self) -> Any:
        """Return what the server knows now."""
        return self._server[b"save"]()

    def restore(self, saved: Any) -> None:
        """Go back to what it knew."""
        self._server[b"restore"](saved)

    def replicate(self) -> None:
        """Bring the replica to the state of this moment."""
        self._replica = self.save()

    def fail_over(self) -> None:
        """Let the replica take over: what was written since it heard last is lost."""
        self.failed_over += 1
        self.known.clear()
        self.restore(self._replica)

    def _table(self, values: Sequence[Any]) -> Any:
        texts = [v if isinstance(v, bytes) else str(v).encode() for v in values]
        return self._lua.table_from(texts)


class Client:
    """What the scripts use of redis-py's asyncio client, over a network with faults."""

    def __init__(self, server: Server, machine: Machine, texts: dict[str, str]) -> None:
        self._server = server
        self._machine = machine
        self._texts = texts  # by their sha: those that were sent whole

    async def evalsha(self, sha: str, count: int, *given: Any) -> Any:
        return await self._send("", sha, given[:count], given[count:])

    async def eval(self, text: str, count: int, *given: Any) -> Any:
        sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        return await self._send(text, sha, given[:count], given[count:])

    async def aclose(self) -> None: ...

    async def _send(self, text: str, sha: str, keys: Any, arguments: Any) -> bytes:
        server, rng = self._server, self._machine.rng
        await asyncio.sleep((rng.randint(*NETWORK_US) + server.slow_us) / 2e6)
        if server.down:
            raise LostConnection("Connection refused")
        reset = server.reset > 0
        if reset:
            server.reset -= 1
            if rng.random() < 0.5:
                raise LostConnection("Connection reset by peer")
        if text:
            self._texts[sha] = text
            server.known.add(sha)
        reply = None
        if sha in server.known:
            reply = server.run(self._texts[sha], sha, keys, arguments)
        if reset:
            raise LostConnection("Connection reset by peer")
        if server.lose > 0:
            server.lose -= 1
            await asyncio.sleep(3_600)  # until its deadline
        await asyncio.sleep((rng.randint(*NETWORK_US) + server.slow_us) / 2e6)
        if reply is None:
            raise NoScriptError("NOSCRIPT No matching script")
        return reply


class Bridge:
    """How `limits` reaches a client."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def get_connection(self) -> Client:
        return self._client


class Storage:
    """What the library uses of an async Redis storage of `limits`."""

    MODE = "SINGLE"

    def __init__(self, server: Server, machine: Machine, texts: dict[str, str]) -> None:
        self.bridge = Bridge(Client(server, machine, texts))
