"""The operator of a soak: accounts, keys, recharges and levels, in the ledger while all runs."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from inf_middleware.domain.errors import LedgerUnavailable
from inf_middleware.domain.money import NANO
from inf_middleware.ledgers.book import LedgerBook
from inf_middleware.ledgers.uris import ledger_of
from tests.soak.load import Buyer

T = TypeVar("T")

# A database that is started again is there within seconds; a machine under load takes longer.
_PATIENCE_S = 120.0

# For each stack some accounts that carry the load, one that is on the lowest level, and one that
# moves: from a level to the next by recharges, or out of money and back.
_WIDE = 4
_CLIMBER, _POOR = "postpaid-climber", "prepaid-poor"
_LEVELS = ("Tier1", "Tier2", "Tier3", "Tier5")


class Operator:
    """Keeps the accounts of a ledger, however often that is away meanwhile."""

    def __init__(self, ledger_uri: str) -> None:
        self.book = LedgerBook(ledger_of(ledger_uri))
        self.recharged: Counter[str] = Counter()  # yuan
        self._references = 0

    async def open_accounts(self) -> list[Buyer]:
        """Make all accounts, and return who may ask."""
        buyers = []
        for prepaid in (False, True):
            mode = "prepaid" if prepaid else "postpaid"
            for number in range(_WIDE):
                account = f"{mode}-{number}"
                await self.recharge(account, 200_000)
                buyers.append(await self._buyer(account, prepaid))
            free = f"{mode}-free"
            await self.book.create_account(free)
            await self.book.grant(free, "10", reference=f"start of {free}")
            buyers.append(await self._buyer(free, prepaid))
        await self.book.create_account(_CLIMBER)
        await self.book.create_account(_POOR, tier="Tier5")
        buyers += [await self._buyer(_CLIMBER, False), await self._buyer(_POOR, True)]
        return buyers

    async def recharges(self, choice: float) -> None:
        """Money comes in: for who climbs by it, and for who has run out of it."""
        await self.recharge(_CLIMBER, 100 + round(choice * 900))
        self._references += 1
        reference = f"grant {self._references}"
        await self._until_done(lambda: self.book.grant(_POOR, "0.05", reference=reference))

    async def changes_levels(self, choice: float) -> None:
        """Pin the level of an account that carries load, and let go of that of another."""
        level = _LEVELS[int(choice * len(_LEVELS))]
        await self._until_done(lambda: self.book.set_account("postpaid-0", tier=level))
        await self._until_done(lambda: self.book.set_account("prepaid-0", tier=None))

    async def recharge(self, account: str, yuan: int) -> None:
        """Book a recharge, again until it is known to be booked: once, by its reference."""
        self._references += 1
        reference = f"recharge {self._references}"
        await self._until_done(lambda: self.book.recharge(account, yuan, reference=reference))
        self.recharged[account] += yuan

    async def differences(self) -> list[str]:
        """Say which accounts have more or less recharged than was booked."""
        found = []
        for account, yuan in self.recharged.items():
            record = await self.book.account(account)
            if record is None or record.recharged_nano != yuan * NANO:
                found.append(f"¥{yuan} were recharged to {account}, and it has {record}")
        return found

    async def aclose(self) -> None:
        """Let go of the ledger."""
        await self.book.aclose()

    async def _buyer(self, account: str, prepaid: bool) -> Buyer:
        key = (await self.book.issue_key(account)).key
        assert key is not None
        return Buyer(account, key, prepaid)

    async def _until_done(self, do: Callable[[], Awaitable[Any]]) -> None:
        async with asyncio.timeout(_PATIENCE_S):
            while True:
                try:
                    await do()
                except LedgerUnavailable:
                    await asyncio.sleep(0.5)
                else:
                    return
