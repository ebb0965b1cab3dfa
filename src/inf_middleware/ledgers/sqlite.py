"""The ledger in an SQLite file: one writer thread per process, group commit, strict durability.

All workers of a host share the file.
"""

import time
from collections.abc import Awaitable, Mapping, Sequence
from pathlib import Path

from inf_middleware.domain.books import Claim, Claimed
from inf_middleware.domain.errors import ConfigError, LedgerUnavailable
from inf_middleware.domain.events import BillingEvent
from inf_middleware.domain.tiers import Account
from inf_middleware.ledgers import holds, outbox
from inf_middleware.ledgers.connection import SCHEMA_VERSION, connect_to_read, version_of
from inf_middleware.ledgers.election import RelayLock
from inf_middleware.ledgers.heart import Heart
from inf_middleware.ledgers.looking import account_of_key, accounts_version
from inf_middleware.ledgers.reading import Reader
from inf_middleware.ledgers.rows import rows_of
from inf_middleware.ledgers.settling import writing_nothing
from inf_middleware.ledgers.steps import T, Work
from inf_middleware.ledgers.writer import Writer
from inf_middleware.ports import Attempt, Replay


class SqliteLedger:
    """Keeps records, postings and events in one file, and is its own outbox.

    Nothing is opened before the first use. `commits` counts the transactions of this process.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.spool_directory = Path(f"{path}.spool")
        self._relay_lock = RelayLock(Path(f"{self.path}.relay"))
        self._heart = Heart()
        self._writer = Writer(self.path, self._heart.beat, holds.BEAT_S)
        self._reader = Reader(self.path)

    @classmethod
    def from_uri(cls, uri: str) -> "SqliteLedger":
        """Make a ledger from "sqlite:///relative.db" or "sqlite:////absolute.db".

        Raises:
            ConfigError: It is neither.
        """
        path = uri.removeprefix("sqlite:///")
        if path == uri or not path or path == ":memory:" or path.endswith("/"):
            raise ConfigError(
                f'ledger is {uri!r}; write "sqlite:///inf-ledger.db" for a file in the working'
                ' directory, or "sqlite:////var/lib/inf-ledger.db"'
            )
        return cls(path)

    @property
    def commits(self) -> int:
        """How many transactions this process has committed."""
        return self._writer.commits

    @property
    def generation(self) -> int:
        """Grows with each commit of this process."""
        return self._writer.generation

    def settle(self, event: BillingEvent) -> Awaitable[None]:
        """Hand over a settlement at once; the awaitable ends when it is durable.

        Raises:
            LedgerUnavailable: From the awaitable; nothing was recorded.
        """
        try:
            rows = rows_of(event)
        except (ValueError, TypeError, OverflowError) as error:
            return _failing(LedgerUnavailable(f"{event.id} cannot be recorded: {error}"))
        return self._writer.submit(rows)

    def transact(self, work: Work[T]) -> Awaitable[T]:
        """Hand over work at once; the awaitable ends with its result, when that is durable.

        Raises:
            LedgerUnavailable: From the awaitable; nothing was recorded.
        """
        return self._writer.submit(work)

    async def read(self, work: Work[T]) -> T:
        """Run steps that only read.

        Raises:
            LedgerUnavailable: The file cannot be read.
        """
        return await self._reader.run(work)

    async def hold(
        self, event: BillingEvent, amount_nano: int, credit_limit_nano: int
    ) -> int | None:
        """Hold an amount for a call; return None, or what is available where that is less."""
        owner = self._heart.owner()
        return await self.transact(
            lambda: holds.hold(event, amount_nano, credit_limit_nano, owner, self._heart.now_ms())
        )

    async def extend(self, event: BillingEvent, amount_nano: int) -> int | None:
        """Hold more for a call, and move its checkpoint to `event`."""
        return await self.transact(lambda: holds.extend(event, amount_nano))

    async def claim(self, claimed: Claim) -> Claimed:
        """Claim a client's key for a request, or say whose it is."""
        owner, now_ms, now_ns = self._heart.owner(), self._heart.now_ms(), time.time_ns()
        return await self.transact(lambda: holds.claim_for(claimed, owner, now_ms, now_ns))

    async def void(self, request_id: str) -> None:
        """End a hold and a claim without a bill."""
        await self.transact(lambda: holds.void(request_id))

    async def probe(self) -> None:
        """See that something can be made durable.

        Raises:
            LedgerUnavailable: It cannot.
        """
        await self.transact(writing_nothing)

    def check(self) -> None:
        """See that the ledger is there, and of this version; nothing is made or changed.

        Raises:
            LedgerUnavailable: It is not.
        """
        connect_to_read(self.path).close()

    async def migrate(self) -> tuple[int, int]:
        """Bring a ledger that is there to this version; return its version before and now.

        Raises:
            LedgerUnavailable: It is not there, is no ledger, or a newer one.
        """
        before = version_of(self.path)
        await self.read(accounts_version)
        return before, SCHEMA_VERSION

    async def accounts_version(self) -> int:
        """Return the number that grows with every change of accounts, keys and recharges."""
        return await self.read(accounts_version)

    async def account_of_key(self, sha256: str, currency: str) -> tuple[int, Account | None]:
        """Return the account of a key that is in force, and the version it is of."""
        return await self.read(lambda: account_of_key(sha256, currency))

    async def elect(self) -> bool:
        """Become, or stay, the one relay of this file; False while another process is it."""
        run, lock = self._writer.run_job, self._relay_lock
        return lock.held or bool(await run(lambda _: lock.take()))

    async def pending(self, sink: str, count_max: int) -> Sequence[tuple[int, BillingEvent]]:
        """Return the next events after a sink's cursor; a new sink begins with the oldest."""
        rows = await self._writer.run_job(lambda db: outbox.pending(db, sink, count_max))
        return [(seq, BillingEvent.decode(body)) for seq, body in rows]

    async def advance(self, sink: str, place: int, rejected: Mapping[str, str]) -> None:
        """Move a sink's cursor, durably; `rejected` events go to the dead letters."""
        await self._writer.run_job(lambda db: outbox.advance(db, sink, place, rejected))

    async def attempt(self, sink: str) -> Attempt | None:
        """Return what `begin` wrote last."""
        found: Attempt | None = await self._writer.run_job(lambda db: outbox.attempt(db, sink))
        return found

    async def begin(self, sink: str, attempt: Attempt) -> None:
        """Write down, durably, that a delivery begins."""
        await self._writer.run_job(lambda db: outbox.begin(db, sink, attempt))

    async def replay(self, sink: str, count_max: int) -> Replay | None:
        """Return the next events that are to be sent once more."""
        run = self._writer.run_job
        found: Replay | None = await run(lambda db: outbox.replay(db, sink, count_max))
        return found

    async def replayed(self, sink: str, replay: Replay, rejected: Mapping[str, str]) -> None:
        """Go on after `replay`."""
        await self._writer.run_job(lambda db: outbox.replayed(db, sink, replay, rejected))

    async def wait(self, generation: int, timeout_s: float) -> None:
        """Return when this process has committed since `generation`, or after `timeout_s`."""
        await self._writer.wait(generation, timeout_s)

    async def aclose(self) -> None:
        """Finish what was handed over, and close; the next use opens anew."""
        await self._reader.aclose()
        await self._writer.aclose()
        self._relay_lock.release()


async def _failing(failure: LedgerUnavailable) -> None:
    raise failure
