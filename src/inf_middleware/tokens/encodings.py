"""tiktoken's encodings from the ranks that ship with the package: no network, ever.

tiktoken downloads its rank files at first use, without a time-out and under a lock. Here its own
constructors run with the shipped ranks in the place of the download, so that pattern and special
tokens stay tiktoken's.
"""

import lzma
import threading
from importlib.resources import files
from types import FunctionType
from typing import Any

import tiktoken
from tiktoken_ext import openai_public

from inf_middleware.domain.errors import ConfigError

ENCODINGS = ("cl100k_base", "o200k_base")

_loaded: dict[str, tiktoken.Encoding] = {}
_lock = threading.Lock()


def load_encoding(name: str) -> tiktoken.Encoding:
    """Return a shipped encoding, built at its first use in this process (0.3 to 0.5 s).

    Raises:
        ConfigError: No such encoding is shipped.
    """
    if name not in ENCODINGS:
        raise ConfigError(f"there is no encoding {name!r}; shipped are {', '.join(ENCODINGS)}")
    with _lock:
        encoding = _loaded.get(name)
        if encoding is None:
            encoding = _loaded[name] = tiktoken.Encoding(**_constructed(name))
        return encoding


def is_loaded(name: str) -> bool:
    """Tell whether an encoding is built already."""
    return name in _loaded


def load_ranks(name: str) -> dict[bytes, int]:
    """Read the ranks of a shipped encoding: from token bytes to rank."""
    packed = (files("inf_middleware") / "tokens" / "ranks" / f"{name}.xz").read_bytes()
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


def _constructed(name: str) -> dict[str, Any]:
    constructor = openai_public.ENCODING_CONSTRUCTORS[name]
    # A copy of the function with globals of its own: nothing of tiktoken's is changed, for anybody.
    own = {**constructor.__globals__, "load_tiktoken_bpe": lambda *_, **__: load_ranks(name)}
    arguments: dict[str, Any] = FunctionType(constructor.__code__, own)()
    return arguments
