"""What routes work with that stand in no stack: the same objects, by options and settings."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from starlette.types import Receive, Scope, Send

from inf_middleware.around import Around, Rules
from inf_middleware.billing import Ledgers
from inf_middleware.call.record import Parts
from inf_middleware.limiting import shared_store
from inf_middleware.sharing import Guest
from inf_middleware.stack import LEDGER, LIMITER, METER, Stack
from inf_middleware.tokens.counters import Counters


class Beside(Stack):
    """The options of routes that stand in no stack: the same objects, which they do not keep open.

    What no stack of the process uses is opened for them alone, and closed with the process.
    """

    def __init__(self, member: str, options: Mapping[str, Any]) -> None:
        super().__init__(_nothing)
        self._guest = Guest()
        self.add(member, (METER, LIMITER, LEDGER), options)

    @property
    def admin_key(self) -> str | None:
        """What callers of admin routes send."""
        key: str | None = self._option("admin_key")
        return key

    def around(self) -> Around:
        """Return what the options mean now; opens nothing."""
        parts, rules = self._fixed
        return Around(
            parts=parts,
            store=shared_store(self._option, self._guest).thing,
            ledger=Ledgers(self._guest).of(self._option("ledger")),
            rules=rules,
        )

    @cached_property
    def _fixed(self) -> tuple[Parts, Rules]:
        counters = Counters(self._option("counter"))  # which nothing here counts with
        parts = self._whole(Ledgers(self._guest), counters, None, None, None)
        return parts, self._rules(self._following(parts, lambda: None))


async def _nothing(scope: Scope, receive: Receive, send: Send) -> None:
    """Be the app of those that have none."""
