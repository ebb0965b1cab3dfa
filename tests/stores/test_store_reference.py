"""Every store decides as one that keeps every event of an account."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inf_middleware import Tier
from inf_middleware.domain.limits import Admission
from inf_middleware.domain.rates import LimitGroup, Rate
from tests.stores.backends import LARGE, SMALL, Driver

# Its own tokens count over two times, "own" has tokens of its own and "alone" its requests, too: so
# of each account's two groups one may have no tokens rate, and one level lacks a rate of another.
MIXED = Tier(
    "Mixed",
    4,
    8,
    3_000,
    tokens=["4000/3 minute"],
    models={
        "own": {"tokens_per_minute": 2_000},
        "alone": {"concurrency": 2, "requests_per_minute": 3},
    },
)

STEP = st.tuples(
    st.sampled_from(["admit", "admit", "settle", "renew", "wait"]),
    st.sampled_from(["a", "b"]),
    st.sampled_from([(SMALL, ""), (LARGE, ""), (MIXED, ""), (MIXED, "own"), (MIXED, "alone")]),
    st.integers(0, 1_500),
    st.sampled_from([0.001, 0.2, 0.5, 3.0, 20.0, 29.9, 59.5, 60.0]),
)

# A window of an account: the scope of its group, its metric and its length.
Counted = tuple[str, str, int]


class Reference:
    """Keeps every event of an account: what is added counts until its window after its slot's."""

    def __init__(self) -> None:
        self.added: dict[Counted, list[tuple[int, list[int]]]] = defaultdict(list)  # us, [amount]
        self.leases: dict[str, dict[str, Any]] = {}

    def total(self, of: Counted, now: int) -> int:
        slot_us = of[2] // 120
        latest: dict[int, int] = {}
        for moment, _ in self.added[of]:
            latest[moment // slot_us] = moment
        return sum(a[0] for m, a in self.added[of] if latest[m // slot_us] + of[2] > now)

    def add(self, of: Counted, amount: int, now: int) -> list[int]:
        entry = [amount]
        if amount:
            self.added[of].append((now, entry))
        return entry

    def fits(self, groups: Sequence[LimitGroup], tokens: int, now: int) -> bool:
        return all(
            (group.concurrency is None or self.running(group.scope) < group.concurrency)
            and all(
                self.total(of, now) + (1 if of[1] == "requests" else tokens) <= rate.limit
                for of, rate in windows_of(group)
            )
            for group in groups
        )

    def admit(self, call: str, groups: Sequence[LimitGroup], tokens: int, now: int) -> None:
        entries = {}
        for group in groups:
            for of, _ in windows_of(group):
                entry = self.add(of, 1 if of[1] == "requests" else tokens, now)
                if of[1] == "tokens":
                    entries[of] = entry
        self.leases[call] = {
            "slots": [group.scope for group in groups if group.scope or group.concurrency],
            "entries": entries,
            "reserved": tokens,
            "used": 0,
            "until": now + 30_000_000,
            "lost": False,
        }

    def remaining(self, groups: Sequence[LimitGroup], metric: str, now: int) -> int:
        rated = [one for group in groups for one in windows_of(group)]
        return max(
            min(rate.limit - self.total(of, now) for of, rate in rated if of[1] == metric), 0
        )

    def correct(self, lease: dict[str, Any], tokens: int, now: int) -> None:
        for of, entry in lease["entries"].items():
            if tokens < lease["reserved"]:
                entry[0] -= min(lease["reserved"] - tokens, entry[0])
            else:
                self.add(of, tokens - lease["reserved"], now)
        lease["reserved"] = tokens

    def expire(self, now: int) -> None:
        for lease in self.leases.values():
            if not lease["lost"] and lease["until"] <= now:
                self.correct(lease, lease["used"], now)
                lease["lost"] = True

    def running(self, scope: str) -> int:
        return sum(scope in one["slots"] and not one["lost"] for one in self.leases.values())


def windows_of(group: LimitGroup) -> list[tuple[Counted, Rate]]:
    return [((group.scope, rate.metric, rate.window_us), rate) for rate in group.rates]


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(STEP, max_size=50))
def test_decisions_are_those_of_a_reference_that_keeps_every_event(
    new_driver: Callable[[], Driver], steps: list[tuple[str, str, tuple[Tier, str], int, float]]
) -> None:
    driver = new_driver()
    references: dict[str, Reference] = defaultdict(Reference)
    held: dict[str, list[Admission]] = defaultdict(list)
    driver.now = 100.0
    for kind, account, (tier, model), amount, later in steps:
        reference = references[account]
        if kind == "wait":
            driver.now = round(driver.now + later, 6)
            continue
        now = round(driver.now * 1_000_000)
        reference.expire(now)
        if kind == "admit":
            groups = tier.groups_for(model)
            fits = reference.fits(groups, amount, now)
            answer = driver.admit(tier, amount, account, model=model)
            assert isinstance(answer, Admission) is fits
            if isinstance(answer, Admission):
                reference.admit(answer.call_id, groups, amount, now)
                held[account].append(answer)
            for metric in ("requests", "tokens"):
                standing = getattr(answer.standings, metric)
                assert standing.remaining == reference.remaining(groups, metric, now)
            (limited,) = (group for group in groups if group.concurrency is not None)
            free = max((limited.concurrency or 0) - reference.running(limited.scope), 0)
            assert answer.standings.concurrency.remaining == free
        elif held[account]:
            place = amount % len(held[account])
            admission = held[account][place]
            lease = reference.leases[admission.call_id]
            if kind == "renew":
                lost = driver.renew((admission, amount))
                assert bool(lost) is lease["lost"]
                if not lease["lost"]:
                    lease["until"] = now + 30_000_000
                    lease["used"] = max(lease["used"], amount)
                    if amount > lease["reserved"]:
                        reference.correct(lease, amount, now)
            else:
                driver.settle(held[account].pop(place), amount)
                reference.correct(lease, amount, now)
                del reference.leases[admission.call_id]
