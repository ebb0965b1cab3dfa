"""Reads one answer by the description of its dialect: bytes in, facts out.

Nothing that a server sends makes it raise: the worst case is a fact not known.
"""

from typing import Any

from inf_middleware.domain.usage import Usage
from inf_middleware.wire.body import ODD as _ODD
from inf_middleware.wire.body import decode as _decode
from inf_middleware.wire.body import read_parts, read_value
from inf_middleware.wire.form import BY_INDEX, Answers
from inf_middleware.wire.paths import Tree, collect, find
from inf_middleware.wire.plain import PlainDecoder
from inf_middleware.wire.sse import SSEReader
from inf_middleware.wire.texts import CHOICES_MAX, Texts
from inf_middleware.wire.usage import INPUT, OUTPUT, UsageAt, added

# OpenAI's end of a stream; nobody else sends it meaning anything else.
_DONE = b"[DONE]"

# The report of the whole answer, in the place of a choice's.
_WHOLE = -1


class Seen:
    """What an event of a stream was: any of these, or-ed.

    Plain numbers, for the operators of `enum.IntFlag` would cost more than all the reading.
    """

    NOTHING = 0
    USAGE_ONLY = 1  # only usage: what a client that did not ask must not see
    END = 2  # the answer is whole with it
    RUNNING_USAGE = 4  # a running total beside other things


class AnswerReader:
    """Reads one answer; `event` for each event of a stream, or `whole` once for a body.

    `failed`: an error stands in the answer. `deferred`: what was asked for is made later and
    fetched by its id. `usage_final`: the report is of the whole answer. `unread_bytes` of the
    answer could not be read.
    """

    __slots__ = (
        "_choices",
        "_finished",
        "_form",
        "_has_output",
        "_per_prompt",
        "_plain",
        "_prompts",
        "_stale",
        "_texts",
        "_told",
        "deferred",
        "failed",
        "model",
        "response_id",
        "unread_bytes",
        "usage_final",
    )

    def __init__(self, form: Answers, choices: int = 1, prompts: int = 1) -> None:
        self._form = form
        self._choices = choices
        self._prompts = prompts
        self._per_prompt = max(choices // prompts, 1)
        self._finished: set[int] = set()
        self._stale: set[int] = set()  # choices with text that no report contains yet
        self._told: dict[int, tuple[UsageAt, dict[str, int]]] = {}
        self._texts = Texts(cumulative=form.cumulative)
        self.usage_final = False
        self.model: str | None = None
        self.response_id: str | None = None
        self.failed = False
        self.deferred = False
        self._has_output = False
        self._plain: PlainDecoder | None = None  # once the names are known, which it skips
        self.unread_bytes = 0

    @property
    def has_output(self) -> bool:
        """Whether at least one token of output was seen."""
        return self._has_output

    @property
    def usage(self) -> Usage | None:
        """The latest report, None where nothing was told."""
        told = self._told
        if not told:
            return None
        if _WHOLE in told:
            at, counts = told[_WHOLE]
            return at.usage(counts)
        # Running reports are per choice, and each repeats the input of its prompt.
        of_prompts: dict[int, Usage] = {}
        of_choices = []
        for index, (at, counts) in told.items():
            usage = at.usage(counts)
            of_prompts[index // self._per_prompt] = Usage(
                usage.input_tokens, 0, usage.cached_input_tokens, usage.cache_write_tokens
            )
            of_choices.append(
                Usage(0, usage.output_tokens, reasoning_tokens=usage.reasoning_tokens)
            )
        return added([*of_prompts.values(), *of_choices])

    @property
    def tells_input(self) -> bool:
        """Whether the report tells the input of all prompts."""
        told = self._told
        if _WHOLE not in told:
            prompts = {index // self._per_prompt for index in told}
            if len(prompts) < self._prompts:
                return False
        return all(INPUT in counts for _, counts in told.values())

    @property
    def tells_output(self) -> bool:
        """Whether the report contains all the output that was seen."""
        if self._stale or not self._told:
            return False
        return all(OUTPUT in counts for _, counts in self._told.values())

    @property
    def usage_covers(self) -> bool:
        """Whether the report is of all that was seen, so that nothing need be counted."""
        if not self._form.text:
            return bool(self._told)
        return self.tells_input and self.tells_output

    @property
    def output_so_far(self) -> int:
        """A lower estimate of the output in tokens, without counting text."""
        told = sum(counts.get(OUTPUT, 0) for _, counts in self._told.values())
        pieces = self._texts.seen
        return max(told, pieces) if self._stale else told or pieces

    @property
    def text_overflow_bytes(self) -> int:
        """Bytes of output that came after more text than is kept."""
        return self._texts.overflow_bytes

    @property
    def unfinished(self) -> list[int]:
        """The choices that have not been told to be finished."""
        return [n for n in range(min(self._choices, CHOICES_MAX)) if n not in self._finished]

    @property
    def open_groups(self) -> list[int]:
        """The number of the text that grew last, where there was any."""
        return self._texts.last_group

    @property
    def text_characters(self) -> int:
        """How much output text was seen."""
        return self._texts.characters

    def event(self, data: bytes, event: bytes | None) -> int:
        """Read the data and the `event` field of one event."""
        if data == _DONE:
            return Seen.END
        if event is None and self._plain is not None and self._take_plain(data, self._plain):
            return Seen.NOTHING
        try:
            value = _decode(data)
        except _ODD:
            value = read_value(data)
        if type(value) is dict:
            return self._take_event(value, event)
        if data.lstrip().startswith(b'{"error"'):  # some servers do not escape their errors
            self.failed = True
        return Seen.NOTHING

    def whole(self, body: bytes) -> None:
        """Read a body that is no stream: JSON, or a stream that does not say that it is one."""
        value = read_parts(body, self._form.fields)
        if isinstance(value, dict):
            self._take_whole(value, _WHOLE)
        elif isinstance(value, list):
            for index, item in enumerate(value[:CHOICES_MAX]):
                if isinstance(item, dict):
                    self._take_whole(item, index)
        else:
            self._take_stream(body)
        self.usage_final = bool(self._told)

    def unread(self, size: int) -> None:
        """Note bytes of the answer that could not be read: only their number is known."""
        if self._form.text and size:
            self._has_output = True
            self._stale.add(0)
            self.unread_bytes += size

    def texts(self) -> list[str]:
        """Return the output text of each choice, joined."""
        return self._texts.joined()

    def _take_plain(self, data: bytes, decode: PlainDecoder) -> bool:
        """Take an event that holds nothing but a piece of text; False where it is another."""
        try:
            value = decode(data)
        except _ODD:
            return False
        choices = value.choices
        if (
            len(choices) != 1
            or value.report is not None
            or value.error is not None
            or value.type is not None
        ):
            return False
        choice = choices[0]
        if choice.finish is not None:
            return False
        index = _number(choice.index)
        source = choice.source
        if type(source) is str:
            if source:
                self._texts.add(source, (index,))
            took = source != ""
        else:
            took = self._texts.take_piece(source, self._form.delta_head[1], (index,))
        if took:
            self._has_output = True
            self._stale.add(index)
        return True

    def _take_stream(self, body: bytes) -> None:
        sse = SSEReader()
        frames = sse.feed(body)
        last = sse.close()
        data = [(frame.data, frame.event) for frame in [*frames, *([last] if last else [])]]
        if not any(one for one, _ in data):
            data = [(line, None) for line in body.split(b"\n")]
        for one, event in data:
            if one:
                self.event(one, event)

    def _take_whole(self, value: dict[str, Any], index: int) -> None:
        form = self._form
        self._take_names(value)
        if value.get("error") or value.get("type") == "error":
            self.failed = True
        status = value.get("status")
        self.deferred = isinstance(status, str) and status in form.unfinished
        for choice in self._choices_of(value):
            own = _index_of(choice) if form.each else max(index, 0)
            self._take_text(choice, form.text_tree, own, (own,))
        self._take_usage(value, index)

    def _take_event(self, value: dict[str, Any], event: bytes | None) -> int:
        # Run for every chunk: what is usually absent is asked for as cheaply as can be.
        form = self._form
        kind = value.get("type")
        if type(kind) is not str:
            kind = event.decode("latin-1") if event else ""
        if self.response_id is None or self.model is None:
            self._take_names(value)
        if value.get("error") or (kind and kind in form.fails):
            self.failed = True
        choices = self._choices_of(value)
        if kind not in form.silent:
            for choice in choices:
                self._take_choice(choice)
        seen = Seen.NOTHING
        for head in form.usage_heads:
            if value.get(head) is not None:
                seen = self._take_report(value, choices)
                break
        if (kind and kind in form.ends) or (form.end_flag and find(value, form.end_flag)):
            self.usage_final = bool(self._told)
            return seen | Seen.END
        return seen

    def _take_choice(self, choice: dict[str, Any]) -> None:
        form = self._form
        group = self._group_of(choice)
        if form.each:
            index = group[0]
            if choice.get(form.finish) is not None:
                self._finished.add(index)
        else:
            index = group[0] if form.by_index and self._choices > 1 else 0
        head, tree = form.delta_head
        source = choice.get(head) if head else choice
        if type(source) is dict:
            self._take_text(source, tree, index, group)
        elif source:
            self._take_text(choice, form.delta_tree, index, group)

    def _take_text(
        self, source: dict[str, Any], tree: Tree, index: int, group: tuple[int, ...]
    ) -> None:
        if self._texts.take(source, tree, group):
            self._has_output = True
            self._stale.add(index)

    def _group_of(self, choice: dict[str, Any]) -> tuple[int, ...]:
        paths = self._form.group
        if paths == BY_INDEX:
            return (_number(choice.get("index")),)
        return tuple([_number(find(choice, path)) for path in paths])

    def _take_report(self, value: dict[str, Any], choices: list[dict[str, Any]]) -> int:
        form = self._form
        if form.each is None:
            index = _WHOLE
            if form.by_index and self._choices > 1:
                index = _number(find(value, form.group[0]))
            return Seen.RUNNING_USAGE if self._take_usage(value, index) else Seen.NOTHING
        ended = len(self._finished) >= self._choices
        of_whole = not choices or (ended and all(_is_empty(choice, form) for choice in choices))
        # Where choices are empty and a usage object is there it is our own event, whatever it says.
        only = of_whole and isinstance(value.get("usage"), dict) and form.each in value
        index = _WHOLE if of_whole or len(choices) != 1 else _index_of(choices[0])
        if not self._take_usage(value, index):
            return Seen.USAGE_ONLY if only else Seen.NOTHING
        self.usage_final = of_whole or ended
        seen = Seen.USAGE_ONLY if only else Seen.RUNNING_USAGE
        return seen | Seen.END if self.usage_final and form.usage_ends else seen

    def _take_usage(self, value: dict[str, Any], index: int) -> bool:
        found = False
        for at in self._form.usage:
            counts = at.read(value)
            if not counts:
                continue
            found = True
            known = self._told.get(index)
            if known is None and len(self._told) >= CHOICES_MAX:
                continue
            self._told[index] = (at, {**known[1], **counts} if known else counts)
            if counts.get(OUTPUT):
                self._has_output = True
        if found and index == _WHOLE:
            self._told = {_WHOLE: self._told[_WHOLE]}
            self._stale.clear()
        elif found:
            self._stale.discard(index)
        return found

    def _take_names(self, value: dict[str, Any]) -> None:
        for path in self._form.id if self.response_id is None else ():
            name = find(value, path)
            if isinstance(name, str):
                self.response_id = name
                break
        for path in self._form.model if self.model is None else ():
            name = find(value, path)
            if isinstance(name, str):
                self.model = name
                break
        if self.response_id is not None and self.model is not None:
            self._plain = self._form.plain

    def _choices_of(self, value: dict[str, Any]) -> list[dict[str, Any]]:
        if self._form.each is None:
            return [value]
        choices = value.get(self._form.each)
        if type(choices) is not list:
            return []
        if len(choices) == 1 and type(choices[0]) is dict:
            return choices
        return [choice for choice in choices if isinstance(choice, dict)]


def _index_of(choice: dict[str, Any]) -> int:
    return _number(choice.get("index"))


def _number(value: object) -> int:
    return value if type(value) is int and 0 <= value < CHOICES_MAX else 0


def _is_empty(choice: dict[str, Any], form: Answers) -> bool:
    found: list[Any] = []
    collect(choice, form.delta_tree, found)
    return not found and choice.get(form.finish) is None and not choice.get("delta")
