"""What the host tells of a path: the kind of its file system, and whether a file has it still."""

import os
from pathlib import Path

# Shared memory of SQLite's WAL does not cross hosts: sqlite.org/wal.html, "Use of WAL Without
# Shared-Memory". The names are those of Linux' mount table.
_NETWORK = frozenset(
    {
        "afs",
        "beegfs",
        "ceph",
        "cifs",
        "fuse.glusterfs",
        "fuse.s3fs",
        "fuse.sshfs",
        "lustre",
        "nfs",
        "nfs4",
        "smb3",
        "smbfs",
    }
)

_MOUNTS = Path("/proc/self/mounts")


def network_filesystem(path: Path, mounts: Path = _MOUNTS) -> str | None:
    """Return the type of the network file system that `path` is on; None for none, or unknown."""
    try:
        table = mounts.read_text("utf-8", "replace")
    except OSError:  # a system without that table
        return None
    here = path.resolve()
    nearest, kind = -1, ""
    for line in table.splitlines():
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        # Later mounts hide earlier ones at one place; blanks are written as octal escapes.
        place = Path(fields[1].replace("\\040", " "))
        if len(place.parts) >= nearest and here.is_relative_to(place):
            nearest, kind = len(place.parts), fields[2]
    return kind if kind in _NETWORK else None


def is_at(path: Path, file: int) -> bool:
    """Tell whether an open file is the one that has a path: it may have been deleted since."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file))
    except FileNotFoundError:
        return False
