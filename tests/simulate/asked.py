"""One request of a simulation: what it is to be, and everything that was seen of it."""

import asyncio
import contextvars
import json
from dataclasses import dataclass, field
from typing import Any

# What the template of a chat adds to the words of one message, and the word that is its role.
INPUT_BESIDE_WORDS = 3 + 3 + 1

# Of a request without a cap.
ASSUMED_OUTPUT = 50

INPUT_NANO, OUTPUT_NANO = 10_000, 20_000

# Where a request can be when something happens to it.
STATES = (
    "identifying",
    "reading",
    "claiming",
    "admitting",
    "waiting",
    "holding",
    "working",
    "streaming",
    "extending",
    "settling",
    "closing",
)

REQUEST: contextvars.ContextVar["Asked | None"] = contextvars.ContextVar("request", default=None)

BY_CALL: "dict[str, Asked]" = {}


def count_words(text: str) -> int:
    """Count tokens as the simulated models do."""
    return len(text.split())


@dataclass
class Asked:
    """A request, the answer that its model will give, and what became of both."""

    number: int
    account: str
    key: str
    words: int
    cap: int | None
    stream: bool
    asks_usage: bool
    tells_usage: bool
    chunks: list[int]
    chunk_us: int
    fails: str  # "", "before", "started", "middle", "status", "endless"
    listens: bool  # the app hears of a client that leaves
    priced: bool
    idempotency_key: str | None
    body_pieces: int
    body_us: int
    reads_slowly_us: int
    server_raises: bool  # `send` raises once the client is gone, as in ASGI 2.4
    offset: int  # how far the reported usage is from what can be counted

    state: str = "identifying"
    worker: Any = None
    task: asyncio.Task[None] | None = None
    call_id: str | None = None
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    left: bool = False
    cancelled: bool = False
    killed: bool = False
    paused: bool = False  # with its process, for longer than others wait for a sign of life
    admitted: bool = False
    served: bool = False  # the app was called
    status: int | None = None  # of the app's answer
    produced: int = 0  # words
    last: int = 0  # of them in the last message
    reported: bool = False
    raised: bool = False
    emitted: list[bytes] = field(default_factory=list)
    answered: int | None = None  # the status that the client saw
    code: str | None = None
    headers: dict[bytes, bytes] = field(default_factory=dict)
    received: bytearray = field(default_factory=bytearray)
    saw_end: bool = False
    unrecorded: bool = False  # it was told that nothing is billed
    settled_with_store: bool = False
    ledger_failed: bool = False
    held: bool = False

    def is_called(self, call_id: str) -> None:
        """Take note of the name that the library gave it."""
        self.call_id = call_id
        BY_CALL[call_id] = self

    @property
    def model(self) -> str:
        return "inf-chat-v1" if self.priced else "nobody-knows"

    @property
    def input_tokens(self) -> int:
        return self.words + INPUT_BESIDE_WORDS

    @property
    def total_words(self) -> int:
        return sum(self.chunks)

    @property
    def usage(self) -> tuple[int, int]:
        """What the model reports."""
        return self.input_tokens + self.offset, self.total_words + self.offset

    @property
    def body(self) -> bytes:
        asked: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": "w " * self.words}],
        }
        if self.cap is not None:
            asked["max_tokens"] = self.cap
        if self.stream:
            asked["stream"] = True
        if self.asks_usage and self.stream:
            asked["stream_options"] = {"include_usage": True}
        return json.dumps(asked).encode()

    def reservation(self, level_max: int) -> int:
        """How many tokens are to be reserved for it."""
        return min(self.input_tokens + (self.cap or ASSUMED_OUTPUT), level_max)

    def bills(self, outcome: str) -> set[tuple[int, int, str]]:
        """Return the usages that a bill may state: input, output, and what that rests on."""
        nothing = (0, 0, "counted")
        asked_only = (self.input_tokens, 0, "estimated")
        if self.status is None:
            # Whether the server saw it leave before the app ended is a matter of moments.
            return {nothing, asked_only} if self.left or self.gone.is_set() else {nothing}
        if self.status >= 400:
            return {nothing}
        if self.reported:
            return {(*self.usage, "reported")}
        if not self.produced:
            begun = (self.input_tokens, 0, "counted") if self.stream else asked_only
            if self.raised:
                # A send that fails since the client has left is no failure of the app, and apps
                # make other exceptions of it.
                return {nothing, begun} if self.left else {nothing}
            return {begun}
        counted = {(self.input_tokens, self.produced, "counted")}
        if outcome == "balance_exhausted":
            counted.add((self.input_tokens, self.produced - self.last, "counted"))
        return counted

    def cost(self, input_tokens: int, output_tokens: int) -> int:
        """What so much costs, in nano."""
        if not self.priced:
            return 0
        return input_tokens * INPUT_NANO + output_tokens * OUTPUT_NANO
