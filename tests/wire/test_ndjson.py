"""Lines of JSON: any cut gives the same lines, and every byte comes out again."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from inf_middleware.wire.ndjson import NDJSONReader
from inf_middleware.wire.sse import Frame

BYTES = st.lists(st.sampled_from([b"{}", b"\n", b"\r\n", b" ", b"\xe4\xbd", b"abc"])).map(b"".join)


def frames_of(reader: NDJSONReader, data: bytes, cuts: list[int]) -> list[Frame]:
    edges = sorted({0, len(data), *(min(cut, len(data)) for cut in cuts)})
    frames = [f for a, b in itertools.pairwise(edges) for f in reader.feed(data[a:b])]
    assert reader.is_pending is bool(reader.pending())
    last = reader.close()
    return [*frames, *([last] if last else [])]


@given(BYTES, st.lists(st.integers(0, 100)))
def test_any_cut_gives_the_same_lines_and_loses_no_byte(data: bytes, cuts: list[int]) -> None:
    frames = frames_of(NDJSONReader(), data, cuts)
    assert frames == frames_of(NDJSONReader(), data, [])
    assert b"".join(frame.raw for frame in frames) == data
    assert [frame.data for frame in frames if frame.data] == [
        line.strip() for line in data.split(b"\n") if line.strip()
    ]


@given(BYTES, st.lists(st.integers(0, 100)))
def test_a_line_over_its_bound_ends_the_reading_and_passes_through(
    data: bytes, cuts: list[int]
) -> None:
    reader = NDJSONReader(line_bytes_max=5)
    frames = frames_of(reader, data, cuts)
    assert b"".join(frame.raw for frame in frames) == data
    assert len(reader.pending()) <= 5
