"""Content codings: from compressed bytes in any cut to plain ones.

gzip and deflate by zlib; br and zstd where a package for them is there. What comes out is bounded
by its reader, and of one piece by `PLAIN_BYTES_MAX`.
"""

import importlib
import zlib
from collections.abc import Callable
from typing import Any, Protocol

# Of one piece: an answer is read whole up to 64 MiB, and compresses to a thousandth at most.
PLAIN_BYTES_MAX = 64 * 1024 * 1024


class Decoder(Protocol):
    """Takes the pieces of one body, and returns what they are without their coding.

    Raises:
        ValueError: They are not in that coding.
    """

    def __call__(self, piece: bytes, /) -> bytes:
        """Decode the next piece."""
        ...


def decoder_of(coding: bytes) -> Decoder | None:
    """Return a decoder for a `content-encoding`; None where it is not known here."""
    if coding in (b"gzip", b"x-gzip"):
        return _Zlib(zlib.MAX_WBITS | 16)
    if coding == b"deflate":
        return _Zlib(zlib.MAX_WBITS)
    if coding == b"br":
        return _first_of(_brotli, "brotli", "brotlicffi")
    if coding == b"zstd":
        return _first_of(_zstd, "compression.zstd", "backports.zstd", "zstandard")
    return None


class _Zlib:
    def __init__(self, window_bits: int) -> None:
        self._bits = window_bits
        self._inflate = zlib.decompressobj(window_bits)
        self._started = False

    def __call__(self, piece: bytes) -> bytes:
        plain = []
        while piece:
            plain.append(self._step(piece))
            # A gzip body may have several members, and each ends where the next begins.
            piece = self._inflate.unused_data if self._bits > zlib.MAX_WBITS else b""
            if piece:
                self._inflate = zlib.decompressobj(self._bits)
        return b"".join(plain)

    def _step(self, piece: bytes) -> bytes:
        try:
            plain = self._inflate.decompress(piece, PLAIN_BYTES_MAX)
        except zlib.error as error:
            if self._started or self._bits != zlib.MAX_WBITS:
                raise ValueError(str(error)) from None
            # Some servers send deflate without the header that the standard asks for.
            self._bits = -zlib.MAX_WBITS
            self._inflate = zlib.decompressobj(self._bits)
            return self._step(piece)
        self._started = True
        if self._inflate.unconsumed_tail:
            raise ValueError(f"a piece has more than {PLAIN_BYTES_MAX:,} bytes")
        return plain


def _first_of(make: Callable[[Any], Decoder], *modules: str) -> Decoder | None:
    for name in modules:
        try:
            return make(importlib.import_module(name))
        except ImportError:
            continue
    return None


def _brotli(module: Any) -> Decoder:
    decompressor = module.Decompressor()
    step = getattr(decompressor, "process", None) or decompressor.decompress

    def decode(piece: bytes) -> bytes:
        try:
            return bytes(step(piece))
        except module.error as error:
            raise ValueError(str(error)) from None

    return decode


def _zstd(module: Any) -> Decoder:
    decompressor = module.ZstdDecompressor()
    if hasattr(decompressor, "decompressobj"):  # the package zstandard
        decompressor = decompressor.decompressobj()
    decompress = decompressor.decompress

    def decode(piece: bytes) -> bytes:
        try:
            return bytes(decompress(piece))
        except (module.ZstdError, EOFError) as error:
            raise ValueError(str(error)) from None

    return decode
