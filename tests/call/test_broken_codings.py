"""A compressed answer that breaks in the middle: passed on as it came, and never for nothing."""

import asyncio
import gzip
import json
import zlib
from pathlib import Path
from typing import Any

import brotli
import pytest
import zstandard

from tests.apps import Message, completion, delta, event, read_all, usage_chunk, usage_of
from tests.driver import Answered, post
from tests.kit import CHAT, STREAM, House
from tests.wire.fixtures import EVENTS

WORDS = 400
CAP = 2_000
STREAMED = b"".join(event(delta(f" {number * number}")) for number in range(WORDS))
WHOLE_STREAM = STREAMED + event(usage_chunk(5, WORDS)) + event("[DONE]")
WHOLE_JSON = json.dumps(
    completion(" ".join(f"{number * number}" for number in range(2_000)), usage=usage_of(5, 2_000))
).encode()


def gzip_flushed(plain: bytes) -> bytes:
    """As servers stream it: what was written is flushed, so that it can be read at once."""
    packer = zlib.compressobj(wbits=31)
    pieces = [
        packer.compress(plain[at : at + 500]) + packer.flush(zlib.Z_SYNC_FLUSH)
        for at in range(0, len(plain), 500)
    ]
    return b"".join(pieces) + packer.flush()


def brotli_flushed(plain: bytes) -> bytes:
    packer = brotli.Compressor(quality=4)
    pieces = [
        packer.process(plain[at : at + 500]) + packer.flush() for at in range(0, len(plain), 500)
    ]
    return b"".join(pieces) + packer.finish()


def zstd_flushed(plain: bytes) -> bytes:
    packer = zstandard.ZstdCompressor().compressobj()
    pieces = [
        packer.compress(plain[at : at + 500]) + packer.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
        for at in range(0, len(plain), 500)
    ]
    return b"".join(pieces) + packer.flush()


CODINGS: dict[str, tuple[str, Any]] = {
    "gzip": ("gzip", gzip_flushed),
    "gzip, not flushed": ("gzip", gzip.compress),
    "deflate": ("deflate", zlib.compress),
    "br": ("br", brotli_flushed),
    "zstd": ("zstd", zstd_flushed),
}


def cut_short(packed: bytes) -> bytes:
    return packed[: len(packed) // 2]


def overwritten(packed: bytes) -> bytes:
    middle = len(packed) // 2
    return packed[:middle] + b"\xff" * 64 + packed[middle + 64 :]


def plain_from_the_middle_on(packed: bytes) -> bytes:
    return packed[: len(packed) // 2] + b"data: 502 Bad Gateway\r\n\r\n" * 4


BREAKS = {
    "cut": cut_short,
    "overwritten": overwritten,
    "goes on in another coding": plain_from_the_middle_on,
}


class Breaks:
    """Sends what there is of an answer, and then ends: properly, or by an error of its own."""

    def __init__(self, body: bytes, media: str, coding: str, *, raises: bool) -> None:
        self.pieces = [body[at : at + 97] for at in range(0, len(body), 97)]
        self.headers = [
            (b"content-type", media.encode()),
            (b"content-encoding", coding.encode()),
        ]
        self.raises = raises

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await read_all(receive)
        await send({"type": "http.response.start", "status": 200, "headers": self.headers})
        for piece in self.pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        if self.raises:
            raise ConnectionResetError("the model server closed")
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def serve(house: House, body: Any, *, raises: bool) -> Answered:
    kept: list[Message] = []

    async def keep(message: Message) -> None:
        kept.append(message)

    async def go() -> Answered:
        try:
            if not raises:
                return await post(house.app, body, key="sk-five", on_message=keep)
            with pytest.raises(ConnectionResetError, match="the model server closed"):
                await post(house.app, body, key="sk-five", on_message=keep)
            return Answered(kept)
        finally:
            assert house.in_progress("umbrella") == 0
            await house.close()

    return asyncio.run(go())


def check(house: House, answered: Answered, sent: bytes) -> None:
    assert answered.status == 200
    assert answered.body == sent
    record = house.record
    assert record["basis"] in {"counted", "estimated"}
    assert 0 < record["output_tokens"] <= CAP
    assert record["input_tokens"] > 0
    assert record["amount_nano"] == (record["input_tokens"] + record["output_tokens"]) * 10_000


@pytest.mark.parametrize("raises", [False, True], ids=["ends", "fails"])
@pytest.mark.parametrize("broken", BREAKS)
@pytest.mark.parametrize("coding", CODINGS)
def test_a_compressed_stream_that_breaks_goes_out_as_it_came_and_is_billed_by_what_was_read(
    coding: str, broken: str, raises: bool, tmp_path: Path
) -> None:
    name, pack = CODINGS[coding]
    sent = BREAKS[broken](pack(WHOLE_STREAM))
    house = House(Breaks(sent, EVENTS, name, raises=raises), tmp_path)
    asked = {**STREAM, "max_tokens": CAP, "stream_options": {"include_usage": True}}
    answered = serve(house, asked, raises=raises)
    check(house, answered, sent)
    assert answered.headers["content-encoding"] == name
    if broken == "cut" and coding in {"gzip", "br", "zstd"}:
        # Half of the words could be read, which are two tokens each or so.
        assert house.record["basis"] == "counted"
        assert house.record["output_tokens"] > WORDS // 2


@pytest.mark.parametrize("raises", [False, True], ids=["ends", "fails"])
@pytest.mark.parametrize("broken", BREAKS)
@pytest.mark.parametrize("coding", CODINGS)
def test_a_compressed_json_answer_that_breaks_goes_out_as_it_came_and_is_no_present(
    coding: str, broken: str, raises: bool, tmp_path: Path
) -> None:
    name, pack = CODINGS[coding]
    sent = BREAKS[broken](pack(WHOLE_JSON))
    house = House(Breaks(sent, "application/json", name, raises=raises), tmp_path)
    answered = serve(house, {**CHAT, "max_tokens": CAP}, raises=raises)
    check(house, answered, sent)


@pytest.mark.parametrize("broken", BREAKS)
@pytest.mark.parametrize("coding", CODINGS)
def test_where_our_own_event_is_to_be_hidden_the_client_gets_what_could_be_read(
    coding: str, broken: str, tmp_path: Path
) -> None:
    name, pack = CODINGS[coding]
    sent = BREAKS[broken](pack(WHOLE_STREAM))
    house = House(Breaks(sent, EVENTS, name, raises=False), tmp_path)
    answered = serve(house, {**STREAM, "max_tokens": CAP}, raises=False)
    assert answered.status == 200
    shown = len(answered.body)
    if "content-encoding" not in answered.headers and broken == "cut":
        assert STREAMED.startswith(answered.body[: min(shown, len(STREAMED))])
    record = house.record
    assert record["basis"] in {"counted", "estimated"}
    assert 0 < record["output_tokens"] <= CAP
    assert record["amount_nano"] == (record["input_tokens"] + record["output_tokens"]) * 10_000
