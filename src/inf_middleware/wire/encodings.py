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

# What is given at once to a decoder that knows no bound. A block of zstd has 4 bytes at least and
# becomes 128 KiB at most: 8 MiB for 256. A meta-block of brotli becomes 16 MiB, of as few bytes.
_ZSTD_SLICE_BYTES = 256
_BROTLI_SLICE_BYTES = 16

# Source: RFC 1950, section 2.2.
_ZLIB_HEADER_BYTES = 2


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
        self._head: bytes | None = b""  # until it is known whether there is a header

    def __call__(self, piece: bytes) -> bytes:
        plain = []
        size = 0
        while piece:
            plain.append(self._step(piece))
            size += len(plain[-1])
            if size > PLAIN_BYTES_MAX:
                raise _too_much()
            # A gzip body may have several members, and each ends where the next begins.
            piece = self._inflate.unused_data if self._bits > zlib.MAX_WBITS else b""
            if piece:
                self._inflate = zlib.decompressobj(self._bits)
        return b"".join(plain)

    def _step(self, piece: bytes) -> bytes:
        try:
            plain = self._inflate.decompress(piece, PLAIN_BYTES_MAX)
        except zlib.error as error:
            if self._head is None or self._bits != zlib.MAX_WBITS:
                raise ValueError(str(error)) from None
            # Some servers send deflate without the header that the standard asks for.
            self._bits = -zlib.MAX_WBITS
            self._inflate = zlib.decompressobj(self._bits)
            return self._step(self._head + piece)
        if self._head is not None:  # of two bytes: a piece may end between them
            self._head += piece
            if len(self._head) >= _ZLIB_HEADER_BYTES:
                self._head = None
        if self._inflate.unconsumed_tail:
            raise _too_much()
        return plain


def _first_of(make: Callable[[Any], Decoder], *modules: str) -> Decoder | None:
    for name in modules:
        try:
            return make(importlib.import_module(name))
        except ImportError:
            continue
    return None


def _too_much() -> ValueError:
    return ValueError(f"a piece has more than {PLAIN_BYTES_MAX:,} bytes")


def _bounded(step: Callable[[bytes], bytes], slice_bytes: int) -> Decoder:
    """Stop soon after the bound, where a decoder has none: it gets little at a time."""

    def decode(piece: bytes) -> bytes:
        plain = []
        size = 0
        for start in range(0, len(piece), slice_bytes):
            plain.append(bytes(step(piece[start : start + slice_bytes])))
            size += len(plain[-1])
            if size > PLAIN_BYTES_MAX:
                raise _too_much()
        return b"".join(plain)

    return decode


def _brotli(module: Any) -> Decoder:
    decompressor = module.Decompressor()
    process = getattr(decompressor, "process", None) or decompressor.decompress
    has_limit = hasattr(decompressor, "can_accept_more_data")  # since 1.2

    def step(piece: bytes) -> bytes:
        try:
            if not has_limit:
                return bytes(process(piece))
            plain = bytes(process(piece, output_buffer_limit=PLAIN_BYTES_MAX))
        except module.error as error:
            raise ValueError(str(error)) from None
        if not decompressor.can_accept_more_data() and not decompressor.is_finished():
            raise _too_much()
        return plain

    return step if has_limit else _bounded(step, _BROTLI_SLICE_BYTES)


def _zstd(module: Any) -> Decoder:
    decompressor = module.ZstdDecompressor()
    if hasattr(decompressor, "decompressobj"):  # the package zstandard
        decompressor = decompressor.decompressobj()
    decompress = decompressor.decompress

    def step(piece: bytes) -> bytes:
        try:
            return bytes(decompress(piece))
        except (module.ZstdError, EOFError) as error:
            raise ValueError(str(error)) from None

    return _bounded(step, _ZSTD_SLICE_BYTES)
