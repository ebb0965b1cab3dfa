"""What metering costs per streamed chunk, how long counting stalls the loop, and what is linear.

    python -m benchmarks.metering

Every figure is a ratio of two things measured in turn in this process, but for the stall, which is
in milliseconds. Targets: at most 0.7 of the bare app's own cost per chunk with all three in place;
at most 10 ms of stall; a ratio of about 8 for eight times the input.
"""

import asyncio
import contextlib
import json
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.responses import StreamingResponse
from starlette.routing import Route

from inf_middleware import Account, Gate
from inf_middleware.domain.tiers import Tier
from inf_middleware.tokens.counting import Counter
from inf_middleware.wire.dialects.openai_chat import CHAT
from inf_middleware.wire.ndjson import NDJSONReader
from inf_middleware.wire.request import Request
from inf_middleware.wire.sse import SSEReader

CHUNKS = 1_600
ROUNDS = 15
ASKED = {
    "model": "inf-chat-v1",
    "messages": [{"role": "user", "content": "Hello"}],
    "stream": True,
    "stream_options": {"include_usage": True},
}


def chunk(number: int) -> bytes:
    """Make one chunk of a stream."""
    choice = {
        "index": 0,
        "delta": {"content": f" word{number}"},
        "logprobs": None,
        "finish_reason": None,
    }
    value = {
        "id": "chatcmpl-a70e9cdfa6cbd7bc",
        "object": "chat.completion.chunk",
        "created": 1795468652,
        "model": "inf-chat-v1",
        "choices": [choice],
        "usage": None,
    }
    return b"data: " + json.dumps(value).encode() + b"\n\n"


PIECES = [chunk(number) for number in range(CHUNKS)]


async def _chat(request: Any) -> StreamingResponse:
    chunks = (await request.json())["max_tokens"]

    async def pieces() -> Any:
        for number in range(chunks):
            yield chunk(number)  # made anew each time, as a model server does
        usage = {"prompt_tokens": 9, "completion_tokens": chunks}
        yield b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\n"
        yield b"data: [DONE]\n\n"

    return StreamingResponse(pieces(), media_type="text/event-stream")


def bare() -> Any:
    """Make the app alone."""
    return Starlette(routes=[Route("/v1/chat/completions", _chat, methods=["POST"])])


def metered(folder: Path) -> Gate:
    """Make the app with all three around it."""
    wide = Account("acme", tier=Tier("Wide", 1000, 10**6, 10**9))
    return Gate(bare(), accounts={"sk": wide}, ledger=f"sqlite:///{folder}/ledger.db")


@contextlib.asynccontextmanager
async def _serving(app: Any) -> Any:
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", http="httptools"))
    task = asyncio.ensure_future(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    await task


async def _ask(port: int, first: int) -> float:
    """Return the processor time of this process per chunk: that of a long stream over a short."""
    return (await _read(port, first + CHUNKS) - await _read(port, first)) / CHUNKS


async def _read(port: int, chunks: int) -> float:
    """Read one stream, and return the processor time that this process takes for it."""
    body = json.dumps({**ASKED, "max_tokens": chunks}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer sk\r\n"
        b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%s"
        % (len(body), body)
    )
    started = time.process_time()
    while await reader.read(1 << 20):
        pass
    spent = time.process_time() - started
    writer.close()
    return spent


async def per_chunk() -> None:
    """Compare a stream of the bare app with the same through all three, on uvicorn."""
    with tempfile.TemporaryDirectory() as folder:
        async with _serving(bare()) as plain, _serving(metered(Path(folder))) as ours:
            for first, which in ((400, "2,000"), (6_000, "7,600")):
                await _ask(plain, first)
                await _ask(ours, first)
                pairs = [(await _ask(plain, first), await _ask(ours, first)) for _ in range(ROUNDS)]
                base = statistics.median(one for one, _ in pairs)
                more = statistics.median(two for _, two in pairs) - base
                print(
                    f"per chunk on uvicorn, up to the {which}th: bare {base * 1e6:.1f} us, all"
                    f" three add {more * 1e6:.1f} us: {more / base:.2f} of the bare app's cost"
                    " (target: 0.7)"
                )


async def stall() -> None:
    """Tell the longest pause of an event loop while prompts of 130 KB are counted."""
    counter = Counter("o200k_base")
    await counter.load()
    text = "The quick brown fox jumps over the lazy dog; 账本以纳元计。 " * 2_000
    text = text[: 130_000 - len(text.encode()) + len(text)]
    gaps: list[float] = []
    done = False

    async def beat() -> None:
        last = time.perf_counter()
        while not done:
            await asyncio.sleep(0.001)
            now = time.perf_counter()
            gaps.append(now - last - 0.001)
            last = now

    beating = asyncio.ensure_future(beat())
    await asyncio.gather(*(counter.count([text]) for _ in range(20)))
    done = True
    await beating
    gaps.sort()
    print(
        f"stall while 20 prompts of {len(text.encode()):,} bytes are counted:"
        f" p50 {gaps[len(gaps) // 2] * 1e3:.1f} ms, p99 {gaps[int(len(gaps) * 0.99)] * 1e3:.1f} ms,"
        f" max {gaps[-1] * 1e3:.1f} ms (target: 10)"
    )


def linear() -> None:
    """Compare one long event in small pieces with another of eight times its length."""
    for name, make in (("event", SSEReader), ("line", NDJSONReader)):
        small, large = (_best(lambda n=n, make=make: _feed(make(), n)) for n in (200, 1_600))
        print(
            f"one {name} of 1.6 MB in pieces of 1 KB: {large * 1e3:.1f} ms,"
            f" {large / small:.1f} times one of 0.2 MB"
        )
    # Fresh memory for large objects costs more per byte than the little that is used again.
    small, large = (_best(lambda n=n: _copy(n)) for n in (200, 1_600))
    print(
        f"to join and copy them, nothing else: {large * 1e3:.1f} ms, {large / small:.1f} times"
        " (work per byte is counted in tests/wire/test_linear.py)"
    )


def _feed(reader: Any, pieces: int) -> None:
    piece = b"x" * 1_000
    reader.feed(b"data: ")
    for _ in range(pieces):
        reader.feed(piece)
        assert reader.is_pending
    assert len(reader.feed(b"\n\n")) >= 1


def _copy(pieces: int) -> None:
    kept: list[bytes] = []
    for _ in range(pieces):
        kept.append(b"x" * 1_000)  # noqa: PERF401 - as a reader does
    assert b"".join([*kept, b"\n"]).strip()


def _best(run: Callable[[], None]) -> float:
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return min(times)


def reading() -> None:
    """Tell what one chunk costs in the readers alone, against decoding its JSON alone."""

    def read() -> None:
        sse, reader = SSEReader(), CHAT.answer(Request())
        for piece in PIECES:
            for frame in sse.feed(piece):
                reader.event(frame.data or b"", frame.event)

    def decode() -> None:
        for piece in PIECES:
            json.loads(piece[6:])

    mine, theirs = _best(read) / CHUNKS, _best(decode) / CHUNKS
    print(f"reading a chunk: {mine * 1e6:.2f} us, {mine / theirs:.2f} of one json.loads")


STEPS: list[Callable[[], Awaitable[None] | None]] = [reading, linear, stall, per_chunk]


def main() -> None:
    """Measure everything."""
    for step in STEPS:
        result = step()
        if result is not None:
            asyncio.run(result)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
