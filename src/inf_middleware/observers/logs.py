"""One line per settled call and per refusal, for whoever reads logs: no key, no prompt.

What callers and accounts have written is escaped, so that no line can be forged. Refusals come in
floods: of each account and code one line per span of time is written, and then how many more.
"""

import logging
import time
from collections.abc import Callable
from typing import Any

from inf_middleware.domain.money import decimal_string
from inf_middleware.domain.observations import RefusedCall, Sample, SettledCall, Timing

_log = logging.getLogger("inf_middleware.calls")

# Refusals of one account with one code are told once in this time: soon enough to be seen live.
REFUSALS_EVERY_S = 10.0

# Accounts and codes told of in that time: where accounts are addresses, anybody makes more of them.
# Those beyond are counted together, by code.
REFUSED_MAX = 100


class CallLog:
    """Writes calls to the logger `inf_middleware.calls` at INFO; `clock` is in seconds."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since = clock()
        self._more: dict[tuple[str | None, str], int] = {}  # those told, and how many more came
        self._beyond: dict[str, int] = {}  # by code: of accounts that were not told

    def listens(self) -> bool:
        """Tell whether lines would be written."""
        return _log.isEnabledFor(logging.INFO)

    def refused(self, call: RefusedCall) -> None:
        """Write a line, unless one like it was written a moment ago."""
        if not self.listens():
            return
        self.flush()
        key = (call.account, call.code)
        if key in self._more:
            self._more[key] += 1
        elif len(self._more) >= REFUSED_MAX:
            self._beyond[call.code] = self._beyond.get(call.code, 0) + 1
        else:
            self._more[key] = 0
            _log.info(
                "refused %s %s account=%s tier=%s model=%s status=%d code=%s",
                call.call_id,
                ascii(call.endpoint),
                ascii(call.account),
                ascii(call.tier),
                ascii(call.model),
                call.status,
                call.code,
                extra=_one_line(
                    **_whose(call),
                    status=call.status,
                    code=call.code,
                ),
            )

    def settled(self, call: SettledCall) -> None:
        """Write a line."""
        if not self.listens():
            return
        usage = call.usage
        amount = None if call.amount_nano is None else decimal_string(call.amount_nano)
        _log.info(
            "call %s %s account=%s tier=%s model=%s input_tokens=%d output_tokens=%d basis=%s"
            " outcome=%s amount=%s%s%s duration_s=%.3f",
            call.call_id,
            ascii(call.endpoint),
            ascii(call.account),
            ascii(call.tier),
            ascii(call.model),
            usage.input_tokens,
            usage.output_tokens,
            usage.basis,
            call.outcome,
            amount,
            "" if call.recorded else " recorded=no",
            "" if call.would_refuse is None else f" would_refuse={call.would_refuse}",
            call.duration_s,
            extra=_one_line(
                **_whose(call),
                input_tokens=usage.input_tokens,
                output_tokens=usage.output_tokens,
                cached_input_tokens=usage.cached_input_tokens,
                cache_write_tokens=usage.cache_write_tokens,
                reasoning_tokens=usage.reasoning_tokens,
                basis=usage.basis,
                outcome=call.outcome,
                amount=amount,
                currency=call.currency,
                recorded=call.recorded,
                would_refuse=call.would_refuse,
                duration_s=call.duration_s,
                first_output_s=call.first_output_s,
            ),
        )

    def timed(self, timing: Timing) -> None:
        """Write nothing: latencies are a matter of metrics."""

    def sampled(self, sample: Sample) -> None:
        """Tell what is left of a flood that has ended."""
        self.flush()

    def flush(self) -> None:
        """Tell how many more refusals there were, where their time is over."""
        now = self._clock()
        if now - self._since < REFUSALS_EVERY_S:
            return
        self._since = now
        more, self._more = self._more, {}
        beyond, self._beyond = self._beyond, {}
        for (account, code), count in more.items():
            if count:
                self._tell_more(f"account={account!a}", code, count, account=account)
        for code, count in beyond.items():
            self._tell_more("of further accounts", code, count)

    def _tell_more(self, whose: str, code: str, count: int, **extra: Any) -> None:
        _log.info(
            "refused %d more %s code=%s",
            count,
            whose,
            code,
            extra=_one_line(count=count, code=code, **extra),
        )


def _whose(call: RefusedCall | SettledCall) -> dict[str, Any]:
    return {
        "request_id": call.call_id,
        "endpoint": call.endpoint,
        "account": call.account,
        "tier": call.tier,
        "model": call.model,
    }


def _one_line(**fields: Any) -> dict[str, Any]:
    """Return fields for a log record, in which no text can begin another line."""
    return {
        name: ascii(value)[1:-1] if isinstance(value, str) and not value.isprintable() else value
        for name, value in fields.items()
    }
