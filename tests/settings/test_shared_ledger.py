"""In one process a ledger is one for all that name it, with its spool; nothing is lost between."""

import asyncio
import threading
from pathlib import Path

import pytest

from inf_middleware import ConfigError, CostLedger, Gate, open_ledger
from inf_middleware.ledgers.spool import SpoolingLedger
from tests.apps import JsonApp, completion, usage_of
from tests.driver import post
from tests.events import event_of
from tests.kit import CHAT, Closing, records_of
from tests.ledgers.test_spool import Switched, handed_over, ids, spooled
from tests.settings.test_sharing import ledger_threads, shut_down

MODEL = JsonApp(completion(usage=usage_of(2, 3)))


def reader_threads() -> int:
    return sum(thread.name.startswith("inf-middleware-reader") for thread in threading.enumerate())


def test_accounts_and_bills_of_one_uri_are_one_ledger(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/l.db"
    threads = ledger_threads(), reader_threads()

    async def go() -> None:
        async with await open_ledger(uri) as book:
            await book.create_account("acme")
            key = (await book.issue_key("acme")).key
        first, second = (Gate(Closing(MODEL), accounts=uri, ledger=uri) for _ in range(2))
        for gate in (first, second):
            assert (await post(gate, CHAT, key=key)).status == 200
        assert (ledger_threads(), reader_threads()) == (threads[0] + 1, threads[1] + 1)
        await shut_down(first)
        assert (await post(second, CHAT, key=key)).status == 200
        await shut_down(second)
        assert (ledger_threads(), reader_threads()) == threads

    asyncio.run(go())
    bills = [one for one in records_of(tmp_path / "l.db") if one["kind"] == "usage"]
    assert [one["account"] for one in bills] == ["acme"] * 3


def test_stacks_of_one_ledger_share_its_spool_and_hand_over_once(tmp_path: Path) -> None:
    switched = Switched(tmp_path / "l.db")
    switched.spool_directory = tmp_path / "spool"
    first, second = (
        CostLedger(Closing(MODEL), ledger=switched, settle_timeout_s=0) for _ in range(2)
    )

    async def go() -> None:
        switched.away = True
        for stack in (first, second):
            assert (await post(stack, CHAT)).status == 200
        assert len(spooled(switched.spool_directory)) == 2
        assert len(list(switched.spool_directory.glob("*.jsonl"))) == 1
        await shut_down(first)
        assert (await post(second, CHAT)).status == 200
        switched.away = False
        await shut_down(second)
        assert list(switched.spool_directory.iterdir()) == []

    asyncio.run(go())
    assert len(set(ids(tmp_path / "l.db"))) == len(ids(tmp_path / "l.db")) == 3


def test_bills_of_two_ledgers_are_never_kept_in_one_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    one, other = Switched(tmp_path / "a.db"), Switched(tmp_path / "b.db")
    first = CostLedger(MODEL, ledger=one)
    second = CostLedger(MODEL, ledger=other)
    third = CostLedger(MODEL, ledger=other, deployment="another")

    async def go() -> None:
        await post(first, CHAT)
        with pytest.raises(ConfigError, match="or each a deployment of its own"):
            await post(second, CHAT)
        await post(third, CHAT)

    asyncio.run(go())
    assert len(ids(tmp_path / "a.db")) == len(ids(tmp_path / "b.db")) == 1


def test_two_event_loops_on_one_spool_lose_no_bill(tmp_path: Path) -> None:
    switched = Switched(tmp_path / "l.db")
    switched.away = True
    spool = SpoolingLedger(switched, tmp_path / "spool")
    ready = threading.Barrier(2)

    async def keep(numbers: range) -> None:
        for number in numbers:
            await spool.keep(event_of(number))
            if number % 10 == 0:
                await asyncio.to_thread(ready.wait, 20)
                switched.away = False
        await handed_over(tmp_path / "l.db", 80)

    threads = [
        threading.Thread(target=asyncio.run, args=(keep(numbers),))
        for numbers in (range(1, 41), range(41, 81))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(set(ids(tmp_path / "l.db"))) == 80
