"""Clients that ask without end, each in its own way, and remember what they were promised."""

import asyncio
import contextlib
import json
import random
from collections import Counter
from dataclasses import dataclass
from typing import Any

from tests.soak.app import MESSAGES, PREPAID

# Clients, each with one request at a time: together they ask some twenty times a second, which
# two workers answer beside everything else on two cores.
LANES = 12
_THINK_S = 1.0  # at most, between two requests of a client

# An answer that takes longer has not come: two of the longest faults, and the ledger's time.
_PATIENCE_S = 60.0

# Words of a short answer, and of a stream that extends its hold of 256 tokens a few times.
_WORDS = (1, 40)
_MANY_WORDS = (300, 700)

# One request in so many…
_IS_LONG = 0.04
_LEAVES = 0.10
_HAS_KEY = 0.15  # an Idempotency-Key
_HOWS = {"told": 0.75, "quiet": 0.15, "fails": 0.06, "raises": 0.04}


@dataclass(frozen=True, slots=True)
class Buyer:
    """An account and its key; `prepaid` says at which stack it asks."""

    account: str
    key: str
    prepaid: bool


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """One answer whose end a client has seen: what it must have been billed."""

    account: str
    output_tokens: int
    idempotency_key: str | None


class Load:
    """All clients; what they ask follows from the seed, what is answered from all else."""

    def __init__(self, port: int, buyers: list[Buyer], seed: int) -> None:
        self.acknowledged: dict[str, Acknowledged] = {}
        self.refused: dict[str, str] = {}  # request ids that were told an error of ours
        self.answers: Counter[str] = Counter()
        self.asked = 0
        self.left = 0  # clients that went away in the middle
        # Idempotency-Keys with two answers whose ends were seen, and the request of the first.
        self.twice: dict[str, str] = {}
        self._port = port
        self._buyers = buyers
        self._seed = seed
        self._stopping = False
        self._asked_max: int | None = None

    async def run(self, part: str, *, requests: int | None = None) -> None:
        """Ask until stopped, or so often; each part of a run asks something else."""
        self._asked_max = None if requests is None else self.asked + requests
        async with asyncio.TaskGroup() as group:
            for number in range(LANES):
                group.create_task(self._lane(f"{part} {number}"))

    def stop(self) -> None:
        """Let each client finish what it has, and come no more."""
        self._stopping = True

    @property
    def _is_over(self) -> bool:
        return self._stopping or (self._asked_max is not None and self.asked >= self._asked_max)

    async def _lane(self, name: str) -> None:
        rng = random.Random(f"{self._seed}:{name}")
        count = 0
        while not self._is_over:
            count += 1
            buyer = rng.choice(self._buyers)
            key = f"{name} {count}" if rng.random() < _HAS_KEY else None
            asked = _asking(rng)
            leaves_after = rng.randint(1, 20) if rng.random() < _LEAVES else None
            seen = await self._ask(buyer, asked, key, leaves_after)
            if key is not None and not self._is_over:
                again = await self._ask(buyer, asked, key, None)
                if seen and again:
                    self.twice[key] = seen
            await asyncio.sleep(rng.uniform(0, _THINK_S))

    async def _ask(
        self, buyer: Buyer, asked: dict[str, Any], key: str | None, leaves_after: int | None
    ) -> str | None:
        """Ask once; return the request's id where the answer's end was seen."""
        self.asked += 1
        try:
            async with asyncio.timeout(_PATIENCE_S):
                said, request_id, words = await self._answer(buyer, asked, key, leaves_after)
        except TimeoutError:
            said, request_id, words = "no answer in time", "", 0
        except (OSError, EOFError, asyncio.IncompleteReadError):
            # A worker that was killed; it is there again soon.
            said, request_id, words = "connection lost", "", 0
            await asyncio.sleep(0.2)
        self.answers[said] += 1
        if said == "whole":
            self.acknowledged[request_id] = Acknowledged(buyer.account, words, key)
        elif said == "left":
            self.left += 1
        elif request_id:
            self.refused[request_id] = said
        return request_id if said == "whole" else None

    async def _answer(
        self, buyer: Buyer, asked: dict[str, Any], key: str | None, leaves_after: int | None
    ) -> tuple[str, str, int]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            writer.write(_request(buyer, asked, key))
            if leaves_after is not None and not asked["stream"]:
                await asyncio.sleep(leaves_after * 0.005)
                return "left", "", 0
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
            headers = dict(line.split(": ", 1) for line in head[1:] if line)
            status = int(head[0].split()[1])
            request_id = headers.get("x-request-id", "")
            if status == 200 and asked["stream"]:
                said, words = await _stream(reader, leaves_after)
            else:
                body = await reader.readexactly(int(headers["content-length"]))
                said, words = _whole(status, body)
        finally:
            writer.transport.abort()
        return said, request_id, words


def _asking(rng: random.Random) -> dict[str, Any]:
    is_long = rng.random() < _IS_LONG
    stream = is_long or rng.random() < 0.5
    words = rng.randint(*(_MANY_WORDS if is_long else _WORDS))
    (how,) = rng.choices(list(_HOWS), list(_HOWS.values()))
    return {
        "model": "inf-chat-v1",
        "messages": MESSAGES,
        "max_tokens": words,
        "stream": stream,
        "metadata": {
            "words": str(words),
            "pause_s": f"{rng.choice([0, 0.001, 0.005, 0.02]):.3f}",
            "how": how,
        },
    }


def _request(buyer: Buyer, asked: dict[str, Any], key: str | None) -> bytes:
    body = json.dumps(asked).encode()
    path = f"{PREPAID if buyer.prepaid else ''}/v1/chat/completions"
    head = (
        f"POST {path} HTTP/1.1\r\nhost: soak\r\nconnection: close\r\n"
        f"authorization: Bearer {buyer.key}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n"
    )
    if key is not None:
        head += f"idempotency-key: {key}\r\n"
    return f"{head}\r\n".encode() + body


async def _stream(reader: asyncio.StreamReader, leaves_after: int | None) -> tuple[str, int]:
    words = 0
    tail = b""
    whole = failed = False
    while data := await reader.read(65_536):
        lines, _, tail = (tail + data).rpartition(b"\n")
        words += lines.count(b'" one"')
        failed = failed or b'{"error"' in lines or b'"type": "error"' in lines
        whole = whole or b"data: [DONE]" in lines
        if leaves_after is not None and words >= leaves_after:
            return "left", words
    if failed:
        return "stream failed", words
    return ("whole", words) if whole else ("stream cut", words)


def _whole(status: int, body: bytes) -> tuple[str, int]:
    if status == 200:
        return "whole", json.loads(body)["choices"][0]["message"]["content"].count(" one")
    with contextlib.suppress(KeyError, TypeError, ValueError):  # an error of the model's
        return f"{status} {json.loads(body)['error']['code']}", 0
    return f"{status}", 0
