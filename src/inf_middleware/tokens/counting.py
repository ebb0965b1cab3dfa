"""Counting texts off the event loop, whatever they hold.

Up to 4 KiB is counted in place; more goes to a small pool of threads (tiktoken lets go of the GIL
meanwhile). Loading an encoding always does.
"""

import asyncio
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import tiktoken

from inf_middleware.domain.errors import ConfigError
from inf_middleware.tokens.encodings import ENCODINGS, is_loaded, load_encoding

# Counting 4 KiB takes about 0.12 ms; the hop to a thread and back 0.03 to 0.06 ms.
INLINE_CHARACTERS_MAX = 4096

# 0.3 to 1 s of counting; what is larger is estimated. A request's body is bounded below it.
TEXT_CHARACTERS_MAX = 16 * 1024 * 1024

# tiktoken keeps a copy of its pattern per thread: few and long-lived is best.
_THREADS = 2

# Longest token of o200k_base and cl100k_base, in bytes.
_TOKEN_BYTES_MAX = 128

# English and code take about 4 to 5 bytes a token, Chinese about 3 to 4 (o200k_base).
_BYTES_PER_TOKEN = 4

# tiktoken's pattern engine gives up on a run of a million blanks; shorter runs are safe.
_RUN_CHARACTERS_MAX = 100_000
_LONG_RUN = re.compile(rf"\s{{{_RUN_CHARACTERS_MAX}}}")

_pool: tuple[int, ThreadPoolExecutor] | None = None


class Count(NamedTuple):
    """A number of tokens; `exact` is False where it is an estimate."""

    tokens: int
    exact: bool


class Counter:
    """Counts tokens of texts by an encoding or a function of the user's.

    `counter`: the name of a shipped encoding, a `tiktoken.Encoding`, or any function from text to
    count. Nothing is loaded before the first use.

    Raises:
        ConfigError: It is none of these.
    """

    def __init__(self, counter: str | tiktoken.Encoding | Callable[[str], int]) -> None:
        if isinstance(counter, str) and counter not in ENCODINGS:
            raise ConfigError(
                f"counter is {counter!r}; shipped encodings are {', '.join(ENCODINGS)};"
                " or give a tiktoken.Encoding or a function (text) -> int"
            )
        if not isinstance(counter, str | tiktoken.Encoding) and not callable(counter):
            raise ConfigError(
                f"counter is {counter!r}; give an encoding's name, a tiktoken.Encoding or a"
                " function (text) -> int"
            )
        self._counter = counter

    async def load(self) -> None:
        """Load the encoding, so that the first request need not wait for it."""
        if self._needs_loading():
            await _in_thread(self.count_now, [])

    async def count(self, texts: Sequence[str]) -> Count:
        """Count texts, each for itself, without holding up the event loop."""
        if not texts:
            return Count(0, True)
        if sum(map(len, texts)) <= INLINE_CHARACTERS_MAX and not self._needs_loading():
            return self.count_now(texts)
        return await _in_thread(self.count_now, texts)

    def count_now(self, texts: Sequence[str]) -> Count:
        """Count texts in this thread."""
        if isinstance(self._counter, str):
            counter: Callable[[str], int] = _by_encoding(load_encoding(self._counter))
        elif isinstance(self._counter, tiktoken.Encoding):
            counter = _by_encoding(self._counter)
        else:
            counter = self._counter
        if sum(map(len, texts)) > TEXT_CHARACTERS_MAX:
            return Count(sum(map(_estimate, texts)), False)
        tokens, exact = 0, True
        for text in texts:
            counted = _counted(counter, text)
            exact = exact and counted is not None
            tokens += _estimate(text) if counted is None else counted
        return Count(tokens, exact)

    def _needs_loading(self) -> bool:
        return isinstance(self._counter, str) and not is_loaded(self._counter)


def token_bounds(utf8_bytes: int) -> tuple[int, int]:
    """Return the fewest and the most tokens that so many bytes can have in a shipped encoding."""
    return -(-utf8_bytes // _TOKEN_BYTES_MAX), utf8_bytes


def _by_encoding(encoding: tiktoken.Encoding) -> Callable[[str], int]:
    def count(text: str) -> int:
        # `encode_ordinary`: text such as <|endoftext|> is text, and anybody may write it.
        if len(text) <= _RUN_CHARACTERS_MAX:
            return len(encoding.encode_ordinary(text))
        return sum(len(encoding.encode_ordinary(part)) for part in _parts(text))

    return count


def _parts(text: str) -> list[str]:
    """Cut a text inside runs of blanks that are too long for the pattern engine."""
    ends = [match.end() for match in _LONG_RUN.finditer(text)]
    return [text[start:end] for start, end in zip([0, *ends], [*ends, len(text)], strict=True)]


def _counted(counter: Callable[[str], int], text: str) -> int | None:
    try:
        tokens = counter(text)
    except Exception:  # a counter that fails must not fail the call: its text is estimated
        return None
    except BaseException as error:
        # What a panic of tiktoken's Rust code arrives as; all others are not ours to catch.
        if type(error).__name__ != "PanicException":
            raise
        return None
    return tokens if type(tokens) is int and tokens >= 0 else None


def _estimate(text: str) -> int:
    return -(-len(text.encode("utf-8", "replace")) // _BYTES_PER_TOKEN)


async def _in_thread(count: Callable[[Sequence[str]], Count], texts: Sequence[str]) -> Count:
    global _pool  # noqa: PLW0603 - one pool per process
    if _pool is None or _pool[0] != os.getpid():  # threads do not survive a fork
        executor = ThreadPoolExecutor(_THREADS, thread_name_prefix="inf-middleware-count")
        _pool = (os.getpid(), executor)
    return await asyncio.get_running_loop().run_in_executor(_pool[1], count, texts)
