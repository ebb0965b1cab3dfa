"""One offer of a batch to a sink, and what came of it: whatever a sink does ends as a verdict."""

import asyncio
import inspect
import logging
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import anyio

from inf_middleware.domain.errors import ConfigError
from inf_middleware.domain.events import BillingEvent, storable
from inf_middleware.ports import Rejected, Sink, TryLater

_log = logging.getLogger("inf_middleware.sinks")

# For a whole batch: above the time-outs that clients of far ends usually have of their own (ten
# to thirty seconds), so that theirs, which know more, come first.
OFFER_TIMEOUT_S = 60.0

# For a sink to tidy up when the server ends in the middle of an offer.
CANCEL_GRACE_S = 1.0

# How often a sink is warned of that hangs and does not let itself be cancelled either.
_HANGING_WARN_S = 60.0

# Reasons come from far ends; this holds an error message, and not a page of HTML.
REASON_CHARACTERS_MAX = 1_000


class Verdict(NamedTuple):
    """The first `done` events of a batch are dealt with, `rejected` among them; why not the rest.

    `not_taken`: this offer has certainly left none of the rest at the far end.
    """

    done: int
    rejected: Mapping[str, str]
    failure: BaseException | None = None
    after_s: float | None = None
    not_taken: bool = False


async def offer(
    name: str, sink: Sink, events: Sequence[BillingEvent], timeout_s: float = OFFER_TIMEOUT_S
) -> Verdict:
    """Offer a batch; ends only when the sink has ended, so that no two offers ever overlap.

    In a task of its own: a sink that is cancelled, or cancels itself, takes nobody with it.
    """
    task = asyncio.ensure_future(_call(sink, events))
    try:
        await asyncio.wait([task], timeout=timeout_s)
        timed_out = not task.done()
        while not task.done():
            task.cancel()
            await asyncio.wait([task], timeout=_HANGING_WARN_S)
            if not task.done():
                _log.error("sink %s hangs, and does not let itself be cancelled", name)
    except asyncio.CancelledError:
        task.cancel()
        with anyio.move_on_after(CANCEL_GRACE_S, shield=True):
            await asyncio.wait([task])
        raise
    if task.cancelled():
        why = f"no answer within {timeout_s:g} s" if timed_out else "it was cancelled from within"
        return Verdict(0, {}, TimeoutError(why))
    return _verdict(events, task.exception())


async def _call(sink: Sink, events: Sequence[BillingEvent]) -> None:
    try:
        # A function that is not async has taken the events by now, and would take them again.
        pending = sink(events)
        if not inspect.isawaitable(pending):
            raise ConfigError(f"a sink is an async function, and this one returned {pending!a}")
        await pending
    except SystemExit as error:  # it would end the server's loop
        raise RuntimeError(f"the sink wanted to exit: {error}") from error


def _verdict(events: Sequence[BillingEvent], failure: BaseException | None) -> Verdict:
    if failure is None:
        return Verdict(len(events), {})
    if isinstance(failure, Rejected):
        return Verdict(len(events), _reasons(events, failure.reasons))
    if isinstance(failure, TryLater):
        dealt_with = failure.taken | failure.rejected.keys()
        # Only a beginning: the cursor is one place, and behind it nothing is open.
        done = next((n for n, event in enumerate(events) if event.id not in dealt_with), None)
        if done is None:
            return Verdict(len(events), _reasons(events, failure.rejected))
        rejected = _reasons(events[:done], failure.rejected)
        return Verdict(done, rejected, failure, failure.after_s, failure.not_taken)
    return Verdict(0, {}, failure)


def _reasons(events: Sequence[BillingEvent], told: Mapping[str, object]) -> dict[str, str]:
    return {
        event.id: storable(str(told[event.id])[:REASON_CHARACTERS_MAX]) or "no reason given"
        for event in events
        if event.id in told
    }
