"""What an account has used in its last days, by day and by model, remembered for a while.

A day is read at a time, so that look-ups of keys, which share the ledger's reader, wait for no more
than one. Days that are over are read again only now and then: a bill that was spooled may still
come.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta, tzinfo
from functools import reduce
from weakref import WeakSet

from inf_middleware.domain.moments import written
from inf_middleware.ledgers import reports
from inf_middleware.ledgers.base import LedgerBase
from inf_middleware.ledgers.reports import Period, UsageRow

# A month and no more: what a person looks at, and what an index of an account finds quickly.
DAYS = 30

# For so long a report is given again, however often somebody asks: soon enough for who looks again
# after a request.
FRESH_S = 1.0

# And for so many times as long as reading its last day took, which is what is read anew: an account
# takes 1/20 of the reader's time.
REST_PER_READING = 20.0
FRESH_S_MAX = 300.0

# How long days that are over are believed.
PAST_S = 600.0

# Accounts whose reports are remembered, those that were asked for longest ago forgotten first: some
# 10 KB each.
ACCOUNTS_MAX = 1_024

# Models of a day that are told apart. Names come from callers, and may be any.
MODELS_MAX = 100


@dataclass(frozen=True, slots=True)
class Sums:
    """Sums over calls; `amount_nano` is less what was credited."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    amount_nano: int = 0

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(
            self.requests + other.requests,
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.amount_nano + other.amount_nano,
        )

    @property
    def total_tokens(self) -> int:
        """Input and output."""
        return self.input_tokens + self.output_tokens


# The key of calls without a model, and of all models beyond `MODELS_MAX`.
OTHERS = None

ByModel = dict[str | None, Sums]


@dataclass(frozen=True, slots=True)
class Usage:
    """Sums by day, oldest first, days without calls included, and by model, dearest first."""

    by_day: tuple[tuple[date, Sums], ...]
    by_model: tuple[tuple[str | None, Sums], ...]

    @property
    def total(self) -> Sums:
        """All of it."""
        return reduce(Sums.__add__, (sums for _, sums in self.by_day), Sums())


@dataclass(frozen=True, slots=True)
class Whose:
    """Whose usage, in which ledger, currency and time zone."""

    ledger: LedgerBase
    account: str
    currency: str
    zone: tzinfo

    @property
    def key(self) -> Hashable:
        """What tells it from others."""
        return (id(self.ledger), self.account, self.currency, str(self.zone))


@dataclass(frozen=True, slots=True)
class _Kept:
    """A report; `past` are the days that are over, read at `past_at`."""

    ledger: LedgerBase  # held, so that its id is not given to another
    usage: Usage
    until: float
    past: dict[date, ByModel]
    past_at: float


class Usages:
    """Reads reports, one at a time per account; `clock` is in seconds, `now` the moment it is."""

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[tzinfo], datetime] = datetime.now,
        accounts_max: int = ACCOUNTS_MAX,
    ) -> None:
        self._accounts_max = accounts_max
        self._clock = clock
        self._now = now
        self._kept: OrderedDict[Hashable, _Kept] = OrderedDict()
        self._there: WeakSet[LedgerBase] = WeakSet()
        self._reading: dict[Hashable, asyncio.Task[Usage]] = {}

    def __len__(self) -> int:
        """How many accounts are remembered."""
        return len(self._kept)

    async def of(self, whose: Whose) -> Usage:
        """Return what an account has used in the last days, today included.

        Raises:
            LedgerUnavailable: The ledger cannot be read.
        """
        kept = self._kept.get(whose.key)
        if kept is not None and self._clock() < kept.until:
            self._kept.move_to_end(whose.key)
            return kept.usage
        place = (whose.key, asyncio.get_running_loop())
        task = self._reading.get(place)
        if task is None:
            task = self._reading[place] = asyncio.create_task(self._read(whose, kept))
            task.add_done_callback(lambda done: self._has_read(place, done))
        return await asyncio.shield(task)  # others may wait for it too

    async def is_there(self, ledger: LedgerBase) -> None:
        """See that there is a ledger to read, once.

        Raises:
            LedgerUnavailable: There is none, or it cannot be read.
        """
        if ledger not in self._there:
            await ledger.check()
            self._there.add(ledger)

    def _has_read(self, place: Hashable, task: asyncio.Task[Usage]) -> None:
        self._reading.pop(place, None)
        if not task.cancelled():
            task.exception()  # told to those who wait, of whom there may be none any more

    async def _read(self, whose: Whose, kept: _Kept | None) -> Usage:
        began = self._clock()
        today = self._now(whose.zone).date()
        days = [today - timedelta(days=back) for back in reversed(range(DAYS))]
        past: dict[date, ByModel] = {}
        past_at = began
        if kept is not None and began < kept.past_at + PAST_S:
            past, past_at = kept.past, kept.past_at
        read = {day: past[day] if day in past else await _day(whose, day) for day in days[:-1]}
        last = self._clock()
        read[today] = await _day(whose, today)
        usage = _summed(read)
        now = self._clock()
        fresh_s = min(max(FRESH_S, REST_PER_READING * (now - last)), FRESH_S_MAX)
        del read[today]
        self._kept[whose.key] = _Kept(whose.ledger, usage, now + fresh_s, read, past_at)
        self._kept.move_to_end(whose.key)
        if len(self._kept) > self._accounts_max:
            self._kept.popitem(last=False)
        return usage


async def _day(whose: Whose, day: date) -> ByModel:
    after = day + timedelta(days=1)
    period = Period(*(written(_midnight(one, whose.zone)) for one in (day, after)))
    rows = await whose.ledger.read(
        lambda: reports.usage(["model"], account=whose.account, period=period)
    )
    return _by_model([row for row in rows if row.currency == whose.currency])


def _midnight(day: date, zone: tzinfo) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=zone)


def _by_model(rows: Sequence[UsageRow]) -> ByModel:
    summed: ByModel = {}
    for row in rows:  # dearest first
        model = row.model if len(summed) < MODELS_MAX else OTHERS
        sums = Sums(row.requests, row.input_tokens, row.output_tokens, row.amount_nano)
        summed[model] = summed.get(model, Sums()) + sums
    return summed


def _summed(days: dict[date, ByModel]) -> Usage:
    models: ByModel = {}
    by_day = []
    for day, by_model in days.items():
        for model, sums in by_model.items():
            models[model] = models.get(model, Sums()) + sums
        by_day.append((day, reduce(Sums.__add__, by_model.values(), Sums())))
    dearest = sorted(
        models.items(), key=lambda one: (-one[1].amount_nano, -one[1].total_tokens, one[0] or "")
    )
    return Usage(tuple(by_day), tuple(dearest))


def most_used(usage: Usage, count_max: int) -> tuple[tuple[str | None, Sums], ...]:
    """Return the models that cost most, at most so many, and what is left of them as one."""
    named = [one for one in usage.by_model if one[0] is not OTHERS]
    shown = named[:count_max]
    rest = [sums for model, sums in usage.by_model if model is OTHERS]
    rest += [sums for _, sums in named[count_max:]]
    if rest:
        shown.append((OTHERS, reduce(Sums.__add__, rest, Sums())))
    return tuple(shown)
