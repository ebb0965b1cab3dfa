"""The file of a spool loses nothing that was acknowledged, whatever of the disk fails within."""

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from inf_middleware.ledgers import spool_file
from inf_middleware.ledgers.spool_file import SpoolFile, is_orphan, read
from tests.processes import outlived_by_a_child

FIRST, SECOND, THIRD = (b'{"n":%d}\n' % n for n in range(3))


def lines_of(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.glob("*.jsonl"))


def opened(folder: Path) -> list[str]:
    """Return what of a folder is open, with "(deleted)" after what has no name any more."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # that of the listing itself
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
    return sorted(link for link in found if link.startswith(f"{folder}/"))


class Failing:
    """Fails once, and counts how often it did its work."""

    def __init__(self, real: Callable[..., None], number: int) -> None:
        self.real = real
        self.number = number
        self.armed = False
        self.done = 0

    def __call__(self, *args: object) -> None:
        if self.armed:
            self.armed = False
            raise OSError(self.number, os.strerror(self.number))
        self.real(*args)
        self.done += 1


@pytest.fixture
def syncing(monkeypatch: pytest.MonkeyPatch) -> Failing:
    failing = Failing(spool_file._sync_directory, errno.EMFILE)
    monkeypatch.setattr(spool_file, "_sync_directory", failing)
    return failing


@pytest.fixture
def writing(monkeypatch: pytest.MonkeyPatch) -> Failing:
    failing = Failing(spool_file.write, errno.ENOSPC)
    monkeypatch.setattr(spool_file, "write", failing)
    return failing


def test_what_is_kept_after_a_failure_to_sync_a_rewritten_file_is_in_the_file_with_a_name(
    tmp_path: Path, syncing: Failing
) -> None:
    own = SpoolFile(tmp_path, 1_000)
    own.append(FIRST)
    own.append(SECOND)
    assert own.path is not None
    syncing.armed = True
    with pytest.raises(OSError, match="Too many"):
        own.drop(len(FIRST))
    assert opened(tmp_path) == [str(own.path)]
    synced = syncing.done
    own.append(THIRD)
    assert syncing.done == synced + 1  # its name is durable before a line in it is acknowledged
    own.append(FIRST)
    assert syncing.done == synced + 1
    assert lines_of(tmp_path) == SECOND + THIRD + FIRST
    assert own.size == len(SECOND + THIRD + FIRST)
    assert not is_orphan(own.path)
    own.close()


def test_a_file_whose_name_could_not_be_synced_at_first_is_its_process_own_all_the_same(
    tmp_path: Path, syncing: Failing
) -> None:
    own = SpoolFile(tmp_path, 1_000)
    syncing.armed = True
    with pytest.raises(OSError, match="Too many"):
        own.append(FIRST)
    own.append(SECOND)
    assert syncing.done == 1
    assert own.path is not None
    assert read(own.path, 0) == (len(SECOND), [SECOND.strip()])
    own.drop(len(SECOND))
    own.close()
    assert list(tmp_path.iterdir()) == []


def test_an_emptied_file_that_could_not_be_synced_is_known_to_be_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = SpoolFile(tmp_path, 1_000)
    own.append(FIRST)
    failing = Failing(os.fsync, errno.EIO)
    failing.armed = True
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        with pytest.raises(OSError, match="Input/output"):
            own.drop(len(FIRST))
    assert own.size == 0
    own.append(SECOND)
    assert (own.size, lines_of(tmp_path)) == (len(SECOND), SECOND)
    own.close()


def test_a_rewriting_that_finds_the_disk_full_leaves_all_as_it_was(
    tmp_path: Path, writing: Failing
) -> None:
    own = SpoolFile(tmp_path, 1_000)
    own.append(FIRST)
    own.append(SECOND)
    assert own.path is not None
    writing.armed = True
    with pytest.raises(OSError, match="No space"):
        own.drop(len(FIRST))
    assert opened(tmp_path) == [str(own.path)]  # another lock of the same file would wait for ever
    assert [path.name for path in tmp_path.iterdir()] == [own.path.name]
    assert (own.size, lines_of(tmp_path)) == (len(FIRST + SECOND), FIRST + SECOND)
    own.drop(len(FIRST))
    own.append(THIRD)
    assert lines_of(tmp_path) == SECOND + THIRD
    own.close()


def test_a_name_that_cannot_be_given_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = Failing(os.rename, errno.EACCES)
    failing.armed = True
    monkeypatch.setattr(Path, "replace", failing)
    own = SpoolFile(tmp_path, 1_000)
    with pytest.raises(OSError, match="Permission"):
        own.append(FIRST)
    assert (own.path, own.size, opened(tmp_path), list(tmp_path.iterdir())) == (None, 0, [], [])
    monkeypatch.undo()
    own.append(FIRST)
    assert lines_of(tmp_path) == FIRST
    own.close()


def test_a_file_that_another_has_locked_is_told_and_not_waited_for(tmp_path: Path) -> None:
    own = SpoolFile(tmp_path, 1_000)
    own.append(FIRST)
    own.append(SECOND)
    assert own.path is not None
    with own.path.with_suffix(".partial").open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(OSError, match=r"\.partial is locked by another process"):
            own.drop(len(FIRST))
        assert opened(tmp_path) == [str(own.path), other.name]
    own.drop(len(FIRST))
    assert lines_of(tmp_path) == SECOND
    own.close()


@pytest.mark.parametrize("piece_bytes", [1, len(FIRST), 2 * len(FIRST) + 1, 1_000])
def test_a_file_is_read_in_pieces_of_whole_lines(
    piece_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool_file, "PIECE_BYTES", piece_bytes)
    path = tmp_path / "kept"
    path.write_bytes(FIRST + SECOND + THIRD + b"half")
    end, found, pieces = 0, [], 0
    while True:
        end, lines = read(path, end)
        if not lines:
            break
        found += lines
        pieces += 1
    assert found == [line.strip() for line in (FIRST, SECOND, THIRD)]
    assert end == len(FIRST + SECOND + THIRD)
    assert pieces == -(-3 // max(piece_bytes // len(FIRST), 1))
    assert read(tmp_path / "gone", 7) == (7, [])


def test_a_child_made_by_fork_does_not_keep_the_file_of_its_dead_parent(tmp_path: Path) -> None:
    code = """
import os, sys, time
from pathlib import Path
from inf_middleware.ledgers.spool_file import SpoolFile
own = SpoolFile(Path(sys.argv[1]), 1_000)
own.append(b"kept\\n")
if not os.fork():
    print(os.getpid(), flush=True)
    time.sleep(60)
os._exit(0)
"""
    with outlived_by_a_child(code, str(tmp_path)):
        (path,) = tmp_path.glob("*.jsonl")
        assert is_orphan(path)
        assert read(path, 0) == (5, [b"kept"])


def delete_all(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def put_another_there(folder: Path) -> None:
    (path,) = folder.glob("*.jsonl")
    path.rename(folder / "moved")
    path.write_bytes(THIRD)


@pytest.mark.parametrize("happens", [delete_all, shutil.rmtree, put_another_there])
def test_what_is_kept_in_a_file_that_was_deleted_below_its_process_is_written_anew(
    happens: Callable[[Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "spool"
    own = SpoolFile(folder, 1_000)
    own.append(FIRST)
    told = f"{own.path} was deleted while it was in use: it is written anew"
    happens(folder)
    own.append(SECOND)
    assert own.path is not None
    assert (own.size, own.path.read_bytes()) == (len(FIRST + SECOND), FIRST + SECOND)
    assert not is_orphan(own.path)
    happens(folder)
    own.drop(len(FIRST))
    assert own.path.read_bytes() == SECOND
    own.close()
    assert [record.message for record in caplog.records] == [told]
