"""Answers that are made later and fetched by their id: billed once, when they are first seen whole.

What is remembered is so in this process, as the model servers that were seen keep such answers
themselves (vLLM 0.33.0: `response_store`).
"""

from collections import OrderedDict

from inf_middleware.call import workers
from inf_middleware.call.record import Call, log

# Answers that are waited for at a time, far above what a server can work on. The oldest is
# forgotten, and then not billed.
DEFERRED_MAX = 10_000


class Deferred:
    """The calls of this process whose answers are still to be fetched, by the answer's id."""

    def __init__(self, calls_max: int = DEFERRED_MAX) -> None:
        self._max = calls_max
        self.calls: OrderedDict[str, Call] = OrderedDict()
        self._warned = False

    def note(self, call: Call) -> None:
        """Take note of a settled call whose answer is made later, or is made on."""
        reader = call.reader
        if reader is None or reader.response_id is None or not reader.deferred:
            return
        self._warn_of_several_workers()
        call.body = call.input_texts = None
        self.calls.setdefault(reader.response_id, call)
        if len(self.calls) > self._max:
            call_id = self.calls.popitem(last=False)[1].id
            log.warning(
                "over %d responses made in the background are waited for: that of call %s is"
                " forgotten, and not billed when it is fetched",
                self._max,
                call_id,
            )

    def fetched_by(self, path: str) -> Call | None:
        """Return the call whose answer a path fetches (".../responses/<id>"), if it is due."""
        return self.calls.get(path.rstrip("/").rpartition("/")[2]) if self.calls else None

    def _warn_of_several_workers(self) -> None:
        if not self._warned and workers.are_several():
            self._warned = True
            log.warning(
                "a response is made in the background, and is billed only where it is fetched from"
                " this worker process: send what fetches it to the same one, or run one worker"
                " (docs/metering.md)"
            )

    def take(self, call: Call) -> bool:
        """Take an answer off those that are due, if this call has fetched it, or some of it.

        At once, so that of several who fetch it one alone is billed; what `settle` finds to be made
        on is noted again.
        """
        reader = call.reader
        if reader is None or reader.deferred or not (reader.has_output or reader.usage):
            return False
        return reader.response_id is not None and bool(self.calls.pop(reader.response_id, None))


deferred = Deferred()
