"""What of ours stands around a route: the objects that decide, for routes that show or change them.

A worker puts it into the scope of the requests that it lets pass.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import tzinfo
from typing import Any

from starlette.types import Scope

from inf_middleware.call.record import STACKS_KEY, Parts
from inf_middleware.domain.prices import Prices
from inf_middleware.domain.tiers import Tiers
from inf_middleware.files import TableFile
from inf_middleware.ports import LimitStore


@dataclass(frozen=True, slots=True)
class Rules:
    """What options say beside the parts; tables in files change.

    `touch` is told of each request, and may have it wait, as in a worker.
    """

    mode: str
    zone: tzinfo
    tiers: Tiers | TableFile[Tiers] | None
    prices: Prices | TableFile[Prices] | None
    touch: Callable[[], Awaitable[None] | None]


@dataclass(frozen=True, slots=True)
class Around:
    """What a stack works with.

    `store` is None where nothing is limited. `ledger` is the one that is kept, without spool and
    relay before it; None where nothing is billed.
    """

    parts: Parts
    store: LimitStore | None
    ledger: Any
    rules: Rules

    async def in_force(self) -> "Around":
        """Return the same with the levels and prices that hold now."""
        fresh = self.rules.touch()
        if fresh is not None:
            await fresh
        tiers, prices = self.rules.tiers, self.rules.prices
        parts = replace(
            self.parts,
            tiers=tiers.value if isinstance(tiers, TableFile) else self.parts.tiers,
            prices=prices.value if isinstance(prices, TableFile) else self.parts.prices,
        )
        return replace(self, parts=parts)


def around(scope: Scope) -> Around | None:
    """Return what stands around a request; None where nothing of ours does.

    Of several stacks, apart by something opaque, each adds what those further out do not have, and
    configured accounts beat network addresses.
    """
    stacks: tuple[Around, ...] = scope.get(STACKS_KEY, ())
    if not stacks:
        return None
    whole = stacks[0]
    for stack in stacks[1:]:
        parts, rules = whole.parts, whole.rules
        if stack.parts.names_accounts and not parts.names_accounts:
            parts = replace(parts, lookup=stack.parts.lookup, names_accounts=True)
        if whole.store is None and stack.store is not None:
            parts = replace(parts, tiers=stack.parts.tiers)
            rules = replace(rules, tiers=stack.rules.tiers)
            whole = replace(whole, store=stack.store)
        if whole.ledger is None and stack.ledger is not None:
            parts = replace(parts, prices=stack.parts.prices)
            rules = replace(
                rules, prices=stack.rules.prices, mode=stack.rules.mode, zone=stack.rules.zone
            )
            whole = replace(whole, ledger=stack.ledger)
        whole = replace(whole, parts=parts, rules=rules)
    return whole
