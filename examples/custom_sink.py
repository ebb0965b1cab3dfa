"""A sink of your own: billing events summed up in your own database, each exactly once.

python examples/custom_sink.py --port 8000
"""

import argparse
import asyncio
import sqlite3
from collections.abc import Sequence
from contextlib import closing

import uvicorn

# The example next to this one; in your project it is the model server you have already.
from model_app import build_app

from inf_middleware import Account, BillingEvent, CostLedger, TierLimiter, TokenMeter
from inf_middleware.ports import Rejected

ACCOUNTS = {
    "sk-acme": Account("acme", recharged="500"),
    "sk-stray": Account("stray", recharged="500"),  # no customer of the billing below
}

SCHEMA = """
CREATE TABLE IF NOT EXISTS customer (account TEXT PRIMARY KEY, spent_nano INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS seen (event_id TEXT PRIMARY KEY);
INSERT OR IGNORE INTO customer VALUES ('acme', 0);
"""


class Totals:
    """Adds events to the totals of customers.

    An event may come twice, after a crash for instance: its id and its amount are written in one
    transaction, and an id that is there already changes nothing.
    """

    def __init__(self, path: str) -> None:
        self._path = path

    async def __call__(self, events: Sequence[BillingEvent]) -> None:
        """Take a batch; what is raised brings all of it again later, but for `Rejected`."""
        # What blocks belongs into a thread: the event loop serves requests meanwhile.
        strangers = await asyncio.to_thread(self._add, events)
        if strangers:
            raise Rejected(strangers)  # for good: into the ledger's dead letters, with the reason

    def _add(self, events: Sequence[BillingEvent]) -> dict[str, str]:
        strangers = {}
        with closing(sqlite3.connect(self._path)) as db:
            db.executescript(SCHEMA)
            with db:
                for event in events:
                    customer = db.execute(
                        "SELECT 1 FROM customer WHERE account = ?", (event.account,)
                    ).fetchone()
                    if customer is None:
                        strangers[event.id] = f"{event.account} is no customer"
                        continue
                    new = db.execute("INSERT OR IGNORE INTO seen VALUES (?)", (event.id,))
                    if new.rowcount:
                        db.execute(
                            "UPDATE customer SET spent_nano = spent_nano + ? WHERE account = ?",
                            (int(event.amount_nano), event.account),
                        )
        return strangers


def main() -> None:
    """Serve until stopped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--ledger", default="sqlite:///inf-ledger.db")
    parser.add_argument("--totals", default="totals.sqlite")
    options = parser.parse_args()

    app = build_app()
    app.add_middleware(TokenMeter)
    app.add_middleware(TierLimiter, accounts=ACCOUNTS)
    app.add_middleware(CostLedger, ledger=options.ledger, sinks={"totals": Totals(options.totals)})
    print("What it did not take: inf-middleware events dead-letters", flush=True)
    uvicorn.run(app, host=options.host, port=options.port, log_level="warning")


if __name__ == "__main__":
    main()
