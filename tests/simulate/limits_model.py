"""What the limits promise, said plainly: every admission is kept, and counted anew each time.

Nothing here is taken from the stores: a list of admissions, each with what it holds, and the rule
of the last sixty seconds. Moments are microseconds of the store's clock.
"""

from dataclasses import dataclass, field
from typing import ClassVar

WINDOW_US = 60_000_000

# A store may let an admission leave so much later than it might (a slot of its window), never
# earlier.
GRAIN_US = 500_000

# A lease that was lost is remembered for as long; its settlement may be forgotten after it.
FORGET_US = 300_000_000


class Broken(AssertionError):  # noqa: N818 - what is said of a promise
    """A promise is broken; `seen` are all that were, for code in between may swallow one."""

    seen: ClassVar[list[str]] = []

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.seen.append(message)


@dataclass
class Admitted:
    """One admission, for as long as anything of it may count."""

    at: int
    until: int
    taken: int  # tokens that count from admission
    known: int  # reserved, or told beyond
    used: int = 0
    open: bool = True
    lost_at: int | None = None
    beyond: list[tuple[int, int]] = field(default_factory=list)  # tokens known later, and when


@dataclass(frozen=True)
class Bounds:
    """What one level allows."""

    concurrency: int
    requests: int
    tokens: int


class LimitsModel:
    """The accounts of one store."""

    def __init__(self) -> None:
        self.accounts: dict[str, dict[str, Admitted]] = {}
        self.refusals = 0
        self.admissions = 0

    def admit(
        self,
        now: int,
        account: str,
        call: str,
        tokens: int,
        bounds: Bounds,
        lease_us: int,
        *,
        admitted: bool,
        enforced: bool = True,
        wait_us: int = 0,
        full: bool = False,
    ) -> None:
        """Judge an answer of the store, and keep what it took."""
        calls = self._pass_time(account, now)
        if call in calls:
            if not admitted:
                raise Broken(f"{call} was refused what it has")
            return
        running, requests, used = self.counts(account, now)
        if admitted and enforced:
            if requests + 1 > bounds.requests:
                raise Broken(f"{account}: {requests} requests within a minute, and one more")
            if used + tokens > bounds.tokens:
                raise Broken(f"{account}: {used} + {tokens} tokens of {bounds.tokens}")
            if running + 1 > bounds.concurrency:
                raise Broken(f"{account}: {running} in progress, and one more")
        if not admitted:
            self.refusals += 1
            self._judge_refusal(now, account, tokens, bounds, running, wait_us, full)
            return
        self.admissions += 1
        calls[call] = Admitted(now, now + lease_us, tokens, tokens)

    def renew(self, now: int, account: str, call: str, used: int, lease_us: int) -> bool:
        """Lengthen a lease; tell whether it was still there."""
        one = self._pass_time(account, now).get(call)
        if one is None or not one.open:
            return False
        one.until = now + lease_us
        one.used = max(one.used, used)
        if used > one.known:
            one.beyond.append((now, used - one.known))
            one.known = used
        return True

    def settle(self, now: int, account: str, call: str, tokens: int | None) -> None:
        """End an admission with what it used."""
        one = self._pass_time(account, now).get(call)
        if one is None or one.known < 0:
            return
        forgotten = one.lost_at is not None and now - one.lost_at >= FORGET_US
        if tokens is not None and not forgotten:
            if tokens > one.known:
                one.beyond.append((now, tokens - one.known))
            else:
                one.taken -= min(one.taken, one.known - tokens)
        one.open = False
        one.known = -1  # settled: once

    def counts(self, account: str, now: int, window_us: int = WINDOW_US) -> tuple[int, int, int]:
        """Return requests in progress, and requests and tokens of the last minute."""
        running = requests = tokens = 0
        for one in self._pass_time(account, now).values():
            running += one.open
            if one.at > now - window_us:
                requests += 1
                tokens += one.taken
            tokens += sum(count for at, count in one.beyond if at > now - window_us)
        return running, requests, tokens

    def _judge_refusal(
        self,
        now: int,
        account: str,
        asked: int,
        bounds: Bounds,
        running: int,
        wait_us: int,
        full: bool,
    ) -> None:
        """A refusal has a reason, and the time that it tells is when that is over."""
        if full != (running >= bounds.concurrency):
            raise Broken(f"{account}: told full={full} with {running} of {bounds.concurrency}")
        if not wait_us:
            if not full:
                raise Broken(f"{account}: refused for nothing")
            return
        if asked > bounds.tokens:
            return  # more than a worker's share of an outage: told to come back after a window
        _, requests, tokens = self._later(account, now + wait_us, WINDOW_US)
        if requests + 1 > bounds.requests or tokens + asked > bounds.tokens:
            raise Broken(
                f"{account}: told to wait {wait_us} us, which is not enough: then there are"
                f" {requests} requests and {tokens} tokens, and {asked} are asked of {bounds}"
            )
        before = now + wait_us - 1
        _, requests, tokens = self._later(account, before, WINDOW_US + GRAIN_US)
        if requests + 1 <= bounds.requests and tokens + asked <= bounds.tokens:
            raise Broken(f"{account}: told to wait {wait_us} us, which is too long")

    def _later(self, account: str, moment: int, window_us: int) -> tuple[int, int, int]:
        # If nothing else of the account happens: what runs goes on.
        requests = tokens = 0
        for one in self.accounts.get(account, {}).values():
            if one.at > moment - window_us:
                requests += 1
                tokens += one.taken
            tokens += sum(count for at, count in one.beyond if at > moment - window_us)
        return 0, requests, tokens

    def _pass_time(self, account: str, now: int) -> dict[str, Admitted]:
        calls = self.accounts.setdefault(account, {})
        gone = []
        for call, one in calls.items():
            if one.open and one.until <= now:
                one.open, one.lost_at = False, now
                one.taken -= min(one.taken, one.known - one.used)
                one.known = one.used
            latest = max([one.at, *(at for at, _ in one.beyond)])
            settled = one.known < 0 or (one.lost_at is not None and now - one.lost_at > FORGET_US)
            if not one.open and settled and latest <= now - WINDOW_US - GRAIN_US:
                gone.append(call)
        for call in gone:
            del calls[call]
        return calls
