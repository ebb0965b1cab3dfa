"""Server-sent events, by the standard, in any cut."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inf_middleware.wire.sse import Frame, SSEReader


def read(chunks: list[bytes]) -> tuple[list[tuple[bytes | None, bytes | None]], bytes]:
    """Feed chunks; return what was read as (data, event), and all raws joined."""
    reader = SSEReader()
    frames: list[Frame] = []
    for chunk in chunks:
        frames += reader.feed(chunk)
    last = reader.close()
    if last is not None:
        frames.append(last)
    seen = [(frame.data, frame.event) for frame in frames if frame.data is not None]
    return seen, b"".join(frame.raw for frame in frames)


CASES = {
    "one line": (b"data: hello\n\n", [b"hello"]),
    "no space": (b"data:hello\n\n", [b"hello"]),
    "two spaces": (b"data:  hello\n\n", [b" hello"]),
    "several data lines": (b"data: a\ndata\ndata: b\n\n", [b"a\n\nb"]),
    "CRLF": (b"data: a\r\ndata: b\r\n\r\ndata: c\r\n\r\n", [b"a\nb", b"c"]),
    "CR": (b"data: a\rdata: b\r\rdata: c\r\r", [b"a\nb", b"c"]),
    "mixed line ends": (b"data: a\r\n\ndata: b\n\r\ndata: c\r\r\n", [b"a", b"b", b"c"]),
    "comments": (b": ping\n\ndata: a\n: in between\n\n", [b"a"]),
    "BOM": (b"\xef\xbb\xbfdata: a\n\n", [b"a"]),
    "a BOM only at the start": (b"data: a\n\n\xef\xbb\xbfdata: b\n\n", [b"a"]),
    "other fields": (b"id: 1\nretry: 5\nfoo: x\ndata: a\n\n", [b"a"]),
    "unfinished": (b"data: a\n\ndata: b", [b"a", b"b"]),
    "blank lines": (b"\n\n\n\ndata: a\n\n\n\n", [b"a"]),
    "colon in the data": (b"data: a: b\n\n", [b"a: b"]),
    "line separators that are none": (
        "data: a\u0085\u2028\u2029b\x0b\x0c\n\n".encode(),
        ["a\u0085\u2028\u2029b\x0b\x0c".encode()],
    ),
    "empty": (b"", []),
}


@pytest.mark.parametrize(("stream", "data"), CASES.values(), ids=CASES.keys())
def test_events_are_read_by_the_standard_whole_and_byte_by_byte(
    stream: bytes, data: list[bytes]
) -> None:
    for chunks in ([stream], [stream[n : n + 1] for n in range(len(stream))]):
        seen, raw = read(chunks)
        assert [found for found, _ in seen] == data
        assert raw == stream


def test_the_event_field_is_told() -> None:
    stream = b"event: message_stop\ndata: {}\n\ndata: x\n\n"
    assert read([stream])[0] == [(b"{}", b"message_stop"), (b"x", None)]


PIECE = st.sampled_from(
    [b"\n", b"\r", b"\r\n", b"data: ", b"data:", b":", b"event: x", b"a", "é".encode(), b" "]
)
STREAM = st.lists(PIECE, max_size=30).map(b"".join)


@given(STREAM, st.lists(st.integers(0, 80), max_size=10))
def test_any_cut_of_the_same_bytes_gives_the_same_events_and_the_same_bytes(
    stream: bytes, cuts: list[int]
) -> None:
    edges = sorted({0, len(stream), *(min(cut, len(stream)) for cut in cuts)})
    chunks = [stream[a:b] for a, b in itertools.pairwise(edges)]
    whole = read([stream])
    assert read(chunks) == (whole[0], stream)
    assert whole[1] == stream


@given(st.lists(st.binary(max_size=50), max_size=10))
def test_no_byte_is_lost_at_any_moment(chunks: list[bytes]) -> None:
    reader = SSEReader(event_bytes_max=40)
    fed = out = b""
    for chunk in chunks:
        fed += chunk
        out += b"".join(frame.raw for frame in reader.feed(chunk))
        assert out + reader.pending() == fed
        assert len(reader.pending()) <= 40


def test_events_of_a_stream_on_cr_are_not_held_back() -> None:
    reader = SSEReader()
    assert [frame.data for frame in reader.feed(b"data: a\r\r")] == [b"a"]
    assert [frame.data for frame in reader.feed(b"\ndata: b\n\n")] == [b"b"]


def test_an_event_over_the_bound_ends_the_reading_and_not_the_stream() -> None:
    reader = SSEReader(event_bytes_max=1_000)
    frames = reader.feed(b"data: a\n\n")
    frames += reader.feed(b"data: " + b"x" * 2_000)
    frames += reader.feed(b"y\n\ndata: b\n\n")
    assert reader.overflowed
    assert [frame.data for frame in frames] == [b"a", None, None]
    assert reader.pending() == b""


def test_a_large_event_in_small_pieces_is_never_searched_twice() -> None:
    """Goal: linear work. Method: count the bytes that the search for an event's end is given."""
    from inf_middleware.wire import sse

    searched = 0
    pattern = sse._BLANK_LINE

    class Counting:
        def search(self, data: bytes, start: int = 0) -> object:
            nonlocal searched
            searched += len(data) - start
            return pattern.search(data, start)

    stream = b"data: " + b"x" * 1_600_000 + b"\n\n"
    reader = SSEReader()
    sse._BLANK_LINE = Counting()  # type: ignore[assignment]
    try:
        frames = [
            frame
            for at in range(0, len(stream), 1024)
            for frame in reader.feed(stream[at : at + 1024])
        ]
    finally:
        sse._BLANK_LINE = pattern
    assert [len(frame.data or b"") for frame in frames] == [1_600_000]
    assert searched < 1.1 * len(stream)


BOM = b"\xef\xbb\xbf"
NAMED = b"event: a\ndata: b\n\n"


def test_a_named_event_that_comes_alone_and_whole_is_read_at_once() -> None:
    reader = SSEReader()
    for _ in range(2):
        assert reader.named_of(NAMED) == (b"a", b"b")
    assert [frame[1:] for frame in reader.feed(NAMED)] == [(b"b", b"a")]


@pytest.mark.parametrize("event", [NAMED, b"data: b\n\n"])
def test_a_byte_order_mark_is_taken_off_before_the_first_event_alone(event: bytes) -> None:
    reader, later = SSEReader(), SSEReader()
    assert reader.data_of(BOM + event) is None
    assert reader.named_of(BOM + event) is None
    assert [frame.data for frame in reader.feed(BOM + event)] == [b"b"]
    assert later.data_of(event) or later.named_of(event)
    assert later.feed(BOM + b"data: b\n\n")[0].data is None


@pytest.mark.parametrize("before", [b"data: x\n", b"data: x\r\r"])
def test_what_belongs_to_an_event_before_it_is_not(before: bytes) -> None:
    reader = SSEReader()
    reader.feed(b": hello\n\n" + before)
    assert reader.named_of(NAMED) is None


@pytest.mark.parametrize(
    "chunk",
    [
        *(b"", b"event: ", b"event: a\n\n", b"event: a\ndata: b", b"event: a\ndata: b\n"),
        *(b"event: a\ndata: b\n\n\n", b"event: a\n\ndata: b\n\n", b"event:a\ndata: b\n\n"),
        *(b"event: a\r\ndata: b\n\n", b"event: a\ndata: b\rdata: c\n\n", b"data: b\n\n"),
        *(b"event: a\ndata: b\ndata: c\n\n", b"event: a\nid: 1\n\n", b"event: a\ndata: b\n\nd"),
    ],
)
def test_other_chunks_are_fed(chunk: bytes) -> None:
    reader = SSEReader()
    reader.feed(b": hello\n\n")
    assert reader.named_of(chunk) is None
