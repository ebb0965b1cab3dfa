"""tiktoken's encodings from the ranks that ship with the package: no network, ever.

tiktoken downloads its rank files at first use, without a time-out and under a lock. Here its own
constructors run with the shipped ranks in the place of the download, so that pattern and special
tokens stay tiktoken's.
"""

import lzma
import os
import threading
from collections.abc import Callable
from importlib.resources import files
from types import FunctionType
from typing import Any

import tiktoken
from tiktoken_ext import openai_public

from inf_middleware.domain.errors import ConfigError

ENCODINGS = ("cl100k_base", "o200k_base")

# Found here and not at the first use: `files` imports late, and a fork meanwhile would leave the
# child waiting for the import for ever.
_RANKS = files("inf_middleware.tokens") / "ranks"

_loaded: dict[str, tiktoken.Encoding] = {}
_locks = {name: threading.Lock() for name in ENCODINGS}


def _renew_locks() -> None:
    # A thread that was loading while the process forked does not exist in the child to let go.
    _locks.update((name, threading.Lock()) for name in ENCODINGS)


if hasattr(os, "register_at_fork"):  # absent on Windows, which does not fork
    os.register_at_fork(after_in_child=_renew_locks)


def load_encoding(name: str) -> tiktoken.Encoding:
    """Return a shipped encoding, built at its first use in this process (0.1 to 0.5 s).

    Raises:
        ConfigError: No such encoding is shipped, or this tiktoken builds it in an unknown way.
    """
    if name not in ENCODINGS:
        raise ConfigError(f"there is no encoding {name!r}; shipped are {', '.join(ENCODINGS)}")
    # What is loaded is returned without a lock: an event loop may be asking.
    encoding = _loaded.get(name)
    if encoding is not None:
        return encoding
    with _locks[name]:
        encoding = _loaded.get(name)
        if encoding is None:
            constructor = openai_public.ENCODING_CONSTRUCTORS[name]
            arguments = encoding_arguments(constructor, lambda *_, **__: load_ranks(name))
            encoding = _loaded[name] = tiktoken.Encoding(**arguments)
        return encoding


def is_loaded(name: str) -> bool:
    """Tell whether an encoding is built already."""
    return name in _loaded


def load_ranks(name: str) -> dict[bytes, int]:
    """Read the ranks of a shipped encoding: from token bytes to rank."""
    packed = (_RANKS / f"{name}.xz").read_bytes()
    return {token: rank for rank, token in enumerate(unpack(lzma.decompress(packed)))}


def unpack(data: bytes) -> list[bytes]:
    """Read tokens in the order of their ranks from the compact form (see ranks/README.md)."""
    count = int.from_bytes(data[:4], "big")
    tokens = []
    at = 4 + count
    for length in data[4:at]:
        tokens.append(data[at : at + length])
        at += length
    return tokens


def encoding_arguments(
    constructor: FunctionType, load: Callable[..., dict[bytes, int]]
) -> dict[str, Any]:
    """Run one of tiktoken's constructors of encodings with another loader of ranks.

    Raises:
        ConfigError: It needs more of its module than strings and `load_tiktoken_bpe`.
    """
    # A copy of the function with globals of its own: nothing of tiktoken's is changed, for anybody.
    # They hold strings alone and no other function, so that another kind of download fails at once.
    own: dict[str, Any] = {"load_tiktoken_bpe": load}
    own |= {name: value for name, value in constructor.__globals__.items() if type(value) is str}
    try:
        arguments: dict[str, Any] = FunctionType(constructor.__code__, own)()
    except (NameError, TypeError) as error:
        raise ConfigError(
            f"tiktoken {tiktoken.__version__} builds {constructor.__name__} in a way unknown here;"
            " install tiktoken 0.14, or give a tiktoken.Encoding as the counter"
        ) from error
    return arguments
