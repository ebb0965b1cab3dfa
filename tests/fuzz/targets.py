"""What is fuzzed: from bytes to a check of what the readers promise of any bytes whatever.

The first bytes of an input choose what reads it and where it is cut; the rest is what is read. So
an input is the same for a fuzzer, for the corpus and for whoever looks at a failure.
"""

import itertools
import random
import zlib
from collections.abc import Callable
from typing import Any

import brotli
import zstandard

from inf_middleware.domain.errors import InvalidRequest
from inf_middleware.wire.body import Fields, read_object, without_usage
from inf_middleware.wire.dialect import Dialect
from inf_middleware.wire.dialects import KNOWN
from inf_middleware.wire.dialects.unknown import UNKNOWN
from inf_middleware.wire.ending import clean_end
from inf_middleware.wire.intake import Intake, intake_of
from inf_middleware.wire.ndjson import NDJSONReader
from inf_middleware.wire.reader import AnswerReader
from inf_middleware.wire.request import Request
from inf_middleware.wire.sse import SSEReader

DIALECTS: tuple[Dialect, ...] = (
    *KNOWN,
    *(other for one in KNOWN for _, other in one.variants),
    UNKNOWN,
)
CODINGS: tuple[tuple[bytes, Callable[[bytes], bytes]], ...] = (
    (b"gzip", lambda plain: zlib.compress(plain, 1, 31)),
    (b"deflate", zlib.compress),
    (b"deflate", lambda plain: zlib.compress(plain, 1, -15)),  # without its header, as some send it
    (b"br", lambda plain: brotli.compress(plain, quality=0)),
    (b"zstd", zstandard.ZstdCompressor(level=1).compress),
)

# Small enough that inputs of a fuzzer reach them.
_BOUND_BYTES = 64


def cut(data: bytes, seed: int) -> list[bytes]:
    """Cut bytes at places that a seed chooses: 0 into single bytes, else into some pieces."""
    if not seed:
        return [data[n : n + 1] for n in range(len(data))]
    draw = random.Random(seed)
    edges = sorted(draw.randint(0, len(data)) for _ in range(draw.randint(1, 8)))
    return [data[a:b] for a, b in itertools.pairwise([0, *edges, len(data)])]


def by_event(data: bytes, end: bytes) -> list[bytes]:
    """Cut bytes behind each end of an event, as most servers send them."""
    *whole, rest = data.split(end)
    return [*(piece + end for piece in whole), rest]


def _taken(data: bytes) -> tuple[int, int, bytes]:
    head = data[:2].ljust(2, b"\0")
    return head[0], head[1], data[2:]


def request_heads(data: bytes) -> None:
    """Any body is read or refused in words, and what is added to it changes nothing else."""
    which, _, body = _taken(data)
    dialect = DIALECTS[which % len(DIALECTS)]
    dialect.features_asked(body)
    dialect.truncates(body)
    dialect.input_of(body)
    try:
        dialect, request = dialect.read(body)
        Fields(body)
    except InvalidRequest as error:
        if len(str(error)) < 20:
            raise AssertionError("the refusal says too little") from error
        return
    assert min(request.choices, request.prompts, request.best_of, request.candidates) >= 1
    assert request.output_cap is None or request.output_cap > 0
    if request.may_ask and dialect.asks_usage:
        asking = dialect.asking_for_usage(body)
        # As JSON of its own, since one that is no number (NaN) is not equal to itself.
        was, now = read_object(body), read_object(asking)
        assert list({**was, "stream_options": None}) == list({**now, "stream_options": None})
        assert (now["stream_options"] or {})["include_usage"] is True
        for name in was.keys() - {"stream_options"}:
            assert repr(was[name]) == repr(now[name]), name
        again = dialect.read(asking)[1]
        assert again.wants_usage, asking


def _read(cutter: SSEReader | NDJSONReader, pieces: list[bytes]) -> list[Any]:
    fed = 0
    out: list[Any] = []
    size = 0
    for piece in pieces:
        fed += len(piece)
        data, event = cutter.data_of(piece), None
        if data is None and isinstance(cutter, SSEReader):
            event, data = cutter.named_of(piece) or (None, None)
        if data is not None:
            out.append((piece, data, event))
            size += len(piece)
            continue
        for frame in cutter.feed(piece):
            out.append(tuple(frame))
            size += len(frame.raw)
        assert size + len(cutter.pending()) == fed, "a byte is held back or made up"
    last = cutter.close()
    return [*out, *([tuple(last)] if last else [])]


def _frames(make: Callable[[int], SSEReader | NDJSONReader], data: bytes) -> None:
    _, seed, stream = _taken(data)
    whole = _read(make(len(stream) + 1), [stream])
    pieces = cut(stream, seed)
    parts = _read(make(len(stream) + 1), pieces)
    assert b"".join(raw for raw, _, _ in parts) == stream
    # What holds nothing (a LF that comes after its CR) may be a frame of its own or part of one.
    assert [one[1:] for one in parts if one[1]] == [one[1:] for one in whole if one[1]]
    assert b"".join(raw for raw, _, _ in _read(make(_BOUND_BYTES), pieces)) == stream


def sse(data: bytes) -> None:
    """Any cut of a stream gives the same events, and all its bytes."""
    _frames(SSEReader, data)


def ndjson(data: bytes) -> None:
    """Any cut of lines gives the same lines, and all their bytes."""
    _frames(NDJSONReader, data)


def facts(reader: AnswerReader) -> dict[str, Any]:
    """What a bill is made of."""
    texts = reader.texts()
    return {
        "usage": reader.usage,
        "tells": (reader.tells_input, reader.tells_output, reader.usage_covers),
        "final": reader.usage_final,
        "texts": texts,
        "characters": reader.text_characters,
        "failed": (reader.failed, reader.deferred),
        "names": (reader.model, reader.response_id),
        "output": (reader.has_output, reader.output_so_far, reader.text_overflow_bytes),
        "unread": reader.unread_bytes,
        "unfinished": reader.unfinished,
        "parts": reader.outline.parts if reader.outline else None,
    }


def _take(intake: Intake, pieces: list[bytes]) -> bytes:
    out = b""
    for piece in pieces:
        alike = intake.alike
        taken = alike is not None and (alike.takes(piece) or alike.takes_anew(piece))
        if taken or intake.read_one(piece) is not None:
            out += piece
            continue
        for frame in intake.feed(piece):
            intake.read(frame)
            out += frame.raw
            without_usage(frame.data or b"")
    for frame in intake.close():
        intake.read(frame)
        out += frame.raw
    return out


def _answered(dialect: Dialect, request: Request, media: bytes, data: bytes, seed: int) -> None:
    told = []
    end = b"\n" if b"ndjson" in media else b"\n\n"
    for pieces in ([data], cut(data, seed), by_event(data, end)):
        reader = dialect.answer(request)
        intake = intake_of(reader, media, b"")
        assert intake is not None
        out = _take(intake, pieces)
        if intake.is_stream:
            assert out == data
        first = (reader.usage, reader.usage_covers, reader.has_output, reader.model)
        told.append(facts(reader))
        assert first == (reader.usage, reader.usage_covers, reader.has_output, reader.model)
        usage = reader.usage
        if usage is not None:
            parts = (usage.cached_input_tokens, usage.cache_write_tokens, usage.reasoning_tokens)
            assert min(usage.input_tokens, usage.output_tokens, *parts) >= 0
        cut_end = clean_end(dialect, request, reader, call_id="c", created=1, usage=usage)
        assert isinstance(cut_end, bytes)
    assert told[0] == told[1] == told[2]


def _request(seed: int) -> Request:
    return Request(stream=True, choices=1 + seed % 3, prompts=1 + (seed >> 2) % 2)


def streams(data: bytes) -> None:
    """Any cut of a streamed answer gives the same facts, in every dialect."""
    which, seed, stream = _taken(data)
    dialect = DIALECTS[which % len(DIALECTS)]
    media = b"application/x-ndjson" if dialect.errors == "ollama" else b"text/event-stream"
    _answered(dialect, _request(which >> 5), media, stream, seed)


def answers(data: bytes) -> None:
    """Any cut of a JSON answer gives the same facts, in every dialect."""
    which, seed, body = _taken(data)
    _answered(
        DIALECTS[which % len(DIALECTS)], _request(which >> 5), b"application/json", body, seed
    )


def encodings(data: bytes) -> None:
    """Any cut of compressed bytes gives what was compressed; what is none of it does no harm."""
    which, seed, plain = _taken(data)
    coding, compress = CODINGS[which % len(CODINGS)]
    request = Request(stream=True)
    dialect = DIALECTS[0]
    if which >= 128:  # bytes that only say that they are compressed
        reader = dialect.answer(request)
        intake = intake_of(reader, b"text/event-stream", coding)
        assert intake is not None
        _take(intake, cut(plain, seed))
        facts(reader)
        return
    packed = compress(plain)
    told = []
    for pieces, encoded in (([plain], b""), ([packed], coding), (cut(packed, seed), coding)):
        reader = dialect.answer(request)
        intake = intake_of(reader, b"text/event-stream", encoded)
        assert intake is not None
        assert _take(intake, pieces) == plain, (coding, "unreadable")
        told.append(facts(reader))
    assert told[0] == told[1] == told[2]


TARGETS: dict[str, Callable[[bytes], None]] = {
    one.__name__: one for one in (request_heads, sse, ndjson, streams, answers, encodings)
}
