"""A worker that is killed: what it had acknowledged stays, what it held ends at its checkpoint."""

import asyncio
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from inf_middleware.ledgers import holds, reconcile
from inf_middleware.ledgers.book import LedgerBook
from inf_middleware.ledgers.sqlite import SqliteLedger
from tests.kit import reading
from tests.processes import kill_rounds

ROOT = Path(__file__).parent.parent.parent

WORKER = """
import asyncio, sys
from inf_middleware import Account, CostLedger
from tests.apps import StreamApp, delta, event
from tests.driver import post
from tests.kit import STREAM

class Slow(StreamApp):
    async def __call__(self, scope, receive, send):
        async def slowly(message):
            await send(message)
            await asyncio.sleep(0.0005)
        await super().__call__(scope, receive, slowly)

words = [event(delta(" one")) for _ in range(600)]
app = CostLedger(
    Slow([*words, event(delta("", finish="stop")), event("[DONE]")]),
    ledger=sys.argv[1], mode="prepaid", accounts={"sk-one": Account("acme")},
)

async def call():
    while True:
        answered = await post(app, {**STREAM, "max_tokens": 1000}, key="sk-one")
        assert answered.status == 200
        print(answered.headers["request-id"], flush=True)

async def main():
    await asyncio.gather(*(call() for _ in range(4)))

asyncio.run(main())
"""


def test_of_two_workers_one_is_killed_and_the_money_adds_up(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    rng = random.Random(6)
    acknowledged: set[str] = set()

    def worker() -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", WORKER, f"sqlite:///{path}"]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)

    async def recharge() -> None:
        async with LedgerBook(SqliteLedger(path)) as book:
            await book.recharge("acme", "1000", reference="r")

    asyncio.run(recharge())
    for _ in range(kill_rounds()):
        workers = [worker(), worker()]
        for one in workers:
            assert one.stdout is not None
            acknowledged.add(one.stdout.readline().strip())
        time.sleep(rng.uniform(0.05, 0.3))  # the moment of the kill is meant to be any
        for one in workers:
            one.send_signal(signal.SIGKILL)
            rest, _ = one.communicate(timeout=20)
            acknowledged.update(line for line in rest.splitlines() if len(line) == 36)
    with reading(path) as db:
        stored = {row[0] for row in db.execute("SELECT request_id FROM request")}
        open_holds = db.execute("SELECT count(*), sum(amount_nano) FROM hold").fetchone()
        # What workers of later rounds have ended: those that were dead for longer than the lease.
        ended_before = db.execute(
            "SELECT count(*) FROM request WHERE outcome = 'worker_lost'"
        ).fetchone()[0]
    assert acknowledged <= stored
    assert open_holds[0] > 0

    async def settled() -> Any:
        async with LedgerBook(SqliteLedger(path)) as book:
            later = 2**60  # beyond all leases
            now = "2026-11-25T00:00:00.000000Z"
            ended = await book.ledger.transact(lambda: holds.beat(None, "", later, 0, now))
            wrong = [c for c in await book.ledger.read(reconcile.checks) if not c.ok]
            return ended, wrong, await book.account("acme")

    ended, wrong, account = asyncio.run(settled())
    assert (ended, wrong) == (open_holds[0], [])
    assert account.held_nano == 0
    with reading(path) as db:
        lost = db.execute(
            "SELECT output_tokens FROM request WHERE outcome = 'worker_lost'"
        ).fetchall()
        charged = db.execute("SELECT sum(amount_nano) FROM request WHERE kind = 'usage'")
        assert account.balance_nano == 1000 * 10**9 - charged.fetchone()[0]
    assert len(lost) == ended_before + open_holds[0]
    assert any(tokens > 0 for (tokens,) in lost)  # what was made until the checkpoint is paid
