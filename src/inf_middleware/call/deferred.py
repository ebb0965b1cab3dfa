"""Answers that are made later and fetched by their id: billed once, when they are first seen whole.

What is remembered is so in this process, as the model servers that were seen keep such answers
themselves (vLLM 0.33.0: `response_store`).
"""

from collections import OrderedDict

from inf_middleware.call.record import Call

# Answers that are waited for at a time, far above what a server can work on. The oldest is
# forgotten, and then not billed.
DEFERRED_MAX = 10_000


class Deferred:
    """The calls of this process whose answers are still to be fetched, by the answer's id."""

    def __init__(self, calls_max: int = DEFERRED_MAX) -> None:
        self._max = calls_max
        self._calls: OrderedDict[str, Call] = OrderedDict()

    def note(self, call: Call) -> None:
        """Take note of a settlement: of an answer that is made later, or of one that was due."""
        reader = call.reader
        if reader is None or reader.response_id is None:
            return
        if not reader.deferred:
            self._calls.pop(reader.response_id, None)
            return
        call.body = call.input_texts = None
        self._calls.setdefault(reader.response_id, call)
        if len(self._calls) > self._max:
            self._calls.popitem(last=False)

    def fetched_by(self, path: str) -> Call | None:
        """Return the call whose answer a path fetches (".../responses/<id>"), if it is due."""
        return self._calls.get(path.rstrip("/").rpartition("/")[2]) if self._calls else None

    def is_due(self, call: Call) -> bool:
        """Whether an answer that was fetched is whole, and billed to nobody yet."""
        reader = call.reader
        return (
            reader is not None
            and reader.usage is not None
            and not reader.deferred
            and reader.response_id in self._calls
        )


deferred = Deferred()
