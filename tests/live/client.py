"""A client that costs little: HTTP/1.1 over kept connections, so that a flood is of requests."""

import asyncio
import contextlib
import json
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def retry_after_s(self) -> float:
        """How long the refusal says to wait."""
        return int(self.headers["retry-after-ms"]) / 1000

    @property
    def code(self) -> str:
        """The code of the refusal."""
        return json.loads(self.body)["error"]["code"]


class Client:
    """Sends requests to any port of this host, each over an idle connection or a new one."""

    def __init__(self) -> None:
        self._idle: dict[int, list[Connection]] = defaultdict(list)

    async def post(
        self, port: int, key: str, asked: dict[str, Any], *, idempotency_key: str | None = None
    ) -> Answer:
        """Send one request and read its answer whole.

        Raises:
            OSError, asyncio.IncompleteReadError: The server went away.
        """
        body = json.dumps(asked).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\n"
            f"authorization: Bearer {key}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\n"
        )
        if idempotency_key is not None:
            head += f"idempotency-key: {idempotency_key}\r\n"
        idle = self._idle[port]
        reader, writer = idle.pop() if idle else await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(f"{head}\r\n".encode() + body)
            answer = await _read_answer(reader)
        except BaseException:
            writer.transport.abort()
            raise
        idle.append((reader, writer))
        return answer

    async def aclose(self) -> None:
        for connections in self._idle.values():
            for _, writer in connections:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()


async def _read_answer(reader: asyncio.StreamReader) -> Answer:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
    if "content-length" in headers:
        body = await reader.readexactly(int(headers["content-length"]))
    else:
        body = b""
        while size := int(await reader.readuntil(b"\r\n"), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readexactly(2)
    return Answer(int(head[0].split()[1]), headers, body)
