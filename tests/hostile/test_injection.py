"""Names that look like statements, scripts or lines are names: in books, limits and headers."""

import asyncio
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from inf_middleware import Account, Gate
from inf_middleware.accounts.header import HeaderAccounts
from inf_middleware.ledgers.book import LedgerBook
from inf_middleware.ledgers.steps import Ask, Steps
from inf_middleware.ledgers.uris import ledger_of
from tests.apps import JsonApp, completion, usage_of
from tests.driver import post
from tests.kit import CHAT, Closing, House, lifespan_through
from tests.ledgers.postgres_server import serving_postgres
from tests.redis_servers import redis_server

NAMES = [
    "'; DROP TABLE request; --",
    '"; DELETE FROM posting; --',
    "x' OR '1'='1",
    "$1; COMMIT; --",
    "%s %(id)s {0} {id} ${id}",
    "' .. redis.call('FLUSHALL') .. '",
    "]] redis.call('FLUSHALL') --",
    "{other}:inf",
    "*\r\n$8\r\nFLUSHALL\r\n",
    "acme\nINFO forged line",
    "acme\r\nx-forged: 1",
    "\u2028forged",
    "\x1b[2J\x07",
    "../../etc/passwd",
    "\\x27; \\u0000",
    "<script>alert(1)</script>",
]
LINE = re.compile(r"[\r\n\x00-\x1f\x7f\u0085\u2028\u2029]")


async def shut_down(app: Any) -> None:
    messages = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    async def send(message: dict[str, Any]) -> None:
        assert message["type"].endswith(".complete"), message

    await lifespan_through(app, receive, send)


@pytest.fixture(scope="module")
def uris() -> Iterator[dict[str, str]]:
    with serving_postgres() as postgres, redis_server() as redis:
        yield {"postgres": postgres.uri(), "redis": redis.uri}


@pytest.mark.parametrize("books", ["sqlite", "postgres"])
def test_accounts_and_models_of_any_name_are_kept_apart_and_harm_nothing(
    books: str, uris: dict[str, str], tmp_path: Path
) -> None:
    ledger = f"sqlite:///{tmp_path}/ledger.db" if books == "sqlite" else uris["postgres"]
    accounts = {f"sk-{n}": Account(name, tier="tier1") for n, name in enumerate(NAMES)}
    gate = Gate(
        Closing(JsonApp(completion(usage=usage_of(9, 2)))),
        accounts=accounts,
        ledger=ledger,
        storage=uris["redis"],
        deployment=f"injected-{books}",
    )

    async def calls() -> list[str]:
        remaining = []
        for number, name in enumerate(NAMES):
            body = {**CHAT, "model": name, "user": name}
            headers = [("idempotency-key", f"' OR 1=1 --{number}")]
            for again in (0, 1):
                given = headers if again == 0 else []
                answered = await post(gate, body, key=f"sk-{number}", headers=given)
                assert answered.status == 200, answered.body
            remaining.append(answered.headers["x-ratelimit-remaining-requests"])
        await shut_down(gate)
        return remaining

    async def kept() -> list[tuple[str, str, int]]:
        def select() -> Steps[list[Any]]:
            found = yield Ask("SELECT account, model, input_tokens FROM request ORDER BY seq", ())
            return [tuple(row) for row in found]

        async with LedgerBook(ledger_of(ledger)) as book:
            rows: list[tuple[str, str, int]] = await book.ledger.read(select)
            return rows

    # Each has used two of its own twenty: no name has touched the limits of another.
    assert asyncio.run(calls()) == ["18"] * len(NAMES)
    rows = asyncio.run(kept())
    assert rows == [(name, name, 9) for name in NAMES for _ in range(2)]


@pytest.mark.parametrize("name", NAMES)
def test_no_name_of_a_caller_makes_a_header_or_a_line_of_the_log(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "inf_middleware")
    accounts = {"sk-one": Account(name, tier="Free")}
    model = JsonApp(completion(usage=usage_of(9, 2)))
    house = House(model, tmp_path, accounts=accounts, log_calls=True, help_url="https://x.test/")

    async def calls() -> list[tuple[int, list[tuple[bytes, bytes]]]]:
        answers: list[tuple[int, list[tuple[bytes, bytes]]]] = []
        for path in ("/v1/chat/completions", "/v1/messages", "/api/chat", "/odd/" + name):
            for key in ("sk-one", "sk-one", "sk-none" + path):
                answered = await post(house.app, {**CHAT, "model": name}, key=key)
                answers.append((answered.status, answered.header_list))
        await house.close()
        return answers

    answers = asyncio.run(calls())
    assert {status for status, _ in answers} == {200, 401, 429}
    for _, headers in answers:
        for field, value in headers:
            assert re.fullmatch(rb"[a-z0-9-]+", field), field
            assert not LINE.search(value.decode("latin-1")), value
            assert b"forged" not in field + value
    for record in caplog.records:
        assert not LINE.search(record.getMessage()), record.getMessage()


@pytest.mark.parametrize("name", NAMES)
def test_an_account_that_a_gateway_names_is_that_account_or_nobody(
    name: str, tmp_path: Path
) -> None:
    accounts = HeaderAccounts("x-account", trusted=["127.0.0.1"], tier="tier1")
    house = House(JsonApp(completion(usage=usage_of(9, 2))), tmp_path, accounts=accounts)

    async def go() -> int:
        try:
            return (await post(house.app, CHAT, headers=[("x-account", name)])).status
        finally:
            await house.close()

    status: Any = asyncio.run(go())
    assert status in (200, 401)
    assert [record["account"] for record in house.records] == [name] * (status == 200)
    if LINE.search(name):
        assert status == 401
