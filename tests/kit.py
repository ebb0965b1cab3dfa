"""What tests of the whole share: a stack in any order, on an injected clock, and its records."""

import contextlib
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import apsw

from inf_middleware import Account, BillingEvent, CostLedger, TierLimiter, TokenMeter
from inf_middleware.ledgers.sqlite import SqliteLedger
from inf_middleware.stores.memory import MemoryStore

THREE = (TokenMeter, TierLimiter, CostLedger)
ORDERS = list(itertools.permutations(THREE))
ORDER_IDS = ["-".join(cls.__name__ for cls in order) for order in ORDERS]

CHAT: dict[str, Any] = {
    "model": "inf-chat-v1",
    "messages": [{"role": "user", "content": "Hello, how are you?"}],
}
STREAM = {**CHAT, "stream": True}
ACCOUNTS = {
    "sk-free": Account("free-riders", tier="Free"),
    "sk-one": Account("acme", recharged="500"),
    "sk-five": Account("umbrella", recharged="100000"),
}


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self, now: float = 1_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Opaque:
    """Hides what it wraps from those who look along `.app`."""

    def __init__(self, app: Any) -> None:
        self._hidden = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self._hidden(scope, receive, send)


class Closing:
    """Answers the lifespan for a model app that knows only requests."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return


class House:
    """A model app wrapped by ours, outermost first, with a ledger in a file of its own."""

    def __init__(
        self,
        app: Any,
        tmp_path: Path,
        *,
        order: Sequence[type] = THREE,
        between: Any = None,
        accounts: Any = ACCOUNTS,
        **options: Any,
    ) -> None:
        self.clock = Clock()
        self.store = MemoryStore(clock=self.clock)
        self.path = tmp_path / "ledger.db"
        self.ledger = SqliteLedger(self.path)
        self.events: list[BillingEvent] = []
        own: dict[type, dict[str, Any]] = {
            TokenMeter: {},
            TierLimiter: {"storage": self.store},
            CostLedger: {"ledger": self.ledger, "sinks": {"mine": self._take}},
        }
        for name, value in options.items():
            for cls in (TierLimiter, CostLedger, TokenMeter):
                if cls in order and _takes(cls, name):
                    own[cls][name] = value
                    break
            else:
                raise AssertionError(f"no middleware here takes {name}")
        if accounts is not None:
            own[order[-1]]["accounts"] = accounts
        served = Closing(app)
        self.app: Any = served
        for cls in reversed(order):
            if between is not None and self.app is not served:
                self.app = between(self.app)
            given = own[cls]
            if between is not None and accounts is not None:
                given = {**given, "accounts": accounts}
            self.app = cls(self.app, **given)

    async def _take(self, events: Sequence[BillingEvent]) -> None:
        self.events += events

    async def close(self) -> None:
        """Shut down as a server would: deliver, close."""
        sent = []

        async def receive() -> dict[str, Any]:
            return {"type": "lifespan.shutdown"}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        await lifespan_through(self.app, receive, send)
        assert sent, "the shutdown was not passed on"

    @property
    def records(self) -> list[dict[str, Any]]:
        """The request records, oldest first."""
        return records_of(self.path) if self.path.exists() else []

    @property
    def record(self) -> dict[str, Any]:
        """The only request record."""
        (record,) = self.records
        return record

    def in_progress(self, account: str) -> int:
        """How many slots an account holds."""
        return self.store.in_progress(account)


def _takes(cls: type, name: str) -> bool:
    from inf_middleware import settings

    table = {
        TokenMeter: settings.MeterOptions,
        TierLimiter: settings.LimiterOptions,
        CostLedger: settings.LedgerOptions,
    }[cls]
    return name in table.__annotations__


async def lifespan_through(app: Any, receive: Any, send: Any) -> None:
    """Send a shutdown through ours, as if the model app answered it."""
    scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
    await app(scope, receive, send)


@contextlib.contextmanager
def reading(path: Path, flags: int = apsw.SQLITE_OPEN_READWRITE) -> Iterator[apsw.Connection]:
    """Open a ledger's file beside the ledger itself.

    By apsw, never by the standard library's sqlite3: that is a second SQLite in this process, which
    knows nothing of the first one's locks and drops them as it closes (sqlite.org/howtocorrupt.html
    2.2.1), whereupon somebody cuts the shared memory that the first one has mapped: a bus error.
    """
    with contextlib.closing(apsw.Connection(str(path), flags=flags)) as db:
        db.set_busy_timeout(10_000)
        yield db


def records_of(path: Path) -> list[dict[str, Any]]:
    """The request records of a ledger's file, oldest first; none before it is a ledger."""
    with reading(path, apsw.SQLITE_OPEN_READONLY) as db:
        if not db.execute("SELECT 1 FROM sqlite_schema WHERE name = 'request'").fetchone():
            return []
        names = [column[1] for column in db.execute("PRAGMA table_info(request)")]
        rows = db.execute("SELECT * FROM request ORDER BY seq")
        return [dict(zip(names, row, strict=True)) for row in rows]


def lines_of(path: Path) -> list[dict[str, Any]]:
    """The JSON lines of a file."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]
