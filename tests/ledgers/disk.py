"""A disk whose power can be cut: what was synced stays, of the rest any part."""

import contextlib
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw

# The real one; by its name, since ours becomes the default.
_BASE = apsw.vfs_names()[0]

# What one write of SQLite may be torn into.
_SECTOR = 512


class Disk:
    """What is on the disk for certain, and what was written and not yet synced, by file."""

    def __init__(self) -> None:
        self.synced: dict[str, bytearray] = {}
        self.unsynced: dict[str, list[tuple[int, bytes | None]]] = {}

    def write(self, path: str, offset: int, data: bytes) -> None:
        self.unsynced.setdefault(path, []).append((offset, data))

    def truncate(self, path: str, size: int) -> None:
        self.unsynced.setdefault(path, []).append((size, None))

    def sync(self, path: str) -> None:
        file = self.synced.setdefault(path, bytearray())
        for operation in self.unsynced.pop(path, []):
            _apply(file, *operation)

    def delete(self, path: str) -> None:
        self.synced.pop(path, None)
        self.unsynced.pop(path, None)

    def cut(self, rng: random.Random) -> dict[str, bytes]:
        """Return the files as the next start finds them."""
        found = {}
        for path in {*self.synced, *self.unsynced}:
            file = bytearray(self.synced.get(path, b""))
            for offset, data in self.unsynced.get(path, []):
                if data is None:
                    if rng.random() < 0.5:
                        _apply(file, offset, None)
                    continue
                for start in range(0, len(data), _SECTOR):
                    if rng.random() < 0.5:
                        _apply(file, offset + start, data[start : start + _SECTOR])
            found[path] = bytes(file)
        return found


class EverythingKept(random.Random):
    """Chance for a cut that takes nothing: what was written is there, synced or not."""

    def random(self) -> float:
        return 0.0


def _apply(file: bytearray, offset: int, data: bytes | None) -> None:
    if data is None:
        del file[offset:]
        return
    if len(file) < offset:
        file.extend(bytes(offset - len(file)))
    file[offset : offset + len(data)] = data


class _File(apsw.VFSFile):
    def __init__(self, disk: Disk, name: Any, flags: list[int]) -> None:
        self._disk = disk
        self._name = name.filename() if isinstance(name, apsw.URIFilename) else str(name)
        super().__init__(_BASE, name, flags)

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802 - SQLite's names
        super().xWrite(data, offset)
        self._disk.write(self._name, offset, bytes(data))

    def xTruncate(self, newsize: int) -> None:  # noqa: N802
        super().xTruncate(newsize)
        self._disk.truncate(self._name, newsize)

    def xSync(self, flags: int) -> None:  # noqa: N802
        super().xSync(flags)
        self._disk.sync(self._name)


class _VFS(apsw.VFS):
    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        super().__init__("cut", _BASE, makedefault=True)

    def xOpen(self, name: Any, flags: list[int]) -> _File:  # noqa: N802
        return _File(self.disk, name, flags)

    def xDelete(self, filename: str, syncdir: bool) -> None:  # noqa: N802
        super().xDelete(filename, syncdir)
        self.disk.delete(filename)


@contextlib.contextmanager
def power_that_can_be_cut() -> Iterator[_VFS]:
    """Let every database that is opened meanwhile be on such a disk."""
    vfs = _VFS(Disk())
    try:
        yield vfs
    finally:
        vfs.unregister()


def start_again(vfs: _VFS, rng: random.Random, folder: Path) -> None:
    """Lay the files in `folder` out as the cut has left them; whoever has them open is dead."""
    files = vfs.disk.cut(rng)
    vfs.disk = Disk()
    for path, data in files.items():
        target = folder / Path(path).name
        target.write_bytes(data)
        vfs.disk.synced[str(target)] = bytearray(data)
