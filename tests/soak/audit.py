"""After a soak: does the ledger, do the sinks, have just what clients were promised?"""

import asyncio
import hashlib
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from inf_middleware.ledgers.book import LedgerBook
from inf_middleware.ledgers.continuing import continuation_of
from inf_middleware.ledgers.steps import Ask, Steps
from inf_middleware.stores.redis import RedisStore
from tests.soak.app import DEPLOYMENT, INPUT_TOKENS
from tests.soak.house import House
from tests.soak.load import Load

_TOLD_MAX = 5  # of each kind of difference
_REDIS_TIMEOUT_S = 10.0  # for an answer about a whole account, on a busy machine


_EMPTY_AT_REST = {
    "accounts with money held": "SELECT count(*) FROM balance WHERE held_nano <> 0",
    "holds": "SELECT count(*) FROM hold",
    "running Idempotency-Keys": "SELECT count(*) FROM idempotency WHERE state = 'running'",
}


async def rows(book: LedgerBook, sql: str) -> list[Any]:
    """Read from the ledger's tables."""

    def steps() -> Steps[list[Any]]:
        return list((yield Ask(sql)))

    return await book.ledger.read(steps)


async def waiting(house: House, book: LedgerBook) -> list[str]:
    """Say what has still to end before all is at rest."""
    found = []
    if house.spool_bytes:
        found.append(f"{house.spool_bytes:,} bytes in the spool")
    for what, sql in _EMPTY_AT_REST.items():
        ((count,),) = await rows(book, sql)
        if count:
            found.append(f"{count} {what}")
    sinks = await rows(
        book,
        "SELECT sink, (SELECT count(*) FROM outbox WHERE outbox.seq > sink_cursor.seq)"
        " FROM sink_cursor",
    )
    found += [f"{count} events for sink {sink}" for sink, count in sinks if count]
    if len(sinks) < 2:
        found.append("a sink that is not known yet")
    return found


class Bill(NamedTuple):
    """A call's record, and what is left of its amount."""

    account: str
    input_tokens: int
    output_tokens: int
    outcome: str
    owed_nano: int


_BILLS = (
    "SELECT request_id, account, input_tokens, output_tokens, outcome, CAST(amount_nano -"
    " coalesce((SELECT sum(amount_nano) FROM request AS correction"
    "  WHERE correction.corrects = request.request_id), 0) AS BIGINT)"
    " FROM request WHERE kind = 'usage'"
)


async def differences(house: House, load: Load, book: LedgerBook) -> list[str]:
    """Say what the ledger and the sinks have otherwise than clients were told."""
    wrong = _Wrong()
    bills = _whole({request_id: Bill(*rest) for request_id, *rest in await rows(book, _BILLS)})
    _check_acknowledged(load, bills, wrong)
    _check_refused(load, bills, wrong)
    if len(bills) > load.asked:
        wrong.add("more bills than requests", f"{len(bills)} of {load.asked}")
    _check_keys(load, bills, wrong)
    await _check_sinks(house, book, wrong)
    return wrong.told()


def _whole(bills: dict[str, Bill]) -> dict[str, Bill]:
    """Add to each bill what continues it: of a call that was ended at a checkpoint meanwhile."""
    for request_id, bill in list(bills.items()):
        more = bills.pop(continuation_of(request_id), None)
        if more is not None:
            early = more.outcome == "balance_exhausted"
            bills[request_id] = Bill(
                bill.account,
                bill.input_tokens + more.input_tokens,
                bill.output_tokens + more.output_tokens,
                more.outcome if early else bill.outcome,
                bill.owed_nano + more.owed_nano,
            )
    return bills


def _check_acknowledged(load: Load, bills: Mapping[str, Bill], wrong: "_Wrong") -> None:
    exhausted = paused = 0
    for request_id, promised in load.acknowledged.items():
        bill = bills.get(request_id)
        if bill is None:
            wrong.add("acknowledged, and not in the ledger", request_id)
            continue
        tokens = (bill.account, bill.input_tokens, bill.output_tokens)
        if bill.outcome == "balance_exhausted":
            exhausted += 1  # it ended with the balance, by what was counted until then
        elif bill.outcome not in ("complete", "worker_lost") or tokens != (
            promised.account,
            INPUT_TOKENS,
            promised.output_tokens,
        ):
            wrong.add("acknowledged, and billed otherwise", f"{request_id}: {bill}, {promised}")
        elif bill.outcome == "worker_lost":
            paused += 1  # its worker came to nothing for longer than a lease, and went on
    print(
        f"{len(load.acknowledged):,} answers acknowledged, each with its bill: {exhausted} ended"
        f" with the balance, {paused} by workers that were paused beyond their lease"
    )


def _check_keys(load: Load, bills: Mapping[str, Bill], wrong: "_Wrong") -> None:
    """A key has one answer; another where the first was ended before the model was done.

    That is with the balance, which for who pays in advance is also the ledger's being away when
    more is to be held, or with the lease of a worker that was paused.
    """
    ended_early = 0
    for key, request_id in load.twice.items():
        bill = bills.get(request_id)
        if bill is not None and bill.outcome in ("balance_exhausted", "worker_lost"):
            ended_early += 1
        else:
            wrong.add("two answers for one Idempotency-Key", f"{key}: first {request_id}, {bill}")
    print(f"{ended_early} Idempotency-Keys ran again whose first answer had been ended early")


def _check_refused(load: Load, bills: Mapping[str, Bill], wrong: "_Wrong") -> None:
    """Of who was told an error of ours none owes anything, but to a worker that died meanwhile."""
    in_doubt = 0
    for request_id, said in load.refused.items():
        bill = bills.get(request_id)
        if bill is not None and said.startswith(("4", "503")):
            in_doubt += 1
            if bill.owed_nano and bill.outcome != "worker_lost":
                wrong.add("refused, and billed", f"{request_id}: {said}, {bill}")
    print(f"{in_doubt} calls were refused whose commit was in doubt")


async def _check_sinks(house: House, book: LedgerBook, wrong: "_Wrong") -> None:
    sent = {
        event_id: hashlib.blake2b(bytes(body), digest_size=16).digest()
        for event_id, body in await rows(book, "SELECT id, body FROM outbox")
    }
    far_end = house.far_end
    for event_id, digest in sent.items():
        arrived = far_end.digests.get(event_id)
        if arrived is None:
            wrong.add("never came to the far end", event_id)
        elif arrived != digest:
            wrong.add("came to the far end with other bytes", event_id)
    for event_id in far_end.digests.keys() - sent.keys():
        wrong.add("came to the far end, and is not in the ledger", event_id)
    for event_id in far_end.altered:
        wrong.add("came again with other bytes", event_id)
    in_file: Counter[str] = Counter()
    for path in [*house.folder.glob("events-*.jsonl"), house.events_path]:
        with path.open("rb") as file:
            in_file.update(json.loads(line)["id"] for line in file)
    for event_id in sent.keys() - in_file.keys():
        wrong.add("never came to the file", event_id)
    letters = await rows(book, "SELECT sink, id, reason FROM dead_letter")
    for letter in letters:
        wrong.add("a dead letter", str(tuple(letter)))


class _Wrong:
    """Differences by their kind; some of each are told, and how many there are."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._examples: dict[str, list[str]] = {}

    def add(self, kind: str, example: str) -> None:
        self._counts[kind] += 1
        if self._counts[kind] <= _TOLD_MAX:
            self._examples.setdefault(kind, []).append(example)

    def told(self) -> list[str]:
        return [
            f"{count:,} × {kind}: {'; '.join(self._examples[kind])}"
            for kind, count in self._counts.items()
        ]


async def reconcile(house: House) -> tuple[int, str]:
    """Run the operator's command on the ledger and the file; its exit code, and what it said."""
    command = [str(Path(sys.executable).with_name("inf-middleware")), "ledger", "reconcile"]
    command += ["--ledger", house.ledger_uri, "--sink", f"file=jsonl:{house.events_path}"]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


async def in_progress(house: House, accounts: list[str]) -> list[str]:
    """Say which accounts have slots still."""
    store = RedisStore(house.redis.uri, deployment=DEPLOYMENT, timeout_s=_REDIS_TIMEOUT_S)
    try:
        shown = {account: await store.show(account) for account in accounts}
    finally:
        await store.aclose()
    return [
        f"{group.running} slots of {account}"
        for account, groups in shown.items()
        for group in groups
        if group.running
    ]
