"""The ledgers that one contract suite runs over."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from inf_middleware.ledgers.book import LedgerBook
from inf_middleware.ledgers.steps import Ask, Steps
from inf_middleware.ledgers.uris import ledger_of
from tests.ledgers.postgres_server import PostgresServer, serving_postgres


class Opened:
    """A ledger of its own for one test, on a clock that is moved by hand."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.now_ns = 2_200_000_000_000_000_000  # later than the beats of real clocks

    def book(self) -> LedgerBook:
        return LedgerBook(ledger_of(self.uri), now_ns=lambda: self.now_ns)

    def run(self, go: Callable[[LedgerBook], Awaitable[Any]]) -> Any:
        """Run one story on an event loop of its own; opens before, closes after."""

        async def story() -> Any:
            async with self.book() as book:
                return await go(book)

        return asyncio.run(story())

    def rows(self, sql: str, *params: Any) -> list[tuple[Any, ...]]:
        def steps() -> Steps[list[Any]]:
            return [tuple(row) for row in (yield Ask(sql, params))]

        async def go(book: LedgerBook) -> Any:
            return await book.ledger.read(steps)

        found: list[tuple[Any, ...]] = self.run(go)
        return found


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    with serving_postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgres"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Opened:
    if request.param == "sqlite":
        return Opened(f"sqlite:///{tmp_path}/ledger.db")
    server: PostgresServer = request.getfixturevalue("postgres")
    return Opened(server.uri())
