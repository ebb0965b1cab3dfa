"""From facts to measurements, whoever exports them; label values stay few, come what may."""

from abc import ABC, abstractmethod

from inf_middleware.domain.money import NANO
from inf_middleware.domain.observations import RefusedCall, Sample, SettledCall, Timing
from inf_middleware.observers import catalogue as of
from inf_middleware.observers.catalogue import Metric

# Values of one label: above what a price list, the levels or the sinks of a service come to. Each
# is a series for every value of the labels beside it, in each process.
VALUES_MAX = 100

# Accounts are more, and are told only where that is asked for, in series of their own.
ACCOUNTS_MAX = 1_000

# In the place of what is not listed, or comes when there are that many.
OTHER = "other"

# Of what was refused before it was known.
NONE = "none"


class Bounded:
    """The values of one label: the first `most` that come stay themselves."""

    def __init__(self, most: int = VALUES_MAX) -> None:
        self._most = most
        self._known: dict[str, str] = {}

    def of(self, value: str | None) -> str:
        """Return a value as a label has it."""
        if value is None:
            return NONE
        known = self._known.get(value)
        if known is None:
            if len(self._known) >= self._most:
                return OTHER
            known = self._known[value] = value.encode("utf-8", "replace").decode()
        return known


class MetricsObserver(ABC):
    """Measures what it is told; how, adapters say. Labels go in the order of the metric's."""

    def __init__(self, *, by_account: bool) -> None:
        self._by_account = by_account
        self._models = Bounded()
        self._tiers = Bounded()
        self._dialects = Bounded()
        self._accounts = Bounded(ACCOUNTS_MAX)
        self._sinks = Bounded()

    @abstractmethod
    def add(self, metric: Metric, amount: float, *labels: str) -> None:
        """Add to a counter."""

    @abstractmethod
    def record(self, metric: Metric, value: float, *labels: str) -> None:
        """Record a value of a histogram."""

    @abstractmethod
    def set(self, metric: Metric, value: float, *labels: str) -> None:
        """Set a gauge."""

    def listens(self) -> bool:
        """Tell that all calls count."""
        return True

    def refused(self, call: RefusedCall) -> None:
        """Count a refusal."""
        endpoint, tier = self._dialects.of(call.dialect), self._tiers.of(call.tier)
        self.add(of.REFUSALS, 1, call.code, tier, endpoint)
        if self._by_account and call.account is not None:
            self.add(of.ACCOUNT_REQUESTS, 1, self._accounts.of(call.account), call.code)

    def settled(self, call: SettledCall) -> None:
        """Measure a call that was served."""
        usage = call.usage
        endpoint, tier = self._dialects.of(call.dialect), self._tiers.of(call.tier)
        model = OTHER if call.listed_model is None else self._models.of(call.listed_model)
        self.add(of.REQUESTS, 1, endpoint, model, tier, call.outcome, usage.basis)
        self.record(of.DURATION, call.duration_s, endpoint, model, call.outcome)
        for kind, tokens in (("input", usage.input_tokens), ("output", usage.output_tokens)):
            self.add(of.TOKENS, tokens, model, tier, kind)
            self.record(of.TOKEN_USAGE, tokens, endpoint, model, kind)
        for kind, tokens in (
            ("cached_input", usage.cached_input_tokens),
            ("cache_write", usage.cache_write_tokens),
            ("reasoning", usage.reasoning_tokens),
        ):
            if tokens:
                self.add(of.TOKENS, tokens, model, tier, kind)
        cost = 0.0
        if call.amount_nano is not None and call.currency is not None:
            cost = call.amount_nano / NANO
            self.add(of.COST, cost, model, tier, call.currency)
        if not call.recorded:
            self.add(of.UNRECORDED, 1)
        if call.would_refuse is not None:
            self.add(of.WOULD_REFUSE, 1, call.would_refuse, tier)
        if call.first_output_s is not None:
            self._stream(call, call.first_output_s, endpoint, model)
        if self._by_account and call.account is not None:
            account = self._accounts.of(call.account)
            self.add(of.ACCOUNT_REQUESTS, 1, account, "")
            self.add(of.ACCOUNT_TOKENS, usage.input_tokens, account, "input")
            self.add(of.ACCOUNT_TOKENS, usage.output_tokens, account, "output")
            if call.currency is not None:
                self.add(of.ACCOUNT_COST, cost, account, call.currency)

    def timed(self, timing: Timing) -> None:
        """Record how long a store or ledger took."""
        metric = of.STORE if timing.part == "store" else of.LEDGER
        result = "failed" if timing.failed else "done"
        self.record(metric, timing.duration_s, timing.operation, result)

    def sampled(self, sample: Sample) -> None:
        """Set the gauges, and count what has come since the last sample."""
        for metric, value in (
            (of.RUNNING, sample.running),
            (of.RESERVED, sample.reserved_tokens),
            (of.STORAGE_AWAY, sample.storage_is_away),
            (of.LEDGER_AWAY, sample.ledger_is_away),
            (of.SPOOLED, sample.spooled_bytes),
            (of.RELAY, sample.is_relay),
        ):
            if value is not None:
                self.set(metric, value)
        # Zeros too: a series that begins with 1 has risen by nothing, to whoever looks for a rise.
        if sample.running is not None:
            self.add(of.LEASES_LOST, sample.leases_lost)
        if sample.ledger_is_away is not None:
            self.add(of.UNRECORDED, 0)
        for one in sample.sinks:
            sink = self._sinks.of(one.sink)
            for metric, told in (
                (of.OUTBOX, one.pending),
                (of.OUTBOX_AGE, one.oldest_s),
                (of.SINK_LAG, one.lag_s),
            ):
                if told is not None:
                    self.set(metric, told, sink)
            self.add(of.SINK_EVENTS, one.taken, sink, "taken")
            self.add(of.SINK_EVENTS, one.rejected, sink, "rejected")
            self.add(of.SINK_FAILURES, one.failures, sink)

    def _stream(self, call: SettledCall, first_s: float, endpoint: str, model: str) -> None:
        self.record(of.FIRST_OUTPUT, first_s, endpoint, model)
        further = call.usage.output_tokens - 1
        if further > 0 and call.outcome == "complete":
            self.record(of.PER_TOKEN, (call.duration_s - first_s) / further, endpoint, model)
