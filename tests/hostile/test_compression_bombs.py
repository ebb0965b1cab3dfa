"""Small on the wire, huge when unpacked: bounded, passed on as it came, and billed."""

import asyncio
import zlib
from pathlib import Path
from typing import Any

import brotli
import pytest
import zstandard

from inf_middleware.wire.encodings import PLAIN_BYTES_MAX, decoder_of
from tests.apps import read_all
from tests.driver import post
from tests.kit import CHAT, House

MIB = 1024 * 1024


def gzip_of(size: int) -> bytes:
    packer = zlib.compressobj(9, wbits=31)
    block = b" " * MIB
    return b"".join(packer.compress(block) for _ in range(size // MIB)) + packer.flush()


def zstd_of(size: int) -> bytes:
    packer = zstandard.ZstdCompressor().compressobj()
    block = b" " * MIB
    return b"".join(packer.compress(block) for _ in range(size // MIB)) + packer.flush()


def brotli_of(size: int) -> bytes:
    packer = brotli.Compressor(quality=1)
    block = b" " * MIB
    return b"".join(packer.process(block) for _ in range(size // MIB)) + packer.finish()


BOMBS = {
    "gzip": (b"gzip", gzip_of(3 * PLAIN_BYTES_MAX)),
    "many members of gzip": (b"gzip", gzip_of(PLAIN_BYTES_MAX // 2) * 6),
    "br": (b"br", brotli_of(3 * PLAIN_BYTES_MAX)),
    "zstd": (b"zstd", zstd_of(3 * PLAIN_BYTES_MAX)),
    "many frames of zstd": (b"zstd", zstd_of(PLAIN_BYTES_MAX // 2) * 6),
}


class Packed:
    """Answers with bytes in a coding."""

    def __init__(self, coding: bytes, body: bytes, content_type: bytes) -> None:
        self.headers = [(b"content-type", content_type), (b"content-encoding", coding)]
        self.body = body

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await read_all(receive)
        await send({"type": "http.response.start", "status": 200, "headers": self.headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


@pytest.mark.parametrize("kind", [kind for kind in BOMBS if kind != "many frames of zstd"])
def test_no_piece_is_unpacked_beyond_its_bound(kind: str) -> None:
    coding, bomb = BOMBS[kind]
    decode = decoder_of(coding)
    assert decode is not None
    with pytest.raises(ValueError, match="more than 67,108,864 bytes"):
        decode(bomb)


@pytest.mark.parametrize("coding", [b"gzip", b"br", b"zstd"])
def test_what_is_within_the_bound_is_unpacked_whole(coding: bytes) -> None:
    pack = {b"gzip": gzip_of, b"br": brotli_of, b"zstd": zstd_of}[coding]
    decode = decoder_of(coding)
    assert decode is not None
    packed = pack(16 * MIB)
    assert len(decode(packed)) == 16 * MIB
    again = decoder_of(coding)
    assert again is not None
    cut = len(packed) // 2
    assert len(again(packed[:cut])) + len(again(packed[cut:])) == 16 * MIB


@pytest.mark.parametrize("content_type", [b"application/json", b"text/event-stream"])
@pytest.mark.parametrize("kind", BOMBS)
def test_a_bomb_from_the_model_server_goes_out_as_it_came_and_is_one_bill(
    kind: str, content_type: bytes, tmp_path: Path
) -> None:
    coding, bomb = BOMBS[kind]
    house = House(Packed(coding, bomb, content_type), tmp_path)

    async def go() -> bytes:
        try:
            return (await post(house.app, CHAT, key="sk-five")).body
        finally:
            await house.close()

    assert asyncio.run(go()) == bomb
    assert house.record["outcome"] in {"complete", "upstream_error"}
    assert house.record["basis"] == "estimated"
