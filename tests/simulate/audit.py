"""The ledger, as an auditor finds it: with a connection and arithmetic of its own."""

import contextlib
from pathlib import Path
from typing import Any

import apsw

from tests.simulate.asked import BY_CALL, Asked
from tests.simulate.limits_model import Broken


class Auditor:
    """Reads what is durable, after each change, and judges it."""

    def __init__(self, world: Any) -> None:
        self._world = world
        self._db: apsw.Connection | None = None
        self._seq = 0
        self.rows: dict[str, tuple[Any, ...]] = {}  # usage by request id
        self.movements: dict[str, tuple[str, str, int]] = {}

    def reopen(self) -> None:
        """Begin anew: on another disk, or on what is left of it."""
        if self._db is not None:
            with contextlib.suppress(apsw.Error):  # its disk is no more
                self._db.close()
        self._db = None
        self._seq = 0
        before = self.rows
        self.rows, self.movements = {}, {}
        self.look()
        for request_id, row in self.rows.items():
            if before.get(request_id, row) != row:
                raise Broken(f"the bill of {request_id} was {before[request_id]} and is {row}")

    def look(self) -> None:
        """Read what has come since, and judge each bill."""
        rows = (
            self._connection()
            .execute(
                "SELECT seq, request_id, kind, account, amount_nano, input_tokens, output_tokens,"
                " basis, outcome, idempotency_key, unpriced,"
                " json_extract(metadata, '$.continues')"
                " FROM request WHERE seq > ? ORDER BY seq",
                (self._seq,),
            )
            .fetchall()
        )
        for seq, request_id, kind, account, amount, *more, continues in rows:
            self._seq = seq
            if kind != "usage":
                self.movements[request_id] = (kind, account, amount)
                continue
            self.rows[request_id] = (account, amount, *more)
            if continues is None:
                self._judge(request_id, account, amount, *more)
            else:
                self._judge_continued(continues, account, amount, *more)

    def stored(self, request_id: str) -> bool:
        """Whether a bill is in the ledger."""
        found = self._connection().execute(
            "SELECT 1 FROM request WHERE request_id = ?", (request_id,)
        )
        return found.fetchone() is not None

    def spooled(self, request_id: str) -> bool:
        """Whether a bill is kept on this host until the ledger takes it."""
        needle = request_id.encode()
        folder = Path(f"{self._world.folder / 'l.db'}.spool")
        return any(needle in path.read_bytes() for path in folder.glob("*.jsonl"))

    def acknowledged_is_stored(self) -> None:
        """What was acknowledged is there."""
        missing = [
            one for one in self._world.acks if one not in self.rows and one not in self.movements
        ]
        if missing:
            raise Broken(f"acknowledged, and not stored: {missing}")

    def balance_is_explained(self) -> None:
        """Each balance is what its records come to; each record has its posting and its event."""
        db = self._connection()
        owed: dict[str, int] = {}
        for kind, account, amount in self.movements.values():
            sign = {"recharge": 1, "grant": 1, "withdrawal": -1}.get(kind)
            if sign is None:
                raise Broken(f"nobody made a {kind}")
            owed[account] = owed.get(account, 0) + sign * amount
        for account, amount, *_ in self.rows.values():
            owed[account] = owed.get(account, 0) - amount
        for account, balance, held in db.execute(
            "SELECT account, balance_nano, held_nano FROM balance"
        ):
            if balance != owed.pop(account, 0):
                raise Broken(f"{account}: a balance of {balance}, and records of another")
            holds = db.execute(
                "SELECT coalesce(sum(amount_nano), 0) FROM hold WHERE account = ?", (account,)
            ).fetchone()[0]
            if holds != held:
                raise Broken(f"{account}: {held} held, and holds of {holds}")
        if any(owed.values()):
            raise Broken(f"no balance for {owed}")
        events = [row[0] for row in db.execute("SELECT id FROM outbox ORDER BY seq")]
        if sorted(events) != sorted([*self.rows, *self.movements]):
            raise Broken("records and events are not the same")
        ids = "SELECT request_id FROM posting"
        posted = sorted(row[0] for row in db.execute(ids))
        charged = [one for one, row in self.rows.items() if row[1]] + list(self.movements)
        if posted != sorted(charged):
            raise Broken("postings and records are not the same")

    def held(self) -> int:
        """What is held of all accounts."""
        total: int = self._connection().execute("SELECT sum(held_nano) FROM balance").fetchone()[0]
        return total or 0

    def outbox(self) -> list[tuple[str, bytes]]:
        """All events in order."""
        rows = self._connection().execute("SELECT id, body FROM outbox ORDER BY seq")
        return [(row[0], bytes(row[1])) for row in rows]

    def cursors(self) -> dict[str, int]:
        """How far each sink is."""
        return dict(self._connection().execute("SELECT sink, seq FROM sink_cursor").fetchall())

    def last_seq(self) -> int:
        """The place of the latest event."""
        seq: int = self._connection().execute("SELECT max(seq) FROM outbox").fetchone()[0]
        return seq or 0

    def dead_letters(self) -> set[tuple[str, str]]:
        """What sinks have refused for good."""
        return set(self._connection().execute("SELECT sink, id FROM dead_letter").fetchall())

    def claims(self) -> list[tuple[str, str]]:
        """The keys of requests that run."""
        rows = self._connection().execute(
            "SELECT account, idempotency_key FROM idempotency WHERE state = 'running'"
        )
        return rows.fetchall()

    def integrity(self) -> None:
        """The file is whole."""
        found = self._connection().execute("PRAGMA integrity_check").fetchone()
        if found != ("ok",):
            raise Broken(f"the file is broken: {found}")

    def _connection(self) -> apsw.Connection:
        if self._db is None:
            path = str(self._world.folder / "l.db")
            self._db = apsw.Connection(path, flags=apsw.SQLITE_OPEN_READWRITE)
            self._db.set_busy_timeout(0)
        return self._db

    def _judge(
        self,
        request_id: str,
        account: str,
        amount: int,
        inputs: int,
        outputs: int,
        basis: str,
        outcome: str,
        key: str | None,
        unpriced: int,
    ) -> None:
        request: Asked | None = BY_CALL.get(request_id)
        if request is None or not (request.admitted or request.killed):
            raise Broken(f"a bill for nobody: {request_id}")
        if account != request.account or bool(unpriced) == request.priced:
            raise Broken(f"the bill of request {request.number} is another's")
        if amount != request.cost(inputs, outputs):
            raise Broken(f"request {request.number}: {amount} for {inputs} and {outputs} tokens")
        # What cannot be promised: a worker that is gone, or taken for gone since it was paused for
        # longer than its lease, ends what it held with its last checkpoint.
        gone = request.killed or request.paused or request.worker.gone
        if request.unrecorded and not (gone and outcome == "worker_lost"):
            raise Broken(f"request {request.number} was told that it is not billed, and is")
        if outcome == "worker_lost":
            if not gone or inputs > request.input_tokens or outputs > request.produced:
                raise Broken(f"request {request.number} lost with its worker: {inputs}, {outputs}")
            return
        bills = request.bills(outcome)
        if (inputs, outputs, basis) not in bills:
            raise Broken(
                f"request {request.number} is billed {inputs}, {outputs} ({basis}), not {bills};"
                f" {outcome}"
            )
        if key != request.idempotency_key:
            raise Broken(f"request {request.number}: another idempotency key")
        if key is not None and outcome == "complete":
            self._once(account, key, request_id)

    def _judge_continued(
        self, request_id: str, account: str, amount: int, inputs: int, outputs: int, *more: Any
    ) -> None:
        """Judge a bill that came after its call was ended at a checkpoint: both are one."""
        lost = self.rows[request_id]
        if lost[5] != "worker_lost":
            raise Broken(f"the bill of {request_id} goes on, and was whole")
        whole = (amount + lost[1], inputs + lost[2], outputs + lost[3])
        self._judge(request_id, account, *whole, *more)

    def _once(self, account: str, key: str, request_id: str) -> None:
        for other, row in self.rows.items():
            if other != request_id and row[0] == account and (row[6], row[5]) == (key, "complete"):
                raise Broken(f"two answers for the key {key} of {account}")
