"""The disk below SQLite: it may be full, fail, or lose its power in the middle of a write."""

import random
from pathlib import Path
from typing import Any

import apsw

from tests.ledgers.disk import Disk

# The real one; by its name, since ours becomes the default.
_BASE = apsw.vfs_names()[0]


class _File(apsw.VFSFile):
    def __init__(self, power: "Power", name: Any, flags: list[int]) -> None:
        self._power = power
        self._disk = power.disk
        self._name = name.filename() if isinstance(name, apsw.URIFilename) else str(name)
        super().__init__(_BASE, name, flags)

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802 - SQLite's names
        self._power.check(self._disk)
        super().xWrite(data, offset)
        self._disk.write(self._name, offset, bytes(data))

    def xTruncate(self, newsize: int) -> None:  # noqa: N802
        self._power.check(self._disk)
        super().xTruncate(newsize)
        self._disk.truncate(self._name, newsize)

    def xSync(self, flags: int) -> None:  # noqa: N802
        self._power.check(self._disk)
        super().xSync(flags)
        self._disk.sync(self._name)
        self._power.syncs += 1


class Power(apsw.VFS):
    """A disk on which every database is opened.

    `fault` is "" or what fails, "full" or "error"; `writes_left` counts down to the moment in
    which the power goes (None: it stays), and then nothing is written any more.
    """

    def __init__(self) -> None:
        self.disk = Disk()
        self.fault = ""
        self.writes_left: int | None = None
        self.syncs = 0
        super().__init__("power", _BASE, makedefault=True)

    @property
    def is_gone(self) -> bool:
        return self.writes_left == 0

    def check(self, disk: Disk) -> None:
        """Let one operation on the disk happen, or fail.

        Raises:
            apsw.Error: It does not happen.
        """
        if disk is not self.disk:
            raise apsw.IOError("the disk of a machine that is no more")
        if self.writes_left is not None:
            self.writes_left = max(self.writes_left - 1, 0)
        if self.writes_left == 0 or self.fault == "error":
            raise apsw.IOError("disk I/O error")
        if self.fault == "full":
            raise apsw.FullError("database or disk is full")

    def lay_out(self, files: dict[str, bytes], folder: Path) -> None:
        """Start on a disk with these files, by name."""
        self.disk = Disk()
        self.writes_left = None
        for name, data in files.items():
            (folder / name).write_bytes(data)
            self.disk.synced[str(folder / name)] = bytearray(data)

    def cut(self, rng: random.Random, folder: Path) -> None:
        """Cut the power, and lay out in `folder` what is left."""
        files = self.disk.cut(rng)
        self.lay_out({Path(path).name: data for path, data in files.items()}, folder)

    def xOpen(self, name: Any, flags: list[int]) -> _File:  # noqa: N802
        return _File(self, name, flags)

    def xDelete(self, filename: str, syncdir: bool) -> None:  # noqa: N802
        self.check(self.disk)
        super().xDelete(filename, syncdir)
        self.disk.delete(filename)
