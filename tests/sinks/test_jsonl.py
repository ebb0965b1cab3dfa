"""The file sink: one line per event, whole and durable."""

import asyncio
import json
from pathlib import Path

import pytest

from inf_middleware import ConfigError
from inf_middleware.sinks.jsonl import JsonlSink
from tests.events import event_of
from tests.kit import lines_of


def test_each_event_is_one_line_of_its_very_bytes(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    sink = JsonlSink.from_uri(f"jsonl:{path}")
    assert not path.exists()
    events = [event_of(number, model="a\nb") for number in range(5)]
    asyncio.run(sink(events[:3]))
    asyncio.run(sink(events[3:]))
    assert path.read_bytes() == b"".join(event.encode() + b"\n" for event in events)
    assert [line["data"]["model"] for line in lines_of(path)] == ["a\nb"] * 5


def test_a_line_torn_by_a_crash_is_ended_before_the_next(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    event = event_of()
    path.write_bytes(event.encode()[:100])
    asyncio.run(JsonlSink(path)([event]))
    torn, whole = path.read_bytes().splitlines()
    assert torn == event.encode()[:100]
    assert json.loads(whole)["id"] == event.id


def test_a_file_that_is_rotated_away_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    sink = JsonlSink(path)
    asyncio.run(sink([event_of(1)]))
    path.rename(tmp_path / "e.jsonl.1")
    asyncio.run(sink([event_of(2)]))
    assert len(lines_of(path)) == len(lines_of(tmp_path / "e.jsonl.1")) == 1


@pytest.mark.parametrize("uri", ["jsonl:", "kafka://x", "events.jsonl"])
def test_an_unknown_sink_is_refused_in_words(uri: str) -> None:
    with pytest.raises(ConfigError, match='known is "jsonl:PATH"'):
        JsonlSink.from_uri(uri)
