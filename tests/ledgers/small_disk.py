"""A disk that can be filled, emptied and made read-only: a real small one where we may mount."""

import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# An empty ledger with its log takes 0.3 MB.
_SIZE = "3m"

# Less than that: a commit or two.
_LIMIT_BYTES = 100_000


class Mounted:
    """A file system of its own, of 3 MB."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def fill(self) -> None:
        """Use all that is left."""
        ballast = os.open(self.place / "ballast", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            while os.write(ballast, b"\0" * 4096):
                pass
        except OSError:
            pass
        finally:
            os.close(ballast)

    def empty(self) -> None:
        """Give it back."""
        (self.place / "ballast").unlink()

    def read_only(self) -> None:
        """Refuse all writing, as a kernel does that has seen the disk fail."""
        subprocess.run(["mount", "-o", "remount,ro", str(self.place)], check=True)

    def writable(self) -> None:
        """Take writing again."""
        subprocess.run(["mount", "-o", "remount,rw", str(self.place)], check=True)


class Limited:
    """A directory in which no file of this process grows, for want of the right to mount."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def fill(self) -> None:
        """Let no file be written beyond this (Python ignores SIGXFSZ: writing just fails)."""
        resource.setrlimit(resource.RLIMIT_FSIZE, (_LIMIT_BYTES, resource.RLIM_INFINITY))

    def empty(self) -> None:
        """Let files grow again."""
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    def read_only(self) -> None:
        """Take the right to write."""
        for path in (self.place, *self.place.rglob("*")):
            path.chmod(path.stat().st_mode & ~0o222)

    def writable(self) -> None:
        """Give it back."""
        for path in (self.place, *self.place.rglob("*")):
            path.chmod(path.stat().st_mode | 0o200)


@contextmanager
def small_disk(place: Path) -> Iterator[Mounted | Limited]:
    """Make a small disk at `place`; gone afterwards."""
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={_SIZE}", "tmpfs", str(place)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        limited = Limited(place)
        try:
            yield limited
        finally:
            limited.empty()
            limited.writable()
        return
    try:
        yield Mounted(place)
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)
