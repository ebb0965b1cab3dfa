"""The file sink: one line per event, whole and durable."""

import asyncio
import errno
import fcntl
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inf_middleware import ConfigError
from inf_middleware.ports import TryLater
from inf_middleware.sinks.jsonl import JsonlSink
from inf_middleware.sinks.offer import offer
from tests.events import event_of
from tests.kit import lines_of
from tests.sinks.kit import relaying, until


def test_each_event_is_one_line_of_its_very_bytes(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    sink = JsonlSink.from_uri(f"jsonl:{path}")
    assert not path.exists()
    events = [event_of(number, model="a\nb") for number in range(5)]
    asyncio.run(sink(events[:3]))
    asyncio.run(sink(events[3:]))
    assert path.read_bytes() == b"".join(event.encode() + b"\n" for event in events)
    assert [line["data"]["model"] for line in lines_of(path)] == ["a\nb"] * 5


def test_a_folder_that_is_gone_is_logged_with_its_path(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "none" / "e.jsonl"

    async def go() -> None:
        async with relaying(tmp_path / "l.db", {"mine": JsonlSink(path)}) as (ledger, _):
            await ledger.settle(event_of(1))
            await until(lambda: "did not take its events" in caplog.text)

    asyncio.run(go())
    assert f"FileNotFoundError \"[Errno 2] No such file or directory: '{path}'\"" in caplog.text


@pytest.mark.parametrize("cut", [1, 100, -1])
def test_what_a_crash_left_of_a_line_is_gone_when_its_event_comes_again(
    tmp_path: Path, cut: int
) -> None:
    path = tmp_path / "e.jsonl"
    events = [event_of(number) for number in range(3)]
    whole = [event.encode() + b"\n" for event in events]
    path.write_bytes(whole[0] + whole[1] + events[2].encode()[:cut])
    asyncio.run(JsonlSink(path)(events[1:]))
    assert path.read_bytes() == b"".join([whole[0], whole[1], whole[1], whole[2]])


def test_what_is_not_ours_is_never_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    event = event_of()
    path.write_bytes(b'{"mine": 1}')
    asyncio.run(JsonlSink(path)([event]))
    assert path.read_bytes() == b'{"mine": 1}\n' + event.encode() + b"\n"


# A limit on the size of files, in a process of its own, is a disk that is full there.
ON_A_FULL_DISK = """
import asyncio, resource, signal, sys
from inf_middleware.ports import TryLater
from inf_middleware.sinks.jsonl import JsonlSink
from inf_middleware.sinks.offer import offer
from tests.events import event_of
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
events, sink = [event_of(n) for n in range(20)], JsonlSink(sys.argv[1])
asyncio.run(sink(events[:5]))
resource.setrlimit(resource.RLIMIT_FSIZE, (8000, resource.RLIM_INFINITY))
try:
    asyncio.run(sink(events[5:]))
except OSError as error:
    print(error.errno)
print(open(sys.argv[1], "rb").read() == b"".join(e.encode() + b"\\n" for e in events[:5]))
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
asyncio.run(sink(events[5:]))
"""


def test_a_full_disk_leaves_no_half_line_and_the_batch_follows_whole(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    command = [sys.executable, "-c", ON_A_FULL_DISK, str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(errno.EFBIG), "True"]
    assert len({line["id"] for line in lines_of(path)}) == len(lines_of(path)) == 20


@given(
    sizes=st.lists(st.integers(1, 8), min_size=1, max_size=12),
    bytes_max=st.integers(1, 6_000),
    files_max=st.none() | st.integers(1, 4),
)
@settings(max_examples=50, deadline=None)
def test_rotation_keeps_the_order_the_bounds_and_every_line_whole(
    sizes: list[int], bytes_max: int, files_max: int | None
) -> None:
    events = [event_of(number) for number in range(sum(sizes))]
    bodies = [event.encode() for event in events]
    left = list(events)
    with tempfile.TemporaryDirectory() as folder:
        now = datetime(2026, 11, 24, tzinfo=UTC)  # it stands still: names differ all the same
        path = Path(folder, "e.jsonl")
        sink = JsonlSink(path, bytes_max=bytes_max, files_max=files_max, now=lambda: now)
        for size in sizes:
            asyncio.run(sink(left[:size]))
            del left[:size]
        aside = sorted(Path(folder).glob("e-*.jsonl"))
        batches = [file.read_bytes() for file in (*aside, path)]
    lines = [line for batch in batches for line in batch.splitlines()]
    assert lines == bodies[len(bodies) - len(lines) :]
    assert all(batch.endswith(b"\n") for batch in batches)
    if files_max is None:
        assert lines == bodies
    else:
        assert len(aside) <= files_max
    for batch in batches:
        assert len(batch) <= max(bytes_max, max(sizes) * (max(map(len, bodies)) + 1))


def test_rotation_touches_no_other_file(tmp_path: Path) -> None:
    others = [
        "e-old.jsonl",
        "e-20261124T000000Z.jsonl",
        "other-20261124T000000.000000Z.jsonl",
        "e.jsonl.1",
    ]
    for name in others:
        (tmp_path / name).write_text("mine")
    sink = JsonlSink.from_uri(f"jsonl:{tmp_path}/e.jsonl?bytes_max=1&files_max=1")
    for number in range(4):
        asyncio.run(sink([event_of(number)]))
    names = {file.name for file in tmp_path.iterdir()}
    assert names > set(others)
    assert len(names) == len(others) + 2
    assert all((tmp_path / name).read_text() == "mine" for name in others)


def test_a_reader_that_follows_newlines_never_sees_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    path.touch()
    seen: list[bytes] = []
    done = threading.Event()

    def read() -> None:
        with path.open("rb") as file:
            rest = b""
            while True:
                last = done.is_set()
                *lines, rest = (rest + file.read()).split(b"\n")
                seen.extend(lines)
                if last:
                    return

    reader = threading.Thread(target=read)
    reader.start()
    events = [event_of(number) for number in range(100)]
    sink = JsonlSink(path)

    async def go() -> None:
        for _ in range(20):
            await sink(events)

    asyncio.run(go())
    done.set()
    reader.join()
    assert seen == [event.encode() for event in events] * 20


def test_a_file_that_is_rotated_away_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    sink = JsonlSink(path)
    asyncio.run(sink([event_of(1)]))
    path.rename(tmp_path / "e.jsonl.1")
    asyncio.run(sink([event_of(2)]))
    assert len(lines_of(path)) == len(lines_of(tmp_path / "e.jsonl.1")) == 1


def test_a_file_that_is_put_aside_while_its_lock_is_waited_for_is_left_alone(
    tmp_path: Path,
) -> None:
    path, aside = tmp_path / "e.jsonl", tmp_path / "e.jsonl.1"
    event = event_of(1)
    with path.open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        writer = threading.Thread(target=asyncio.run, args=[JsonlSink(path)([event])])
        writer.start()
        writer.join(0.3)  # it waits
        path.rename(aside)
    writer.join()
    assert aside.read_bytes() == b""
    assert path.read_bytes() == event.encode() + b"\n"


def test_a_file_that_is_locked_holds_nobody_else_and_is_waited_for_once(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    sink = JsonlSink(path)
    events = [event_of(number) for number in range(2)]

    async def go() -> None:
        # As full as the usual one is after some more.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        with path.open("ab") as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            first = await offer("mine", sink, events[:1], 0.1)
            assert isinstance(first.failure, TimeoutError)
            for _ in range(3):
                verdict = await offer("mine", sink, events[:1], 0.1)
                assert isinstance(verdict.failure, TryLater)
            async with asyncio.timeout(5):
                await asyncio.to_thread(int)
        await sink.aclose()
        assert len(lines_of(path)) == 1
        await sink(events[1:])

    asyncio.run(go())
    assert [line["id"] for line in lines_of(path)] == [event.id for event in events]


@pytest.mark.parametrize(
    "uri",
    ["jsonl:", "events.jsonl", "jsonl:x?bytes=5", "jsonl:x?bytes_max=-1", "jsonl:?bytes_max=1"],
)
def test_a_uri_that_is_none_is_refused_in_words(uri: str) -> None:
    with pytest.raises(ConfigError, match='write "jsonl:PATH"'):
        JsonlSink.from_uri(uri)


@pytest.mark.parametrize(
    ("bounds", "words"),
    [
        ({"bytes_max": 0}, "bytes_max is 0"),
        ({"bytes_max": True}, "bytes_max is True"),
        ({"bytes_max": 1, "files_max": 1.5}, "files_max is 1.5"),
        ({"files_max": 3}, "files_max needs bytes_max"),
    ],
)
def test_a_bound_that_cannot_hold_is_refused_in_words(bounds: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        JsonlSink("e.jsonl", **bounds)
