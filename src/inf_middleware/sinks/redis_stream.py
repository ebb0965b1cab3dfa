"""A sink that appends events to a Redis stream."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import redis.asyncio
import redis.exceptions
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from inf_middleware.domain.errors import ConfigError
from inf_middleware.domain.events import BillingEvent
from inf_middleware.ports import TryLater

TIMEOUT_S = 10.0

# Entries that are read back at a time: about a megabyte.
_RECALLED_MAX = 1_000

# What a server answers that is no primary any more. Its connections stay, while its name may be
# another's by now: only a new one leads there.
_DEMOTED = (redis.exceptions.ReadOnlyError, redis.exceptions.MasterDownError)


class RedisStreamSink:
    """Appends each event as one entry with the fields `id`, `account` and `event` (its JSON).

    A batch is one MULTI: all of it or nothing. `length_max` cuts the stream to about as many
    entries, read or not (None: never). Taken means: in the memory of that server, and no safer
    than its `appendfsync` and its replicas make it. An entry may come twice; `id` tells.

    Raises:
        ConfigError: The URL is none of Redis.
    """

    def __init__(self, url: str, stream: str, *, length_max: int | None = None) -> None:
        try:
            parts = urlsplit(url)
            port = parts.port
            # Read for its mistakes; a connection connects when it is used.
            redis.asyncio.ConnectionPool.from_url(url).make_connection()  # type: ignore[no-untyped-call]
        except (ValueError, TypeError):
            stream = ""
        if not stream:
            raise ConfigError(
                'the URI of a Redis sink must be like "redis://localhost:6379/0?stream=billing"'
            )
        if length_max is not None and (type(length_max) is not int or length_max < 1):
            raise ConfigError(
                f"length_max is {length_max!r}; it must be a whole number of 1 or more"
            )
        self._url = url
        self._shown = f"{parts.hostname or parts.path}:{port or 6379}"
        self._stream = stream
        self._length_max = length_max
        self.forgets = length_max is not None
        self._client: redis.asyncio.Redis | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @classmethod
    def from_uri(cls, uri: str) -> "RedisStreamSink":
        """Make a sink from "redis://HOST:PORT/DB?stream=NAME", with `length_max=` where wanted.

        Raises:
            ConfigError: It is none.
        """
        parts = urlsplit(uri)
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        stream, bound = query.pop("stream", ""), query.pop("length_max", None)
        if bound is not None and not bound.isdecimal():
            raise ConfigError(f"length_max is {bound!r}; it must be a whole number of 1 or more")
        url = urlunsplit(parts._replace(query=urlencode(query)))
        return cls(url, stream, length_max=None if bound is None else int(bound))

    def __repr__(self) -> str:
        return f"RedisStreamSink({self._shown!r}, {self._stream!r})"

    async def __call__(self, events: Sequence[BillingEvent]) -> None:
        """Append a batch in one round trip and one transaction."""
        client = self._open()
        try:
            async with client.pipeline(transaction=True) as pipeline:
                for event in events:
                    fields: dict[Any, Any] = {
                        "id": event.id,
                        "account": event.account,
                        "event": event.encode(),
                    }
                    pipeline.xadd(self._stream, fields, maxlen=self._length_max)
                await pipeline.execute()
        except redis.exceptions.ResponseError as error:
            if isinstance(error, _DEMOTED):
                await client.connection_pool.disconnect()
            # The server said so itself (WRONGTYPE, OOM, NOAUTH, READONLY …): nothing is in it.
            raise TryLater(f"{self._shown}: {error}", not_taken=True) from error

    async def recall(self) -> AsyncIterator[Sequence[bytes]]:
        """Yield the events of the stream's entries, the oldest first."""
        client: Any = self._open()
        start = b"-"
        try:
            while entries := await client.xrange(self._stream, min=start, count=_RECALLED_MAX):
                yield [(fields or {}).get(b"event", b"") for _, fields in entries]
                start = b"(" + entries[-1][0]
        except redis.exceptions.RedisError as error:
            raise OSError(f"{self._shown}: {error}") from error

    async def aclose(self) -> None:
        """Close the connection."""
        client, self._client = self._client, None
        if client is not None and self._loop is asyncio.get_running_loop():
            await client.aclose()

    def _open(self) -> "redis.asyncio.Redis":
        loop = asyncio.get_running_loop()
        if self._client is None or self._loop is not loop:
            self._loop = loop
            self._client = redis.asyncio.Redis.from_url(
                self._url,
                socket_timeout=TIMEOUT_S,
                socket_connect_timeout=TIMEOUT_S,
                retry=Retry(NoBackoff(), 0),  # the relay tries again, and knows when it is in doubt
            )
        return self._client
