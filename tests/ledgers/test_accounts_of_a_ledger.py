"""Keys, levels and suspensions kept in a ledger: seen by all within a second."""

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import HTTPConnection

from inf_middleware import Account, ConfigError, CostLedger, TierLimiter, TokenMeter
from inf_middleware.accounts.ledger import ACCOUNTS_MAX, CHECK_S, STALE_MAX_S, LedgerAccounts
from inf_middleware.domain.errors import AccountsUnavailable, LedgerUnavailable
from inf_middleware.ledgers.book import LedgerBook
from inf_middleware.ledgers.uris import ledger_of
from tests.apps import JsonApp, completion, usage_of
from tests.driver import post, scope_of
from tests.kit import CHAT, Clock
from tests.ledgers.conftest import Opened

CONNECTION = HTTPConnection(scope_of())


def test_a_key_is_its_account_with_all_that_is_set_of_it(opened: Opened) -> None:
    async def go(book: LedgerBook) -> None:
        lookup = LedgerAccounts(book.ledger, "CNY")
        await book.create_account("acme", credit_limit="2.5", metadata={"team": "a"})
        await book.recharge("acme", "500", reference="r")
        key = (await book.issue_key("acme")).key
        assert await lookup(key, CONNECTION) == Account(
            "acme", recharged="500", credit_limit="2.5", metadata={"team": "a"}
        )
        assert await lookup(None, CONNECTION) is None
        assert await lookup("sk-unknown", CONNECTION) is None

    opened.run(go)


def test_a_change_made_elsewhere_is_seen_within_a_second(opened: Opened) -> None:
    clock = Clock()
    assert CHECK_S < 1

    async def go(book: LedgerBook) -> None:
        other = ledger_of(opened.uri)  # as another process would have it
        lookup = LedgerAccounts(other, "CNY", clock=clock)
        await book.create_account("acme")
        issued = await book.issue_key("acme")

        async def seen() -> Account | None:
            clock.now += CHECK_S
            return await lookup(issued.key, CONNECTION)

        assert await seen() == Account("acme")
        await book.recharge("acme", "3000", reference="r")
        assert await seen() == Account("acme", recharged="3000")
        await book.set_account("acme", tier="Tier5")
        assert await seen() == Account("acme", tier="Tier5", recharged="3000")
        await book.set_account("acme", suspended=True)
        found = await seen()
        assert found is not None
        assert found.suspended
        await book.revoke_key(issued.key_id)
        assert await seen() is None
        await other.aclose()

    opened.run(go)


class Counting:
    """A ledger's accounts, with a count of how often they were asked, and a fault at will."""

    def __init__(self, book: Any) -> None:
        self.book = book
        self.reads = 0
        self.away = False

    async def accounts_version(self) -> int:
        self._ask()
        version: int = await self.book.accounts_version()
        return version

    async def account_of_key(self, sha256: str, currency: str) -> tuple[int, Account | None]:
        self._ask()
        found: tuple[int, Account | None] = await self.book.account_of_key(sha256, currency)
        return found

    def _ask(self) -> None:
        self.reads += 1
        if self.away:
            raise LedgerUnavailable("away")


async def asked_of(book: LedgerBook, clock: Clock) -> tuple[Counting, LedgerAccounts, str]:
    """A look-up in a ledger with one account, and that account's key."""
    counting = Counting(book.ledger)
    await book.create_account("acme")
    key = (await book.issue_key("acme")).key
    return counting, LedgerAccounts(counting, "CNY", clock=clock), key


def test_between_two_checks_nothing_is_read(opened: Opened) -> None:
    clock = Clock()

    async def go(book: LedgerBook) -> int:
        counting, lookup, key = await asked_of(book, clock)
        for _ in range(100):
            assert await lookup(key, CONNECTION) is not None
        clock.now += CHECK_S
        await lookup(key, CONNECTION)
        return counting.reads

    assert opened.run(go) == 3  # version, account, version


def test_with_the_ledger_away_what_is_known_stays_true_for_a_minute(opened: Opened) -> None:
    clock = Clock()

    async def go(book: LedgerBook) -> None:
        counting, lookup, key = await asked_of(book, clock)
        await lookup(key, CONNECTION)
        counting.away = True
        clock.now += STALE_MAX_S
        assert await lookup(key, CONNECTION) == Account("acme")
        with pytest.raises(AccountsUnavailable):
            await lookup("sk-other", CONNECTION)
        clock.now += CHECK_S
        with pytest.raises(AccountsUnavailable):
            await lookup(key, CONNECTION)
        counting.away = False
        clock.now += CHECK_S
        assert await lookup(key, CONNECTION) == Account("acme")

    opened.run(go)


def test_in_a_long_outage_nobody_is_let_in_between_two_checks_either(opened: Opened) -> None:
    clock = Clock()

    async def go(book: LedgerBook) -> None:
        counting, lookup, key = await asked_of(book, clock)
        await lookup(key, CONNECTION)
        counting.away = True
        clock.now += STALE_MAX_S
        assert await lookup(key, CONNECTION) == Account("acme")
        clock.now += CHECK_S / 100  # too soon for another check
        asked = counting.reads
        for number in range(100):
            with pytest.raises(AccountsUnavailable):
                await lookup(key, CONNECTION)
            with pytest.raises(AccountsUnavailable):
                await lookup(f"sk-{number}", CONNECTION)
        assert counting.reads == asked, "a ledger that is away is asked at checks alone"
        counting.away = False
        clock.now += CHECK_S
        assert await lookup(key, CONNECTION) == Account("acme")

    opened.run(go)


def test_after_a_quiet_time_those_who_come_at_once_are_told_what_holds_now(opened: Opened) -> None:
    clock = Clock()

    async def go(book: LedgerBook) -> None:
        _, lookup, key = await asked_of(book, clock)
        await lookup(key, CONNECTION)
        await book.recharge("acme", "500", reference="r")
        clock.now += STALE_MAX_S + 1
        found = await asyncio.gather(*(lookup(key, CONNECTION) for _ in range(3)))
        assert found == [Account("acme", recharged="500")] * 3

    opened.run(go)


def test_an_account_that_could_be_read_is_known_though_the_check_failed(opened: Opened) -> None:
    clock = Clock()

    async def go(book: LedgerBook) -> None:
        counting = Counting(book.ledger)
        lookup = LedgerAccounts(counting, "CNY", clock=clock)
        await book.create_account("acme")
        await lookup("sk-other", CONNECTION)
        key = (await book.issue_key("acme")).key
        counting.away = True
        clock.now += STALE_MAX_S
        with pytest.raises(AccountsUnavailable):
            await lookup(key, CONNECTION)
        counting.away = False
        assert await lookup(key, CONNECTION) == Account("acme")
        counting.away = True
        clock.now += CHECK_S
        assert await lookup(key, CONNECTION) == Account("acme")
        clock.now += STALE_MAX_S
        with pytest.raises(AccountsUnavailable):
            await lookup(key, CONNECTION)

    opened.run(go)


def test_with_the_ledger_away_a_change_just_before_locks_nobody_out_for_a_minute(
    opened: Opened,
) -> None:
    clock = Clock()

    async def go(book: LedgerBook) -> None:
        counting = Counting(book.ledger)
        lookup = LedgerAccounts(counting, "CNY", clock=clock)
        keys = {}
        for name in ("acme", "umbrella"):
            await book.create_account(name)
            keys[name] = (await book.issue_key(name)).key
            await lookup(keys[name], CONNECTION)
        confirmed_at = clock.now
        clock.now += CHECK_S
        await book.recharge("umbrella", "500", reference="r")
        assert await lookup(keys["umbrella"], CONNECTION) == Account("umbrella", recharged="500")
        counting.away = True
        clock.now = confirmed_at + STALE_MAX_S
        assert await lookup(keys["acme"], CONNECTION) == Account("acme")
        clock.now += CHECK_S  # of the other one more is known than of this one
        with pytest.raises(AccountsUnavailable):
            await lookup(keys["acme"], CONNECTION)
        assert await lookup(keys["umbrella"], CONNECTION) == Account("umbrella", recharged="500")

    opened.run(go)


class Endless:
    """An account for every key."""

    async def accounts_version(self) -> int:
        return 1

    async def account_of_key(self, sha256: str, currency: str) -> tuple[int, Account | None]:
        return 1, Account(sha256)


def test_what_is_kept_is_bounded() -> None:
    async def go() -> int:
        lookup = LedgerAccounts(Endless(), "CNY")
        for number in range(ACCOUNTS_MAX + 50):
            await lookup(f"sk-{number}", CONNECTION)
        return len(lookup._accounts)

    assert asyncio.run(go()) == ACCOUNTS_MAX


@pytest.mark.parametrize("middleware", [TokenMeter, TierLimiter, CostLedger])
def test_each_of_the_three_takes_a_ledgers_uri(
    middleware: type, opened: Opened, tmp_path: Path
) -> None:
    async def issue(book: LedgerBook) -> str | None:
        await book.recharge("acme", "500", reference="r")
        return (await book.issue_key("acme")).key

    key = opened.run(issue)
    options: dict[str, Any] = {"ledger": opened.uri} if middleware is CostLedger else {}
    app = middleware(JsonApp(completion(usage=usage_of(2, 3))), accounts=opened.uri, **options)

    async def go() -> None:
        answered = await post(app, CHAT, key=key)
        assert answered.status == 200
        if middleware is TierLimiter:
            assert answered.headers["x-ratelimit-limit-concurrency"] == "4"  # Tier1
        assert (await post(app, CHAT, key="sk-other")).status == 401
        await app._stack.worker._on_shutdown()

    asyncio.run(go())
    if middleware is CostLedger:
        assert opened.rows("SELECT account, tier, amount_nano FROM request WHERE kind='usage'") == [
            ("acme", "Tier1", 50_000)
        ]


def test_a_uri_that_names_no_ledger_is_refused_at_construction() -> None:
    with pytest.raises(ConfigError, match="sqlite:///"):
        TierLimiter(JsonApp({}), accounts="mysql://x")


LEVEL_UP = """
import asyncio, sys
from starlette.requests import HTTPConnection
from inf_middleware.accounts.ledger import LedgerAccounts
from inf_middleware.ledgers.uris import ledger_of
from tests.driver import scope_of

async def main():
    lookup = LedgerAccounts(ledger_of(sys.argv[1]), "CNY")
    connection = HTTPConnection(scope_of())
    print((await lookup(sys.argv[2], connection)).recharged, flush=True)
    sys.stdin.readline()
    for _ in range(200):
        account = await lookup(sys.argv[2], connection)
        if account.recharged == "500":
            break
        await asyncio.sleep(0.01)
    print(account.recharged, flush=True)

asyncio.run(main())
"""


def test_another_process_sees_a_recharge(opened: Opened) -> None:
    async def go(book: LedgerBook) -> str:
        await book.create_account("acme")
        key = (await book.issue_key("acme")).key
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            LEVEL_UP,
            opened.uri,
            str(key),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            cwd=Path(__file__).parent.parent.parent,
        )
        assert child.stdout is not None
        assert await child.stdout.readline() == b"0\n"
        await book.recharge("acme", "500", reference="r")
        out, _ = await child.communicate(b"go\n")
        return out.decode()

    assert opened.run(go) == "500\n"
