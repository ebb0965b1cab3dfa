"""No order of operations, no crash and no power cut makes, loses or doubles a nano.

A small model says what must be; after every step the ledger says the same, and reconciles. The
disk keeps what was synced and any part of the rest: `kill -9` cannot tell FULL from NORMAL.
"""

import contextlib
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from msgspec.structs import replace

from inf_middleware import BillingEvent, Usage
from inf_middleware.domain.errors import BookingRefused
from inf_middleware.domain.moments import rfc3339
from inf_middleware.domain.tiers import Tiers
from inf_middleware.ledgers import holds, movements, reconcile, settling
from inf_middleware.ledgers.connection import connect
from inf_middleware.ledgers.continuing import continuation_of
from inf_middleware.ledgers.lots import expire
from inf_middleware.ledgers.movements import Movement
from inf_middleware.ledgers.rows import rows_of
from inf_middleware.ledgers.sqlite_steps import transact
from inf_middleware.ledgers.steps import Steps, T
from tests.events import event_of
from tests.ledgers.disk import Disk, EverythingKept, power_that_can_be_cut, start_again

TIERS = Tiers.default()
TOKEN = 10_000
ACCOUNTS = ("acme", "umbrella")
DAY_NS = 86_400 * 10**9

# Small, so that bounds bind: with balances too large no guard is ever needed.
TOKENS = st.integers(0, 60)


class Model:
    """What must be, said independently and plainly."""

    def __init__(self) -> None:
        self.balance = dict.fromkeys(ACCOUNTS, 0)
        self.recharged = dict.fromkeys(ACCOUNTS, 0)
        self.held: dict[str, tuple[str, int, int, str]] = {}  # account, amount, so far, owner
        self.bills: dict[str, int] = {}
        self.overdrawn: dict[str, int] = {}
        self.lost: dict[str, str] = {}  # of which account
        self.credited: dict[str, int] = {}
        self.recharges: dict[str, tuple[str, int]] = {}
        self.reversed: set[str] = set()
        self.lots: list[list[Any]] = []  # account, left, expires

    def available(self, account: str) -> int:
        held = sum(amount for owner, amount, _, _ in self.held.values() if owner == account)
        return self.balance[account] - held

    def charge(self, request_id: str, account: str, amount: int) -> None:
        before = self.available(account)
        held = self.held.pop(request_id, None)
        self.balance[account] -= amount
        self.bills[request_id] = amount
        after = self.available(account)
        short = max(-after, 0) - max(-before, 0)
        self.overdrawn[request_id] = max(short, 0) if held else 0
        for lot in sorted((lot for lot in self.lots if lot[0] == account), key=lambda x: x[2]):
            taken = min(lot[1], amount)
            lot[1] -= taken
            amount -= taken

    def go_on(self, request_id: str, account: str, amount: int) -> None:
        """Charge what a call used that was ended at its checkpoint."""
        more, so_far = continuation_of(request_id), self.bills[request_id]
        if more in self.bills or amount == so_far:
            return
        self.charge(more, account, amount if amount < so_far else amount - so_far)
        if amount < so_far:  # the checkpoint is taken back, as far as it was not
            self.balance[account] += so_far - self.credited.get(request_id, 0)
            self.credited[request_id] = so_far


class Ledger(RuleBasedStateMachine):
    """The ledger's steps on a disk whose power may go at any moment."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.stack = contextlib.ExitStack()
        self.vfs = self.stack.enter_context(power_that_can_be_cut())
        self.starts = 0
        self.number = 0
        self.now_ns = 2_200_000_000 * 10**9
        self.model = Model()
        self.place = self._new_place()
        self.db: apsw.Connection = connect(self.place / "l.db")

    def teardown(self) -> None:
        self.db.close()
        self.stack.close()
        shutil.rmtree(self.folder)

    def _new_place(self) -> Path:
        self.starts += 1
        place = self.folder / str(self.starts)
        place.mkdir()
        return place

    def _run(self, steps: Steps[T]) -> T:
        return transact(self.db, steps)

    def _id(self) -> str:
        self.number += 1
        return f"{self.number:06d}"

    def _movement(self, operation: Any, account: str, amount: int, **more: Any) -> Movement:
        return Movement(
            operation,
            account,
            amount,
            "CNY",
            self._id(),
            rfc3339(self.now_ns),
            self.now_ns,
            "urn:test",
            TIERS,
            **more,
        )

    def _bill(self, request_id: str, account: str, tokens: int) -> BillingEvent:
        return event_of(
            request_id=request_id,
            account=account,
            usage=Usage(tokens, 0),
            settled_at=rfc3339(self.now_ns),
            outcome="worker_lost",
        )

    def _settle(self, request_id: str, account: str, tokens: int) -> None:
        self._run(settling.settle_all([rows_of(self._bill(request_id, account, tokens))]))

    @initialize(tokens=st.integers(0, 200))
    def start(self, tokens: int) -> None:
        if tokens:
            self.recharge("acme", tokens)

    @rule(account=st.sampled_from(ACCOUNTS), tokens=st.integers(1, 100))
    def recharge(self, account: str, tokens: int) -> None:
        reference = f"r{self.number}"
        movement = self._movement("recharge", account, tokens * TOKEN, reference=reference)
        for _ in range(2):  # the same reference again changes nothing
            receipt = self._run(movements.book(movement))
        self.model.balance[account] += tokens * TOKEN
        self.model.recharged[account] += tokens * TOKEN
        self.model.recharges[receipt.request_id] = (account, tokens * TOKEN)

    @rule(account=st.sampled_from(ACCOUNTS), tokens=st.integers(1, 100), days=st.integers(0, 3))
    def grant(self, account: str, tokens: int, days: int) -> None:
        expires = rfc3339(self.now_ns + days * DAY_NS) if days else None
        self._run(
            movements.book(self._movement("grant", account, tokens * TOKEN, expires_at=expires))
        )
        self.model.balance[account] += tokens * TOKEN
        if days:
            self.model.lots.append([account, tokens * TOKEN, self.now_ns + days * DAY_NS])

    @rule(account=st.sampled_from(ACCOUNTS), tokens=st.integers(1, 100))
    def withdraw(self, account: str, tokens: int) -> None:
        steps = movements.book(self._movement("withdraw", account, tokens * TOKEN))
        if tokens * TOKEN > self.model.available(account):
            with pytest.raises(BookingRefused):
                self._run(steps)
        else:
            self._run(steps)
            self.model.balance[account] -= tokens * TOKEN

    @precondition(lambda self: self.model.bills)
    @rule(data=st.data(), tokens=st.integers(1, 60))
    def credit(self, data: st.DataObject, tokens: int) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.model.bills)))
        left = self.model.bills[request_id] - self.model.credited.get(request_id, 0)
        steps = movements.correct(self._movement("credit", "", 0), request_id, tokens * TOKEN)
        if tokens * TOKEN > left:
            with pytest.raises(BookingRefused):
                self._run(steps)
        else:
            account = self._run(steps).account.account
            self.model.balance[account] += tokens * TOKEN
            credited = self.model.credited.get(request_id, 0)
            self.model.credited[request_id] = credited + tokens * TOKEN

    @precondition(lambda self: self.model.recharges)
    @rule(data=st.data())
    def reverse(self, data: st.DataObject) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.model.recharges)))
        receipt = self._run(movements.correct(self._movement("reverse", "", 0), request_id, None))
        assert receipt.repeated == (request_id in self.model.reversed)
        if not receipt.repeated:
            account, amount = self.model.recharges[request_id]
            self.model.balance[account] -= amount
            self.model.recharged[account] -= amount
            self.model.reversed.add(request_id)

    @rule(account=st.sampled_from(ACCOUNTS), tokens=st.integers(1, 60), owner=st.integers(0, 2))
    def hold(self, account: str, tokens: int, owner: int) -> None:
        request_id, amount = self._id(), tokens * TOKEN
        process = f"p{self.starts}-{owner}"
        event = self._bill(request_id, account, 0)
        available = self._run(holds.hold(event, amount, 0, process, self.starts))
        there = self.model.available(account)
        assert available == (None if amount <= there else max(there, 0))
        if available is None:
            self.model.held[request_id] = (account, amount, 0, process)

    @precondition(lambda self: self.model.held)
    @rule(data=st.data(), more=st.integers(1, 40), produced=TOKENS)
    def extend(self, data: st.DataObject, more: int, produced: int) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.model.held)))
        account, amount, _, owner = self.model.held[request_id]
        there = self.model.available(account)
        available = self._run(holds.extend(self._bill(request_id, account, produced), more * TOKEN))
        assert available == (None if more * TOKEN <= there else max(there, 0))
        amount += 0 if available is not None else more * TOKEN
        self.model.held[request_id] = (account, amount, produced * TOKEN, owner)

    @precondition(lambda self: self.model.held)
    @rule(data=st.data(), tokens=TOKENS)
    def settle(self, data: st.DataObject, tokens: int) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.model.held)))
        account = self.model.held[request_id][0]
        self._settle(request_id, account, tokens)
        self.model.charge(request_id, account, tokens * TOKEN)

    @rule(account=st.sampled_from(ACCOUNTS), tokens=TOKENS)
    def settle_without_a_hold(self, account: str, tokens: int) -> None:
        request_id = self._id()
        self._settle(request_id, account, tokens)
        self.model.charge(request_id, account, tokens * TOKEN)

    @precondition(lambda self: self.model.bills)
    @rule(data=st.data(), tokens=TOKENS)
    def settle_again(self, data: st.DataObject, tokens: int) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.model.bills)))
        self._settle(request_id, "acme", tokens)  # whatever it says now: it is recorded already

    @precondition(lambda self: self.model.lost)
    @rule(data=st.data(), tokens=TOKENS)
    def settle_late(self, data: st.DataObject, tokens: int) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.model.lost)))
        account, amount = self.model.lost[request_id], tokens * TOKEN
        bill = replace(self._bill(request_id, account, tokens), outcome="complete")
        self._run(settling.settle_all([rows_of(bill)]))
        self.model.go_on(request_id, account, amount)

    @precondition(lambda self: self.model.held)
    @rule(data=st.data())
    def void(self, data: st.DataObject) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.model.held)))
        self._run(holds.void(request_id, self.now_ns))
        del self.model.held[request_id]

    @precondition(lambda self: self.model.held)
    @rule(data=st.data())
    def a_process_dies(self, data: st.DataObject) -> None:
        dead = data.draw(st.sampled_from(sorted({held[3] for held in self.model.held.values()})))
        # Its last beat is as old as can be; the others live.
        self.db.execute("UPDATE process SET beat_ms = ? WHERE id = ?", (-(10**9), dead))
        self._run(holds.beat(None, "", 0, 0, rfc3339(0)))
        for request_id, (account, _, so_far, owner) in sorted(self.model.held.items()):
            if owner == dead:
                self.model.lost[request_id] = account
                self.model.charge(request_id, account, so_far)

    @rule(days=st.integers(1, 2))
    def time_goes_on(self, days: int) -> None:
        self.now_ns += days * DAY_NS
        self._run(expire(self.now_ns, rfc3339(self.now_ns)))
        for account in ACCOUNTS:
            lots = [lot for lot in self.model.lots if lot[0] == account and lot[2] <= self.now_ns]
            available = self.model.available(account)
            held = self.model.balance[account] - available  # of what is due, first of all
            left = max(min(sum(lot[1] for lot in lots) - held, available), 0)
            for lot in sorted(lots, key=lambda x: x[2]):
                taken = min(lot[1], left)
                left -= taken
                lot[1] -= taken
                self.model.balance[account] -= taken

    @rule()
    def open_again(self) -> None:
        self.db.close()
        self.db = connect(self.place / "l.db")

    @rule()
    def crash(self) -> None:
        self._start_again(EverythingKept())  # the process is killed, its host goes on

    @rule(seed=st.integers(0, 2**32))
    def power_cut(self, seed: int) -> None:
        self._start_again(random.Random(seed))

    def _start_again(self, rng: random.Random) -> None:
        dead, place = self.db, self._new_place()
        start_again(self.vfs, rng, place)
        # What the dead process would still write goes nowhere.
        disk, self.vfs.disk = self.vfs.disk, Disk()
        dead.close()
        self.vfs.disk = disk
        self.place = place
        self.db = connect(place / "l.db")
        assert self.db.execute("PRAGMA integrity_check").fetchone() == ("ok",)

    @invariant()
    def the_ledger_says_what_the_model_says(self) -> None:
        model = self.model
        found = {
            row[0]: row[1:]
            for row in self.db.execute(
                "SELECT account, balance_nano, held_nano, recharged_nano FROM balance"
            )
        }
        for account in ACCOUNTS:
            balance, held, recharged = found.get(account, (0, 0, 0))
            assert balance == model.balance[account]
            assert balance - held == model.available(account)
            assert recharged == model.recharged[account]
        bills = {
            row[0]: row[1:]
            for row in self.db.execute(
                "SELECT request_id, amount_nano, overdrawn_nano FROM request WHERE kind = 'usage'"
            )
        }
        assert bills == {
            request_id: (amount, model.overdrawn[request_id])
            for request_id, amount in model.bills.items()
        }

    @invariant()
    def every_nano_is_explained(self) -> None:
        wrong = [check for check in self._run(reconcile.checks()) if not check.ok]
        assert wrong == []
        assert self._run(reconcile.check_events(0)) == (None, [])


def test_any_order_of_operations_crashes_and_power_cuts_adds_up() -> None:
    run_state_machine_as_test(
        Ledger,
        settings=settings(
            max_examples=25,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            derandomize=True,
        ),
    )


@pytest.fixture
def cutting() -> Iterator[Any]:
    with power_that_can_be_cut() as vfs:
        yield vfs


def cut_once(vfs: Any, rng: random.Random, folder: Path, synchronous: str | None = None) -> bool:
    """Settle some calls, cut the power; tell whether any that was acknowledged is lost.

    `synchronous` in place of the ledger's own setting.
    """
    first, second = folder / "first", folder / "second"
    first.mkdir(parents=True)
    second.mkdir()
    vfs.disk = Disk()
    db = connect(first / "l.db")
    if synchronous is not None:
        db.pragma("synchronous", synchronous)
    acknowledged = set()
    for number in range(rng.randrange(1, 12)):
        event = event_of(number)
        transact(db, settling.settle_all([rows_of(event)]))
        acknowledged.add(event.id)
    start_again(vfs, rng, second)
    after, vfs.disk = vfs.disk, Disk()
    db.close()
    vfs.disk = after
    with contextlib.closing(connect(second / "l.db")) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        stored = {row[0] for row in db.execute("SELECT request_id FROM request")}
        events = {row[0] for row in db.execute("SELECT id FROM outbox")}
    assert stored == events
    return not acknowledged <= stored


@pytest.mark.parametrize("cuts", [12, 288])  # a few of them tell a ledger that does not sync
def test_of_three_hundred_power_cuts_none_loses_what_was_acknowledged(
    cuts: int, cutting: Any, tmp_path: Path
) -> None:
    rng = random.Random(cuts)
    lost = [cut_once(cutting, rng, tmp_path / str(n)) for n in range(cuts)]
    assert lost.count(True) == 0


def test_the_cuts_would_show_a_ledger_that_does_not_sync(cutting: Any, tmp_path: Path) -> None:
    rng = random.Random(1)
    assert any(cut_once(cutting, rng, tmp_path / str(n), "normal") for n in range(5))
