"""A sink that appends events to a file, one JSON line each."""

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

from inf_middleware.domain.errors import ConfigError
from inf_middleware.domain.events import BillingEvent

_SCHEME = "jsonl:"


class JsonlSink:
    """Appends each event as one line of CloudEvents JSON, durably before it returns.

    A line torn by a crash is ended before the next is begun; its event follows again, whole.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)

    @classmethod
    def from_uri(cls, uri: str) -> "JsonlSink":
        """Make a sink from "jsonl:PATH".

        Raises:
            ConfigError: It is none.
        """
        path = uri.removeprefix(_SCHEME)
        if path == uri or not path:
            raise ConfigError(f'sink {uri!r} is not known; known is "jsonl:PATH"')
        return cls(path)

    async def __call__(self, events: Sequence[BillingEvent]) -> None:
        """Append a batch with one write and one fsync, off the event loop."""
        await asyncio.to_thread(self._append, events)

    def _append(self, events: Sequence[BillingEvent]) -> None:
        lines = b"".join(event.encode() + b"\n" for event in events)
        # Opened for each batch: the file may be moved away by log rotation at any time.
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        try:
            size = os.fstat(file).st_size
            if size and os.pread(file, 1, size - 1) != b"\n":
                lines = b"\n" + lines
            written = 0
            while written < len(lines):
                written += os.write(file, lines[written:])
            os.fsync(file)
        finally:
            os.close(file)
