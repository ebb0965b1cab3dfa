"""What a far end has, held against what the ledger delivered to it."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import apsw
import msgspec

from inf_middleware.domain.events import BillingEvent
from inf_middleware.ledgers.reconcile import DIFFERENCES_MAX, PAGE, Check, check_of
from inf_middleware.ledgers.steps import Ask, Steps


@dataclass(slots=True)
class Compared:
    """What came of it: `events` of the ledger that the far end has, in the same bytes.

    `repeated` came more than once, as they may; `forgotten` are older than all that it keeps;
    `unreadable` is what it has and is no event.
    """

    events: int = 0
    repeated: int = 0
    forgotten: int = 0
    unreadable: int = 0


@dataclass(slots=True)
class FarEnd:
    """What one far end has; kept in a temporary file, since it may be years of events.

    First all that it has is added, then all that the ledger has is compared with it, in order.
    `forgets`: it keeps the latest only, so what is missing before the first that it has is no loss.
    """

    sink: str
    forgets: bool
    compared: Compared = field(default_factory=Compared)
    _db: apsw.Connection = field(default_factory=lambda: apsw.Connection(""))
    _wrong: list[str] = field(default_factory=list)
    _count: int = 0
    _older: list[str] = field(default_factory=list)
    _older_count: int = 0

    def __post_init__(self) -> None:
        self._db.execute(
            "CREATE TABLE has (id TEXT, digest BLOB, amount TEXT, times INTEGER,"
            " PRIMARY KEY (id, digest)) WITHOUT ROWID"
        )

    def add(self, bodies: Iterable[bytes]) -> None:
        """Take some of what the far end has."""
        rows = []
        for body in bodies:
            try:
                event = BillingEvent.decode(body)
            except (msgspec.MsgspecError, UnicodeDecodeError):
                self.compared.unreadable += 1
                continue
            rows.append((event.id, _digest(body), f"{event.amount_nano} {event.currency}"))
        with self._db:
            self._db.executemany(
                "INSERT INTO has VALUES (?, ?, ?, 1)"
                " ON CONFLICT (id, digest) DO UPDATE SET times = times + 1",
                rows,
            )

    def compare(self, events: Sequence[tuple[str, bytes]]) -> None:
        """Compare the next events that the ledger delivered."""
        with self._db:
            for event_id, body in events:
                has = self._take(event_id)
                if has:
                    self._see(event_id, body, has)
                elif self.forgets and not self.compared.events:
                    self._older_count += 1
                    self._older += [f"{event_id}: is not there"][: self._left(self._older)]
                else:
                    self._find(f"{event_id}: is not there")

    def excuse(self, events: Sequence[tuple[str, bytes]]) -> None:
        """Compare events that it may have or not: refused, or still to be delivered."""
        with self._db:
            for event_id, body in events:
                has = self._take(event_id)
                if has:
                    self._see(event_id, body, has)

    def check(self) -> Check:
        """Return the check that all this makes up, and let go of what was kept for it."""
        if self.compared.events:
            self.compared.forgotten = self._older_count
        else:  # it has nothing at all: that is no bound of its length
            self._wrong = [*self._older, *self._wrong]
            self._count += self._older_count
        left = self._db.execute("SELECT id, amount FROM has ORDER BY id")
        for event_id, amount in left:
            self._find(f"{event_id}: is there, of {amount} nano, and not in the ledger")
        self._db.close()
        name = f"sink {self.sink} has what was delivered to it, in the same bytes"
        return check_of(name, self._wrong, self._count)

    def _take(self, event_id: str) -> list[tuple[bytes, str, int]]:
        return list(
            self._db.execute(
                "DELETE FROM has WHERE id = ? RETURNING digest, amount, times", (event_id,)
            )
        )

    def _see(self, event_id: str, body: bytes, has: list[tuple[bytes, str, int]]) -> None:
        self.compared.events += 1
        self.compared.repeated += sum(times for _, _, times in has) > 1
        digest = _digest(body)
        for other, amount, _ in has:
            if other != digest:
                event = BillingEvent.decode(body)
                self._find(
                    f"{event_id}: differs; it is there of {amount} nano, and of"
                    f" {event.amount_nano} {event.currency} nano in the ledger"
                )

    def _find(self, difference: str) -> None:
        self._count += 1
        self._wrong += [difference][: self._left(self._wrong)]

    def _left(self, kept: list[str]) -> int:
        return max(DIFFERENCES_MAX - len(kept), 0)


def delivered(sink: str, after: int) -> Steps[list[tuple[int, str, bytes, bool]]]:
    """Return a page of events after a place: place, id, bytes, and whether the sink refused it."""
    rows = yield Ask(
        "SELECT outbox.seq, outbox.id, outbox.body, dead_letter.reason FROM outbox"
        " LEFT JOIN dead_letter ON dead_letter.id = outbox.id AND dead_letter.sink = ?"
        f" WHERE outbox.seq > ? ORDER BY outbox.seq LIMIT {PAGE}",
        (sink, after),
    )
    return [
        (seq, event_id, bytes(body), reason is not None) for seq, event_id, body, reason in rows
    ]


def _digest(body: bytes) -> bytes:
    return hashlib.sha256(body).digest()
