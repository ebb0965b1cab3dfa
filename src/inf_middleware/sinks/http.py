"""A sink that posts events as a CloudEvents batch, as OpenMeter and others take it."""

import asyncio
import email.utils
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import NamedTuple

try:
    import httpx
except ImportError as error:
    raise ImportError("HttpSink needs httpx: pip install 'inf-middleware[http]'") from error

from inf_middleware.domain.errors import ConfigError
from inf_middleware.domain.events import BillingEvent
from inf_middleware.ports import Rejected, TryLater

# Source: CloudEvents 1.0.2, JSON format, section 4 "JSON Batch Format".
CONTENT_TYPE = "application/cloudevents-batch+json"

# What nginx takes in one request unless it is told otherwise (client_max_body_size).
BODY_BYTES_MAX = 1024 * 1024

# The fault of what was sent; all else heals when a key, a bill or a server does, and is held.
_FAULT_OF_THE_BATCH = frozenset({400, 409, 413, 422})

# The far end has answered before it would have taken anything.
_CERTAINLY_NOT_TAKEN = frozenset({401, 402, 403, 404, 405, 410, 415, 429})

# Enough of an answer to see what is wrong; the connection of a longer one is not kept.
_ANSWER_BYTES_MAX = 4096

CONNECT_TIMEOUT_S = 5.0

# After this no further part is begun: with one more request it stays below the relay's time for an
# offer, so that what is known by then counts.
BUDGET_S = 30.0
TIMEOUT_MAX_S = 25.0


class _Answer(NamedTuple):
    status: int
    text: str
    after_s: float | None


@dataclass(slots=True)
class _Outcome:
    """What has come of a batch so far; of what is `doubtful` some was there before, or is now."""

    taken: set[str] = field(default_factory=set)
    rejected: dict[str, str] = field(default_factory=dict)
    doubtful: set[str] = field(default_factory=set)

    def later(self, why: str, *, not_taken: bool, after_s: float | None = None) -> TryLater:
        told = self.taken | self.rejected.keys()
        return TryLater(
            why,
            taken=self.taken,
            rejected=self.rejected,
            after_s=after_s,
            not_taken=not_taken and self.doubtful <= told,
        )


class HttpSink:
    """Posts batches in the structured batch mode of CloudEvents, over kept connections.

    400, 409, 413 and 422 are the batch's fault: it is split until the one event at fault stands
    alone and is refused for good. `duplicate_statuses` are those by which this far end says that
    it has an event already: one alone is taken, a batch is split, for the others of it may not be
    there. After everything else, network errors included, the same is
    offered again, with `Retry-After` honoured.

    `timeout_s` is for one request. `headers` may hold secrets: they are never shown, and neither
    are user and password of `url`.
    `dedupe_window_s`: for how long the far end knows an id again (None: for ever).

    Raises:
        ConfigError: The URL is none of http or https, or a header or time-out cannot hold.
    """

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 20.0,
        duplicate_statuses: Collection[int] = (),
        dedupe_window_s: float | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        if isinstance(timeout_s, bool) or not 0 < timeout_s <= TIMEOUT_MAX_S:
            raise ConfigError(
                f"timeout_s is {timeout_s!r}; it must be above 0, {TIMEOUT_MAX_S:g} at most"
            )
        self.dedupe_window_s = dedupe_window_s
        self._auth: httpx.BasicAuth | None = None
        self._url = _url(url)
        if self._url.userinfo:
            # Out of the URL, which httpx logs with each request.
            self._auth = httpx.BasicAuth(self._url.username, self._url.password)
            self._url = self._url.copy_with(userinfo=b"")
        self._shown = str(self._url.copy_with(query=None))
        self._headers = {**_headers(headers or {}), "content-type": CONTENT_TYPE}
        self._timeout_s = timeout_s
        self._duplicate_statuses = frozenset(duplicate_statuses)
        self._now = now
        self._part_max: int | None = None
        self._client: httpx.AsyncClient | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def __repr__(self) -> str:
        return f"HttpSink({self._shown!r})"

    async def __call__(self, events: Sequence[BillingEvent]) -> None:
        """Post a batch; in parts where it is too large or one of its events is at fault."""
        outcome = _Outcome()
        # Parts still to be sent, the first one last: in order, so that what is held back when one
        # fails is the end of the batch.
        parts = list(reversed(_parts(events, self._part_max)))
        deadline = asyncio.get_running_loop().time() + BUDGET_S
        while parts:
            part = parts.pop()
            if asyncio.get_running_loop().time() > deadline:
                self._part_max = len(part)
                why = f"{self._shown} is slow to say which of {len(events)} events it does not take"
                raise outcome.later(why, not_taken=True)
            answer = await self._post(part, outcome)
            duplicate = answer.status in self._duplicate_statuses
            if 200 <= answer.status < 300 or (duplicate and len(part) == 1):
                outcome.taken.update(event.id for event in part)
            elif not duplicate and answer.status not in _FAULT_OF_THE_BATCH:
                raise outcome.later(
                    f"{self._shown} answered {answer.status}: {answer.text}",
                    after_s=answer.after_s,
                    not_taken=answer.status in _CERTAINLY_NOT_TAKEN or answer.status < 400,
                )
            elif len(part) == 1:
                outcome.rejected[part[0].id] = f"HTTP {answer.status}: {answer.text}"
            else:
                if duplicate:
                    outcome.doubtful.update(event.id for event in part)
                middle = len(part) // 2
                parts += [part[middle:], part[:middle]]
        self._part_max = None
        if outcome.rejected:
            raise Rejected(outcome.rejected)

    async def aclose(self) -> None:
        """Close the connections."""
        client, self._client = self._client, None
        if client is not None and self._loop is asyncio.get_running_loop():
            await client.aclose()

    async def _post(self, events: Sequence[BillingEvent], outcome: _Outcome) -> _Answer:
        body = b"[" + b",".join(event.encode() for event in events) + b"]"
        try:
            async with (
                asyncio.timeout(self._timeout_s),  # httpx' own are between two bytes
                self._open().stream("POST", self._url, content=body) as response,
            ):
                text = b""
                async for piece in response.aiter_raw():  # as it is sent: it may be compressed
                    text += piece
                    if len(text) > _ANSWER_BYTES_MAX:
                        break
                return _Answer(
                    response.status_code,
                    text[:_ANSWER_BYTES_MAX].decode("utf-8", "replace"),
                    self._retry_after_s(response.headers.get("retry-after")),
                )
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise outcome.later(self._why(error), not_taken=True) from error
        except (httpx.TransportError, TimeoutError) as error:
            raise outcome.later(self._why(error), not_taken=False) from error

    def _why(self, error: Exception) -> str:
        return f"{self._shown}: {type(error).__name__} {error}"

    def _open(self) -> httpx.AsyncClient:
        loop = asyncio.get_running_loop()
        if self._client is None or self._loop is not loop:
            self._loop = loop
            self._client = httpx.AsyncClient(
                auth=self._auth,
                headers=self._headers,
                timeout=httpx.Timeout(self._timeout_s, connect=CONNECT_TIMEOUT_S),
                limits=httpx.Limits(max_connections=1),  # one batch at a time
            )
        return self._client

    def _retry_after_s(self, told: str | None) -> float | None:
        if told is None:
            return None
        told = told.strip()
        if told.isdecimal():
            return float(told[:9])
        try:
            at = email.utils.parsedate_to_datetime(told)
        except (ValueError, OverflowError):  # of numbers that no date has
            return None
        return (at.replace(tzinfo=at.tzinfo or UTC) - self._now()).total_seconds()


def _url(url: str) -> httpx.URL:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        parsed = httpx.URL("")
    is_port = parsed.port is None or 0 < parsed.port < 2**16
    if parsed.scheme not in ("http", "https") or not parsed.host or not is_port:
        raise ConfigError('the URL of a sink must be like "https://openmeter.cloud/api/v1/events"')
    return parsed


def _headers(headers: Mapping[str, str]) -> dict[str, str]:
    for name, value in headers.items():
        # Told apart here, by name only: what refuses them later shows the value.
        if not all(isinstance(text, str) and text.isascii() for text in (name, value)):
            raise ConfigError(f"the header {name!r} of a sink must be ASCII text")
        if not value.isprintable() or not name.isprintable():
            raise ConfigError(f"the header {name!r} of a sink has a line break or the like in it")
    return dict(headers)


def _parts(events: Sequence[BillingEvent], count_max: int | None) -> list[Sequence[BillingEvent]]:
    """Cut a batch where a body would be too large; one event alone is never cut."""
    parts: list[Sequence[BillingEvent]] = []
    start, size = 0, 0
    for number, event in enumerate(events):
        length = len(event.encode()) + 1
        if size and (size + length > BODY_BYTES_MAX or number - start == count_max):
            parts.append(events[start:number])
            start, size = number, 0
        size += length
    return [*parts, events[start:]]
