"""What a ledger does, whatever the database: each method is steps that the database runs."""

import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Mapping, Sequence
from pathlib import Path

from inf_middleware.domain.books import Claim, Claimed
from inf_middleware.domain.events import BillingEvent
from inf_middleware.domain.tiers import Account
from inf_middleware.ledgers import holds, looking, outbox
from inf_middleware.ledgers.heart import Heart
from inf_middleware.ledgers.settling import forget_probes, is_recorded, write_probe
from inf_middleware.ledgers.steps import T, Work
from inf_middleware.ports import Attempt, Backlog, Replay


class LedgerBase(ABC):
    """Keeps records, postings and events in one database, and is its own outbox.

    Nothing is opened before the first use. `spool_directory` is where bills are kept on this host
    while it is away.
    """

    spool_directory: Path
    _heart: Heart

    @property
    @abstractmethod
    def commits(self) -> int:
        """How many transactions this process has committed."""

    @property
    @abstractmethod
    def generation(self) -> int:
        """Grows with each commit of this process."""

    @abstractmethod
    def settle(self, event: BillingEvent) -> Awaitable[None]:
        """Hand over a settlement at once; the awaitable ends when it is durable.

        Raises:
            LedgerUnavailable: From the awaitable; nothing was recorded.
        """

    @abstractmethod
    def transact(self, work: Work[T]) -> Awaitable[T]:
        """Hand over work at once; the awaitable ends with its result, when that is durable.

        Raises:
            LedgerUnavailable: From the awaitable; nothing was recorded.
        """

    @abstractmethod
    async def read(self, work: Work[T]) -> T:
        """Run steps that only read.

        Raises:
            LedgerUnavailable: The ledger cannot be read.
        """

    @abstractmethod
    async def check(self) -> None:
        """See that the ledger is there, and of this version; nothing is made or changed.

        Raises:
            LedgerUnavailable: It is not.
        """

    @abstractmethod
    async def migrate(self) -> tuple[int, int]:
        """Bring a ledger that is there to this version; return its version before and now.

        Raises:
            LedgerUnavailable: It is not there, is no ledger, or a newer one.
        """

    @abstractmethod
    async def elect(self, sink: str) -> bool:
        """Become, or stay, the one who delivers to a sink; False while another process is it."""

    @abstractmethod
    async def resign(self, sink: str) -> None:
        """Let another process deliver to a sink."""

    @abstractmethod
    async def wait(self, generation: int, timeout_s: float) -> None:
        """Return when this process has committed since `generation`, or after `timeout_s`."""

    @abstractmethod
    async def aclose(self) -> None:
        """Finish what was handed over, and close; the next use opens anew."""

    async def hold(
        self, event: BillingEvent, amount_nano: int, credit_limit_nano: int, spare_nano: int = 0
    ) -> int | None:
        """Hold an amount for a call; return None, or what is available where that is less.

        `spare_nano` is no part of what is available.
        """
        owner, now_ms = self._heart.owner(), self._heart.now_ms  # told only once it is connected
        return await self.transact(
            lambda: holds.hold(event, amount_nano, credit_limit_nano, owner, now_ms(), spare_nano)
        )

    async def extend(self, event: BillingEvent, amount_nano: int) -> int | None:
        """Hold more for a call, and move its checkpoint to `event`."""
        return await self.transact(lambda: holds.extend(event, amount_nano))

    async def claim(self, claimed: Claim) -> Claimed:
        """Claim a client's key for a request, or say whose it is."""
        owner, now_ms, now_ns = self._heart.owner(), self._heart.now_ms, time.time_ns()
        return await self.transact(lambda: holds.claim_for(claimed, owner, now_ms(), now_ns))

    async def void(self, request_id: str) -> None:
        """End a hold and a claim without a bill; one recorded all the same is taken back."""
        now_ns = time.time_ns()
        await self.transact(lambda: holds.void(request_id, now_ns))

    async def probe(self) -> None:
        """See that something can be made durable.

        Raises:
            LedgerUnavailable: It cannot.
        """
        owner = self._heart.owner()
        await self.transact(lambda: write_probe(owner))
        await self.transact(forget_probes)

    async def is_recorded(self, request_id: str) -> bool:
        """Tell whether a call's bill is there."""
        return await self.read(lambda: is_recorded(request_id))

    async def accounts_version(self) -> int:
        """Return the number that grows with every change of accounts, keys and recharges."""
        return await self.read(looking.accounts_version)

    async def account_of_key(self, sha256: str, currency: str) -> tuple[int, Account | None]:
        """Return the account of a key that is in force, and the version it is of."""
        return await self.read(lambda: looking.account_of_key(sha256, currency))

    async def pending(self, sink: str, count_max: int) -> Sequence[tuple[int, BillingEvent]]:
        """Return the next events after a sink's cursor; a new sink begins with the oldest."""
        return await self.read(lambda: outbox.pending(sink, count_max))

    async def backlog(self, sink: str) -> Backlog:
        """Return how much waits for a sink, at once."""
        return await self.read(lambda: outbox.backlog(sink))

    async def advance(self, sink: str, place: int, rejected: Mapping[str, str]) -> None:
        """Move a sink's cursor, durably; `rejected` events go to the dead letters."""
        await self.transact(lambda: outbox.advance(sink, place, rejected))

    async def attempt(self, sink: str) -> Attempt | None:
        """Return what `begin` wrote last."""
        return await self.read(lambda: outbox.attempt(sink))

    async def begin(self, sink: str, attempt: Attempt) -> None:
        """Write down, durably, that a delivery begins."""
        await self.transact(lambda: outbox.begin(sink, attempt))

    async def replay(self, sink: str, count_max: int) -> Replay | None:
        """Return the next events that are to be sent once more."""
        return await self.read(lambda: outbox.replay(sink, count_max))

    async def replayed(self, sink: str, replay: Replay, rejected: Mapping[str, str]) -> None:
        """Go on after `replay`."""
        await self.transact(lambda: outbox.replayed(sink, replay, rejected))
