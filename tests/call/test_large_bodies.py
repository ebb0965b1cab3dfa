"""What takes long is done beside the event loop, so that others are served meanwhile."""

import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from inf_middleware.call.admission import INLINE_BODY_BYTES_MAX
from inf_middleware.wire.dialect import Dialect, Input
from tests.apps import JsonApp
from tests.call.test_dialect_calls import serve
from tests.kit import House


@dataclass(frozen=True, kw_only=True)
class Watched(Dialect):
    """Notes which threads take the texts out of its bodies."""

    threads: list[str] = field(default_factory=list)

    def input_of(self, body: bytes) -> Input:
        self.threads.append(threading.current_thread().name)
        return super().input_of(body)


@pytest.mark.parametrize(
    ("size", "thread"),
    [(INLINE_BODY_BYTES_MAX // 2, "MainThread"), (INLINE_BODY_BYTES_MAX + 1, "inf-middleware")],
)
def test_a_large_body_is_taken_apart_in_a_thread_once_and_counted_alike(
    size: int, thread: str, tmp_path: Path
) -> None:
    dialect = Watched(name="watched", paths=("/ask",), texts=("question",))
    options: dict[str, Any] = {"dialects": [dialect], "counter": len}
    house = House(JsonApp(b"{}"), tmp_path, **options)
    assert serve(house, {"model": "other", "question": "a" * size}, path="/ask").status == 200
    assert [name.startswith(thread) for name in dialect.threads] == [True]
    assert house.record["input_tokens"] == size
