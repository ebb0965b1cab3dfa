"""What one of several processes may admit alone: its share of each limit."""

from msgspec.structs import replace

from inf_middleware.domain.limits import Ask
from inf_middleware.domain.rates import LimitGroup, Limits, Rate


def share_of(ask: Ask, workers: int) -> Ask:
    """Return what a call asks of one of so many processes: no more tokens than its share holds.

    Else what the level could hold would be refused for as long as the process is alone; as it is,
    it waits until its share is whole, and what it uses beyond delays what comes next.
    """
    groups = tuple([_share(group, workers) for group in ask.groups])
    return replace(ask, groups=groups, tokens=min(ask.tokens, Limits(groups).tokens_max))


def _share(group: LimitGroup, workers: int) -> LimitGroup:
    def share(limit: int) -> int:
        return max(1, -(-limit // max(workers, 1)))

    rates = tuple(Rate(rate.metric, share(rate.limit), rate.window_s) for rate in group.rates)
    concurrency = None if group.concurrency is None else share(group.concurrency)
    return LimitGroup(group.scope, concurrency, rates)
