"""The far ends of sinks, as real as they come, each with what has arrived there."""

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import redis

from inf_middleware import BillingEvent
from inf_middleware.ports import Sink
from inf_middleware.sinks.uris import sink_from_uri
from tests.apps import read_all
from tests.servers import serving
from tests.sinks.redis_server import RedisServer


class FarEnd(Protocol):
    """Where a sink brings events."""

    def sink(self) -> Sink: ...
    def arrived(self) -> list[bytes]: ...
    def go_down(self) -> None: ...
    def come_up(self) -> None: ...


class Function:
    """A user's own async function."""

    def __init__(self) -> None:
        self._arrived: list[bytes] = []
        self._down = False

    def sink(self) -> Sink:
        async def send(events: Sequence[BillingEvent]) -> None:
            if self._down:
                raise OSError("away")
            self._arrived += [event.encode() for event in events]

        return send

    def arrived(self) -> list[bytes]:
        return list(self._arrived)

    def go_down(self) -> None:
        self._down = True

    def come_up(self) -> None:
        self._down = False


class File:
    """A file in a folder that may be away, as a volume that is not mounted."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "events"
        self._folder.mkdir()
        self._away = folder / "away"

    def sink(self) -> Sink:
        return sink_from_uri(f"jsonl:{self._folder}/e.jsonl?bytes_max=40000")

    def arrived(self) -> list[bytes]:
        folder = self._folder if self._folder.exists() else self._away
        aside = sorted(folder.glob("e-*.jsonl"))
        files = [*aside, *folder.glob("e.jsonl")]
        return [line for file in files for line in file.read_bytes().splitlines()]

    def go_down(self) -> None:
        self._folder.rename(self._away)

    def come_up(self) -> None:
        self._away.rename(self._folder)


class Stream:
    """A stream of a redis-server that is killed and started again."""

    def __init__(self, server: RedisServer, name: str) -> None:
        self.server = server
        self.name = name
        self.url = f"redis://127.0.0.1:{server.port}/0"

    def sink(self) -> Sink:
        return sink_from_uri(f"{self.url}?stream={self.name}")

    def arrived(self) -> list[bytes]:
        with redis.Redis.from_url(self.url) as client:
            entries: Any = client.xrange(self.name)
        for _, fields in entries:
            event = json.loads(fields[b"event"])
            assert (event["id"], event["subject"]) == (
                fields[b"id"].decode(),
                fields[b"account"].decode(),
            )
        return [fields[b"event"] for _, fields in entries]

    def go_down(self) -> None:
        self.server.stop()

    def come_up(self) -> None:
        self.server.start()


class HttpServer:
    """A real HTTP server that takes CloudEvents batches, unless it is told to answer otherwise.

    `script` are the next answers (status and headers); `refuses` says by which status a batch with
    an event in it is refused, which is then not taken in any part.
    """

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.connections: set[Any] = set()
        self.script: list[tuple[int, dict[str, str]]] = []
        self.refuses: Callable[[dict[str, Any]], int | None] = lambda _: None
        self.down = False
        self.url = ""
        self.bodies: list[bytes] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        body = await read_all(receive)
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        self.requests.append({"path": scope["path"], "headers": headers, "body": body})
        self.connections.add(tuple(scope["client"]))
        status, more = 204, dict[str, str]()
        events = json.loads(body)
        if self.down:
            status = 503
        elif self.script:
            status, more = self.script.pop(0)
        else:
            status = next(filter(None, map(self.refuses, events)), status)
        if status < 300:
            # By their own bytes: events are separated by what no event begins with.
            self.bodies += split(body)
        answer = b"" if status == 204 else f"status {status}, as told".encode()
        await send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [
                    *((name.encode(), value.encode()) for name, value in more.items()),
                    *([(b"content-length", str(len(answer)).encode())] if answer else []),
                ],
            }
        )
        await send({"type": "http.response.body", "body": answer})

    def sink(self) -> Sink:
        return sink_from_uri(f"{self.url}/api/v1/events")

    def arrived(self) -> list[bytes]:
        return list(self.bodies)

    def go_down(self) -> None:
        self.down = True

    def come_up(self) -> None:
        self.down = False


def split(batch: bytes) -> list[bytes]:
    """Cut a JSON array into the very bytes of its members."""
    text, found, decoder = batch.decode(), [], json.JSONDecoder()
    assert text[0] == "["
    assert text[-1] == "]"
    at = 1
    while at < len(text) - 1:
        _, end = decoder.raw_decode(text, at)
        found.append(text[at:end].encode())
        at = end + 1
    return found


@contextlib.contextmanager
def http_server() -> Iterator[HttpServer]:
    server = HttpServer()
    with serving(server, lifespan="off") as server.url:
        yield server
