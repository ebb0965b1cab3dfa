"""Connections to one server that are ours alone: redis-py's own, less what it does around each.

A connection logs in, speaks TLS and is closed by whatever goes wrong while it is used, as those of
a pool are; it is opened anew when it is used next. Commands go out as one piece.
"""

from collections.abc import Sequence
from typing import Any

# By name, since there are two families of clients. Redis before 7 tells of an error within a script
# by the error of the script, in whose text it stands.
_DEMOTED, _IN_SCRIPT = frozenset({"ReadOnlyError", "MasterDownError"}), "-READONLY "


def is_demoted(error: Exception) -> bool:
    """Tell whether a server answered that it is no primary any more.

    Its connections stay, while its name may be another's by now: only a new one leads there.
    """
    return type(error).__name__ in _DEMOTED or _IN_SCRIPT in str(error)


class Connections:
    """Runs commands, each on a connection that nobody else uses meanwhile.

    There are as many as commands were under way at once. What came back last is taken first.
    """

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self._free: list[Any] = []

    @classmethod
    def of(cls, storage: Any) -> "Connections | None":
        """Return those to the server of a storage of `limits`; None where it has several."""
        if type(storage).MODE != "BASIC":
            return None
        return cls(storage.bridge.get_connection().connection_pool)

    async def run(self, command: Sequence[bytes]) -> Any:
        """Send a command, and return the reply.

        Raises what redis-py raises.
        """
        connection = self._free.pop() if self._free else self._pool.make_connection()
        try:
            await connection.send_packed_command(_packed(command))
            return await connection.read_response()
        except Exception as error:
            if is_demoted(error):
                await self._leave(connection)
            raise
        finally:
            self._free.append(connection)

    async def _leave(self, connection: Any) -> None:
        """Close a connection, and those to the same server that nobody uses."""
        others, self._free = self._free, []
        for one in (connection, *others):
            await one.disconnect(nowait=True)

    async def aclose(self) -> None:
        """Close those that nobody uses."""
        while self._free:
            await self._free.pop().disconnect()


def _packed(command: Sequence[bytes]) -> bytes:
    parts = [b"$%d\r\n%b\r\n" % (len(part), part) for part in command]
    return b"*%d\r\n%b" % (len(parts), b"".join(parts))
