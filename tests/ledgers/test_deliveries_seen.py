"""What operators see of deliveries, without going through all that was ever delivered."""

import asyncio
from typing import Any

from inf_middleware.ledgers import deliveries, outbox
from inf_middleware.ledgers.book import LedgerBook
from inf_middleware.ledgers.steps import Ask, Steps
from tests.events import event_of
from tests.ledgers.conftest import Opened

# So many that a database goes by its index for a few of them.
EVENTS = 3_000
WAITING = 20


def explained(explain: str) -> Steps[list[str]]:
    """Run the steps, and return how the database does each of them."""
    steps = deliveries.sink_states()
    plans: list[str] = []
    rows: Any = None
    while True:
        try:
            ask = steps.send(rows)
        except StopIteration:
            return plans
        assert isinstance(ask, Ask)
        for row in (yield Ask(f"{explain} {ask.sql}", ask.params)):
            plans += [str(value) for value in row]
        rows = yield ask


def test_the_state_of_a_sink_is_told_by_its_cursor_and_what_waits(opened: Opened) -> None:
    is_sqlite = opened.uri.startswith("sqlite")

    def analyze() -> Steps[None]:
        yield Ask("ANALYZE event" if is_sqlite else "ANALYZE outbox")

    async def go(book: LedgerBook) -> None:
        ledger = book.ledger
        await asyncio.gather(*(ledger.settle(event_of(number)) for number in range(EVENTS)))
        await ledger.transact(analyze)
        last, _ = (await ledger.read(lambda: outbox.pending("none", EVENTS + 1)))[-1]
        await ledger.advance("mine", last - WAITING, {})
        (state,) = await ledger.read(deliveries.sink_states)
        assert (state.delivered, state.pending) == (last - WAITING, WAITING)
        explain = "EXPLAIN QUERY PLAN" if is_sqlite else "EXPLAIN"
        plans = await ledger.read(lambda: explained(explain))
        table = "event" if is_sqlite else "outbox"
        touching = [plan for plan in plans if table in plan]
        assert touching
        assert [plan for plan in touching if "Seq Scan" in plan or "SCAN event" in plan] == []

    opened.run(go)
