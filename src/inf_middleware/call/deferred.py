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
        """Take note of a settlement: of an answer that is made later, or of one that was due."""
        reader = call.reader
        if reader is None or reader.response_id is None:
            return
        if not reader.deferred:
            if self.calls:
                self.calls.pop(reader.response_id, None)
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

    def is_due(self, call: Call) -> bool:
        """Whether an answer that was fetched is whole, and billed to nobody yet."""
        reader = call.reader
        if reader is None or reader.deferred or reader.response_id not in self.calls:
            return False
        # A stream without usage may have been cut.
        return reader.usage is not None or (reader.has_output and not call.is_stream)


deferred = Deferred()
