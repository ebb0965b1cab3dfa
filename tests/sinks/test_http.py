"""The HTTP sink against a real server: what is whose fault, what is held, what is never told."""

import asyncio
import importlib
import json
import logging
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cloudevents.core.bindings.http import HTTPMessage, from_http_event
from cloudevents.core.formats.json import JSONFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from inf_middleware import BillingEvent, ConfigError
from inf_middleware.ports import Rejected, TryLater
from inf_middleware.sinks import http as subject
from inf_middleware.sinks.http import BODY_BYTES_MAX, CONTENT_TYPE, HttpSink
from tests.events import event_of
from tests.sinks.far_ends import HttpServer, http_server
from tests.sinks.kit import DRAIN_S, EVENTS, IDS, Slept, dead_letters, relaying


@pytest.fixture(scope="module")
def shared() -> Iterator[HttpServer]:
    """One server for all examples of a property."""
    with http_server() as server:
        yield server


def post(sink: HttpSink, *batches: Sequence[BillingEvent]) -> None:
    async def go() -> None:
        try:
            for batch in batches:
                await sink(batch)
        finally:
            await sink.aclose()

    asyncio.run(go())


def refused(server: HttpServer, refuses: dict[str, int]) -> None:
    server.refuses = lambda event: refuses.get(event["id"])


def arrived(server: HttpServer) -> list[str]:
    return [json.loads(body)["id"] for body in server.arrived()]


def test_without_its_client_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httpx", None)
    monkeypatch.delitem(sys.modules, "inf_middleware.sinks.http")
    with pytest.raises(ImportError, match=r"pip install 'inf-middleware\[http\]'"):
        importlib.import_module("inf_middleware.sinks.http")


def test_a_batch_is_what_openmeter_and_the_cloudevents_package_take(http: HttpServer) -> None:
    post(HttpSink(f"{http.url}/api/v1/events"), EVENTS[:3])
    (request,) = http.requests
    assert request["headers"]["content-type"] == CONTENT_TYPE
    events = json.loads(request["body"])
    assert [event["id"] for event in events] == IDS[:3]
    for event in events:
        headers = {"content-type": "application/cloudevents+json"}
        message = HTTPMessage(headers=headers, body=json.dumps(event).encode())
        assert from_http_event(message, JSONFormat()).get_id() == event["id"]


def test_batches_go_over_one_kept_connection(http: HttpServer) -> None:
    post(HttpSink(http.url), EVENTS[:1], EVENTS[1:2], EVENTS[2:3])
    assert len(http.requests) == 3
    assert len(http.connections) == 1


@pytest.mark.parametrize("status", [400, 409, 413, 422])
def test_one_of_a_hundred_at_fault_is_isolated_and_the_others_arrive_in_order(
    http: HttpServer, status: int, tmp_path: Path
) -> None:
    refused(http, {IDS[37]: status})

    async def go() -> None:
        sinks = {"meter": HttpSink(http.url)}
        async with relaying(tmp_path / "l.db", sinks) as (ledger, relay):
            await asyncio.gather(*(ledger.settle(event) for event in EVENTS[:100]))
            await relay.drain(DRAIN_S)

    asyncio.run(go())
    assert arrived(http) == IDS[:37] + IDS[38:100]
    reason = f"HTTP {status}: status {status}, as told"
    assert dead_letters(tmp_path / "l.db") == [("meter", IDS[37], reason)]
    assert len(http.requests) <= 2 + 2 * 7  # two requests for each halving


@settings(max_examples=40, deadline=None)
@given(bad=st.sets(st.integers(0, 19)), size=st.integers(1, 20))
def test_splitting_refuses_just_those_at_fault(
    shared: HttpServer, bad: set[int], size: int
) -> None:
    server = shared
    server.bodies.clear()
    server.requests.clear()
    refused(server, {IDS[number]: 422 for number in bad})
    expected = {IDS[number] for number in bad if number < size}
    try:
        post(HttpSink(server.url), EVENTS[:size])
        told: set[str] = set()
    except Rejected as rejected:
        told = set(rejected.reasons)
    assert told == expected
    assert arrived(server) == [event_id for event_id in IDS[:size] if event_id not in expected]


HELD = [301, 401, 402, 403, 404, 405, 408, 410, 415, 429, 500, 502, 503, 504]


@pytest.mark.parametrize("status", HELD)
def test_what_is_not_the_fault_of_the_batch_is_held(http: HttpServer, status: int) -> None:
    http.script = [(status, {"location": "http://127.0.0.1:1/"})]
    with pytest.raises(TryLater) as caught:
        post(HttpSink(http.url), EVENTS[:2])
    assert len(http.requests) == 1
    assert (caught.value.taken, caught.value.rejected) == (frozenset(), {})
    # After these the far end may have it.
    assert caught.value.not_taken == (status not in {408, 500, 502, 503, 504})


def test_what_a_split_has_brought_before_a_failure_counts(http: HttpServer) -> None:
    http.script = [(422, {}), (204, {}), (503, {"retry-after": "7"})]
    with pytest.raises(TryLater) as caught:
        post(HttpSink(http.url), EVENTS[:4])
    assert caught.value.taken == frozenset(IDS[:2])
    assert caught.value.after_s == 7
    assert arrived(http) == IDS[:2]


@pytest.mark.parametrize(
    ("told", "after_s"),
    [
        ("30", 30.0),
        (" 30 ", 30.0),
        ("Tue, 24 Nov 2026 00:01:00 GMT", 60.0),
        ("Mon, 23 Nov 2026 23:59:00 GMT", -60.0),
        ("9" * 400, 999_999_999.0),
        ("soon", None),
        ("-5", None),
        ("Tue, 99 Nov 2026 00:01:00 GMT", None),
        ("1 Jan 99999999999999999999 00:00:00", None),
        ("Tue, 24 Nov 2026 00:01:00 +99999999999999999999", None),
        ("", None),
    ],
)
def test_retry_after_is_read_as_http_writes_it(
    http: HttpServer, told: str, after_s: float | None
) -> None:
    http.script = [(429, {"retry-after": told})]
    now = datetime(2026, 11, 24, tzinfo=UTC)
    with pytest.raises(TryLater) as caught:
        post(HttpSink(http.url, now=lambda: now), EVENTS[:1])
    assert caught.value.after_s == after_s


def test_a_key_that_was_wrong_for_an_hour_costs_no_event(http: HttpServer, tmp_path: Path) -> None:
    """Longer than the far end knows ids: after a 401 nothing is in doubt."""
    http.script = [(401, {})] * 70 + [(429, {"retry-after": "600"})]
    sink = HttpSink(http.url, dedupe_window_s=600.0)
    slept = Slept()

    async def go() -> None:
        async with relaying(tmp_path / "l.db", {"meter": sink}, slept=slept) as (ledger, relay):
            await asyncio.gather(*(ledger.settle(event) for event in EVENTS[:5]))
            await relay.drain(DRAIN_S)

    asyncio.run(go())
    assert arrived(http) == IDS[:5]
    assert dead_letters(tmp_path / "l.db") == []
    assert 600 <= max(slept.seconds) <= 660


def test_a_far_end_may_say_that_it_has_an_event_already(http: HttpServer) -> None:
    refused(http, {IDS[1]: 409})
    post(HttpSink(http.url, duplicate_statuses={409}), [EVENTS[1]])
    with pytest.raises(Rejected):
        post(HttpSink(http.url), [EVENTS[1]])


def has_already(server: HttpServer) -> None:
    """Whoever sends what is there is told so, and nothing of the batch is taken."""
    server.refuses = lambda event: 409 if event["id"] in arrived(server) else None


def test_what_comes_with_an_event_that_is_there_already_arrives_too(
    http: HttpServer, tmp_path: Path
) -> None:
    """Three were delivered, and the relay died before its cursor moved."""
    has_already(http)
    post(HttpSink(http.url), EVENTS[:3])

    async def go() -> None:
        sinks = {"meter": HttpSink(http.url, duplicate_statuses={409})}
        async with relaying(tmp_path / "l.db", sinks) as (ledger, relay):
            await asyncio.gather(*(ledger.settle(event) for event in EVENTS[:10]))
            await relay.drain(DRAIN_S)

    asyncio.run(go())
    assert arrived(http) == IDS[:10]
    assert dead_letters(tmp_path / "l.db") == []


@settings(max_examples=40, deadline=None)
@given(there=st.sets(st.integers(0, 19)), size=st.integers(1, 20))
def test_splitting_brings_just_what_is_not_there_and_in_order(
    shared: HttpServer, there: set[int], size: int
) -> None:
    server = shared
    server.bodies.clear()
    has_already(server)
    post(HttpSink(server.url), *([EVENTS[number]] for number in sorted(there)))
    server.requests.clear()
    post(HttpSink(server.url, duplicate_statuses={409}), EVENTS[:size])
    assert arrived(server)[len(there) :] == [IDS[n] for n in range(size) if n not in there]
    assert len(server.requests) <= 2 * size - 1


@pytest.mark.parametrize(("statuses", "in_doubt"), [({409}, True), ((), False)])
def test_what_may_be_there_already_is_in_doubt_until_it_is_told_of_alone(
    http: HttpServer, statuses: set[int], in_doubt: bool
) -> None:
    http.script = [(409, {}), (401, {})]
    with pytest.raises(TryLater) as caught:
        post(HttpSink(http.url, duplicate_statuses=statuses), EVENTS[:4])
    assert caught.value.not_taken != in_doubt
    assert caught.value.taken == frozenset()


class Raw:
    """A server that does one thing to each connection."""

    def __init__(self, answer: bytes | None) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._answer = answer
        self._kept: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.recv(65536)
            if self._answer is None:
                self._kept.append(connection)  # and never a word
                continue
            connection.sendall(self._answer)
            connection.close()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        for connection in self._kept:
            connection.close()


@pytest.mark.parametrize(
    "answer",
    [None, b"", b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nhalf", b"not http at all\r\n\r\n"],
    ids=["hangs", "hangs up", "torn answer", "no answer"],
)
def test_a_connection_that_breaks_leaves_the_outcome_open(answer: bytes | None) -> None:
    server = Raw(answer)
    try:
        with pytest.raises(TryLater) as caught:
            post(HttpSink(server.url, timeout_s=0.2), EVENTS[:1])
    finally:
        server.close()
    assert not caught.value.not_taken


def test_where_nobody_listens_nothing_was_taken() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(TryLater) as caught:
        post(HttpSink(f"http://127.0.0.1:{port}"), EVENTS[:1])
    assert caught.value.not_taken


def test_an_endless_answer_is_not_read_to_its_end(http: HttpServer) -> None:
    long = b"HTTP/1.1 422 X\r\ncontent-length: 100000000\r\n\r\n" + b"x" * 200_000
    server = Raw(long)
    try:
        with pytest.raises(Rejected) as caught:
            post(HttpSink(server.url), EVENTS[:1])
    finally:
        server.close()
    assert len(caught.value.reasons[IDS[0]]) < 5_000


def test_a_body_stays_below_what_servers_take_and_one_event_is_never_cut(http: HttpServer) -> None:
    big = [event_of(number, metadata={"x": "y" * 300_000}) for number in range(5)]
    huge = event_of(9, metadata={"x": "y" * (BODY_BYTES_MAX + 1)})
    post(HttpSink(http.url), [*big, huge])
    assert [len(json.loads(request["body"])) for request in http.requests] == [3, 2, 1]
    assert http.arrived() == [event.encode() for event in [*big, huge]]


def test_a_slow_far_end_that_refuses_much_is_got_through_in_several_offers(
    http: HttpServer,
) -> None:
    """The clock of the event loop runs ten seconds ahead with each request."""

    class Loop(asyncio.SelectorEventLoop):
        def time(self) -> float:
            return super().time() + 10 * len(http.requests)

    refused(http, dict.fromkeys(IDS[:8], 422))
    left, rejected, offers = list(EVENTS[:9]), set[str](), 0
    sink = HttpSink(http.url)

    async def go() -> None:
        nonlocal offers
        while left:
            offers += 1
            dealt_with: set[str] = set()
            try:
                await sink(left)
                dealt_with.update(event.id for event in left)
            except Rejected as error:
                rejected.update(error.reasons)
                dealt_with.update(event.id for event in left)
            except TryLater as error:
                rejected.update(error.rejected)
                dealt_with = {*error.taken, *error.rejected}
            while left and left[0].id in dealt_with:
                del left[0]
        await sink.aclose()

    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(go())
    assert rejected == set(IDS[:8])
    assert arrived(http) == IDS[8:9]
    assert 1 < offers < 12
    assert subject.BUDGET_S + subject.TIMEOUT_MAX_S < 60


SECRET = "s3cr3t-t0ken"


def test_secrets_reach_the_far_end_and_no_log_nor_message(
    http: HttpServer, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level(logging.DEBUG)
    host = http.url.removeprefix("http://")
    by_header = HttpSink(http.url, headers={"authorization": f"Bearer {SECRET}"})
    by_url = HttpSink(f"http://user:{SECRET}@{host}/x?api_key=k")
    http.script = [(401, {}), (503, {})]

    async def go() -> None:
        async with relaying(tmp_path / "l.db", {"a": by_header, "b": by_url}) as (ledger, relay):
            await ledger.settle(EVENTS[0])
            await relay.drain(DRAIN_S)

    asyncio.run(go())
    sent = {request["headers"]["authorization"].split()[0] for request in http.requests}
    assert sent == {"Bearer", "Basic"}
    assert len(arrived(http)) == 2
    assert "answered 401" in caplog.text
    shown = caplog.text + repr(by_header) + repr(by_url)
    assert SECRET not in shown


@pytest.mark.parametrize(
    ("url", "options", "words"),
    [
        ("https://", {}, "the URL of a sink must be like"),
        ("http://[::1", {}, "the URL of a sink must be like"),
        ("ftp://x/y", {}, "the URL of a sink must be like"),
        ("http://x:99999/", {}, "the URL of a sink must be like"),
        ("http://x", {"headers": {"x-key": f"{SECRET}\n"}}, "the header 'x-key' of a sink has"),
        ("http://x", {"headers": {"x-key": f"é{SECRET}"}}, "the header 'x-key' of a sink must be"),
        ("http://x", {"headers": {"x-key": 5}}, "the header 'x-key' of a sink must be"),
        ("http://x", {"timeout_s": 0}, "timeout_s is 0"),
        ("http://x", {"timeout_s": 60}, "25 at most"),
    ],
)
def test_an_option_that_cannot_hold_is_refused_in_words_and_without_its_secret(
    url: str, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        HttpSink(url, **options)
    assert words in str(caught.value)
    assert SECRET not in str(caught.value)
