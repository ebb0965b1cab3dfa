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
    """The calls of this process whose answers are still to be fetched, by the answer's id.

    Of one id there may be several: vLLM lets a client choose it.
    """

    def __init__(self, calls_max: int = DEFERRED_MAX) -> None:
        self._max = calls_max
        self._calls: OrderedDict[str, list[Call]] = OrderedDict()
        self._size = 0
        self._warned = False

    def note(self, call: Call) -> None:
        """Take note of a settled call whose answer is made later, or is made on."""
        reader = call.reader
        if reader is None or reader.response_id is None or not reader.deferred:
            return
        self._warn_of_several_workers()
        call.body = call.input_texts = None
        calls = self._calls.setdefault(reader.response_id, [])
        if call in calls:
            return
        calls.append(call)
        self._size += 1
        if self._size > self._max:
            oldest = next(iter(self._calls.values()))[0]
            self.remove(oldest)
            log.warning(
                "over %d responses made in the background are waited for: that of call %s is"
                " forgotten, and not billed when it is fetched",
                self._max,
                oldest.id,
            )

    def remove(self, call: Call) -> None:
        """Take a call off those that are due, if it is."""
        name = _name_of(call)
        calls = self._calls.get(name, [])
        if call in calls:
            calls.remove(call)
            self._size -= 1
            if not calls:
                del self._calls[name]

    def take(self, call: Call, due: Call) -> Call | None:
        """Take off those that are due the one whose answer, or some of it, a call has fetched.

        That was `due` when the call began; meanwhile another may have fetched some, and be due in
        its place. At once, so that of several who fetch it one alone is billed; what `settle` finds
        to be made on is noted again.
        """
        reader, name = call.reader, _name_of(due)
        if reader is None or reader.deferred or not (reader.has_output or reader.usage):
            return None
        if reader.response_id != name:
            return None
        calls = self._calls.get(name, [])
        taken = due if due in calls else next(iter(calls), None)
        if taken is not None:
            self.remove(taken)
        return taken

    def fetched_by(self, path: str) -> Call | None:
        """Return the call whose answer a path fetches (".../responses/<id>"), if it is due."""
        calls = self._calls.get(path.rstrip("/").rpartition("/")[2]) if self._calls else None
        return calls[0] if calls else None

    def _warn_of_several_workers(self) -> None:
        if not self._warned and workers.are_several():
            self._warned = True
            log.warning(
                "a response is made in the background, and is billed only where it is fetched from"
                " this worker process: send what fetches it to the same one, or run one worker"
                " (docs/metering.md)"
            )


def _name_of(call: Call) -> str:
    """Return the id of a call's answer."""
    return (call.reader.response_id if call.reader is not None else None) or ""


deferred = Deferred()
