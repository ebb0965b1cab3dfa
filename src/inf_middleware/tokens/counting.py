"""Counting texts off the event loop, whatever they hold.

Up to 4 KiB is counted in place; more goes to a small pool of threads (tiktoken lets go of the GIL
meanwhile). Loading an encoding always does.
"""

import asyncio
import inspect
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import tiktoken

from inf_middleware.domain.errors import ConfigError
from inf_middleware.tokens.encodings import ENCODINGS, is_loaded, load_encoding
from inf_middleware.tokens.tokenizer_file import TokenizerFile

T = TypeVar("T")

# Counting 4 KiB takes 0.1 ms of English, 0.2 ms of rare characters; the hop to a thread and back
# 0.03 to 0.06 ms.
INLINE_BYTES_MAX = 4096

# Each text costs about 1 us besides its bytes, so many small ones are no small matter.
INLINE_TEXTS_MAX = 256

# What is larger is estimated: ordinary text of this size takes 0.3 to 0.5 s, the worst (random
# letters) 12 s.
TEXT_BYTES_MAX = 8 * 1024 * 1024

# tiktoken keeps a copy of its pattern per thread: few and long-lived is best. One core is left to
# the event loop, which else waits for its turn: on two cores 17 ms at worst, with one thread 8.
THREADS = max(1, min(2, (os.cpu_count() or 1) - 1))

# Longest token of o200k_base and cl100k_base, in bytes.
_TOKEN_BYTES_MAX = 128

# English and code take about 4 to 5 bytes a token, Chinese about 3 to 4 (o200k_base).
_BYTES_PER_TOKEN = 4

# tiktoken's pattern engine gives up on a run of a million blanks; half of that is safe.
_BLANKS_MAX = 500_000

_pool: tuple[int, ThreadPoolExecutor] | None = None


class Count(NamedTuple):
    """A number of tokens; `exact` is False where it is an estimate."""

    tokens: int
    exact: bool


class Counter:
    """Counts tokens of texts by an encoding or a function of the user's.

    `counter`: the name of a shipped encoding, the path of a `tokenizer.json`, a
    `tiktoken.Encoding`, or any function from text to count. Nothing is loaded before the first use.

    Raises:
        ConfigError: It is none of these.
    """

    def __init__(self, counter: str | Path | tiktoken.Encoding | Callable[[str], int]) -> None:
        if isinstance(counter, Path) or (isinstance(counter, str) and counter.endswith(".json")):
            counter = TokenizerFile(counter)
        if isinstance(counter, str) and counter not in ENCODINGS:
            raise ConfigError(
                f"counter is {counter!r}; shipped encodings are {', '.join(ENCODINGS)};"
                " or give the path of a tokenizer.json, a tiktoken.Encoding or a function"
                " (text) -> int"
            )
        if not isinstance(counter, str | tiktoken.Encoding) and not callable(counter):
            raise ConfigError(
                f"counter is {counter!r}; give an encoding's name, the path of a tokenizer.json, a"
                " tiktoken.Encoding or a function (text) -> int"
            )
        if inspect.iscoroutinefunction(counter) or inspect.iscoroutinefunction(
            getattr(counter, "__call__", None)  # noqa: B004 - an object may have an async one
        ):
            raise ConfigError(
                f"counter is {counter!r}, which is async; give a plain function (text) -> int:"
                " it runs in a thread where the text is large"
            )
        self._counter = counter
        # Whether no text has more tokens than bytes; a function of the user's may count anything.
        self.needs_bytes = isinstance(counter, str | tiktoken.Encoding)

    async def load(self) -> None:
        """Load what counts, so that the first request need not wait for it.

        Raises:
            ConfigError: It cannot be loaded.
        """
        if isinstance(self._counter, TokenizerFile):
            await in_thread(self._counter.load)
        elif self._needs_loading():
            await in_thread(self.count_now, [])

    async def count(self, texts: Sequence[str]) -> Count:
        """Count texts, each for itself, without holding up the event loop."""
        if not texts:
            return Count(0, True)
        if _are_small(texts) and not self._needs_loading():
            return self.count_now(texts)
        return await in_thread(self.count_now, texts)

    def count_now(self, texts: Sequence[str]) -> Count:
        """Count texts in this thread."""
        counter = load_encoding(self._counter) if isinstance(self._counter, str) else self._counter
        if utf8_bytes(texts) > TEXT_BYTES_MAX:
            return Count(sum(map(_estimate, texts)), False)
        if isinstance(counter, tiktoken.Encoding):
            function = _ordinary(counter)
            parts: Sequence[str] = [part for text in texts for part in _parts(text)]
        else:
            function, parts = counter, texts
        # Each cut may part a token: one or two tokens more, but no longer exact.
        tokens, exact = 0, len(parts) == len(texts)
        for part in parts:
            counted = _counted(function, part)
            exact = exact and counted is not None
            tokens += _estimate(part) if counted is None else counted
        return Count(tokens, exact)

    def bounds(self, utf8_bytes: int) -> tuple[int, int | None]:
        """Return the fewest and the most tokens (None: no bound is known) of so many bytes.

        A function of the user's may count anything; an encoding of the user's has longer tokens
        perhaps, but none of no bytes.
        """
        if isinstance(self._counter, str):
            return -(-utf8_bytes // _TOKEN_BYTES_MAX), utf8_bytes
        if isinstance(self._counter, tiktoken.Encoding):
            return min(utf8_bytes, 1), utf8_bytes
        return 0, None

    def _needs_loading(self) -> bool:
        if isinstance(self._counter, TokenizerFile):
            return not self._counter.is_loaded
        return isinstance(self._counter, str) and not is_loaded(self._counter)


def _ordinary(encoding: tiktoken.Encoding) -> Callable[[str], int]:
    # `encode_ordinary`: text such as <|endoftext|> is text, and anybody may write it.
    return lambda text: len(encoding.encode_ordinary(text))


def _parts(text: str) -> list[str]:
    """Cut a text inside runs of blanks that are too long for the pattern engine.

    It is cut after each block of blanks, at multiples of the block, so that no part keeps a run of
    two blocks. No regular expression: those hold the GIL, and try a long run from each of its
    characters anew.
    """
    block = _BLANKS_MAX // 2
    if len(text) < block:
        return [text]
    ends = range(block, len(text) + 1, block)
    cuts = [end for end in ends if text[end - block : end].isspace()]
    return [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]


def _counted(function: Callable[[str], int], text: str) -> int | None:
    try:
        tokens = function(text)
    except Exception:  # a counter that fails must not fail the call: its text is estimated
        return None
    except BaseException as error:
        # What a panic of tiktoken's Rust code arrives as; all others are not ours to catch.
        if type(error).__name__ != "PanicException":
            raise
        return None
    return tokens if type(tokens) is int and tokens >= 0 else None


def _estimate(text: str) -> int:
    return -(-_utf8_bytes(text) // _BYTES_PER_TOKEN)


def _are_small(texts: Sequence[str]) -> bool:
    return (
        len(texts) <= INLINE_TEXTS_MAX
        and sum(map(len, texts)) <= INLINE_BYTES_MAX
        and utf8_bytes(texts) <= INLINE_BYTES_MAX
    )


def utf8_bytes(texts: Sequence[str]) -> int:
    """Return how many bytes texts have in UTF-8."""
    return sum(map(_utf8_bytes, texts))


def _utf8_bytes(text: str) -> int:
    # A lone surrogate has no UTF-8; it is counted as U+FFFD, which is as long.
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


async def in_thread(function: Callable[..., T], *arguments: Any) -> T:
    """Run a function in the pool that counts, beside the event loop."""
    global _pool  # noqa: PLW0603 - one pool per process
    if _pool is None or _pool[0] != os.getpid():  # threads do not survive a fork
        executor = ThreadPoolExecutor(THREADS, thread_name_prefix="inf-middleware-count")
        _pool = (os.getpid(), executor)
    return await asyncio.get_running_loop().run_in_executor(_pool[1], function, *arguments)
