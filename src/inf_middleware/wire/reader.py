"""Reads one answer by the description of its dialect: bytes in, facts out.

Nothing that a server sends makes it raise: the worst case is a fact not known.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import msgspec

from inf_middleware.domain.usage import Usage
from inf_middleware.wire.body import ODD as _ODD
from inf_middleware.wire.body import decode as _decode
from inf_middleware.wire.body import read_parts, read_value
from inf_middleware.wire.paths import Tree, collect, find, tree_of
from inf_middleware.wire.sse import SSEReader
from inf_middleware.wire.usage import INPUT, OUTPUT, UsageAt, added

# Output text kept for counting, of one answer: eight times the longest output known. What is
# beyond is only measured.
TEXT_BYTES_MAX = 4 * 1024 * 1024

# Choices of one answer that are told apart, far above what servers allow (128 of `n`); the text of
# those beyond goes into one.
CHOICES_MAX = 4096

# OpenAI's end of a stream; nobody else sends it meaning anything else.
_DONE = b"[DONE]"

_BY_INDEX = ("index",)

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


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Where the facts of an API's answers sit, as paths (see `wire.paths`).

    `usage`: the places and words of usage reports; a later report replaces an earlier one, count by
    count. `id` and `model`: the first that is told holds.

    `each`: the list of choices, where there is one; `text`, `delta`, `group` and `finish` then
    start at a choice. `text`: output in a whole body; `delta`: output in an event, where
    `cumulative` says that each repeats all before it. `group`: the numbers that tell apart texts
    which grow side by side. `finish`: tells that a choice is finished. `by_index`: without such a
    list, an event is of the choice that the first of `group` says.

    By an event's type (its `type`, else its `event:` field): `ends` end the answer, `fails` say
    that it failed, `silent` carry no text whatever they hold. `end_flag`: what is true in the last
    event only. `usage_ends`: the report of the whole answer ends a stream.

    `unfinished`: values of `status` that say that the answer is to be fetched later.
    """

    usage: tuple[UsageAt, ...] = ()
    id: tuple[str, ...] = ("id",)
    model: tuple[str, ...] = ("model",)
    each: str | None = None
    text: tuple[str, ...] = ()
    delta: tuple[str, ...] = ()
    cumulative: bool = False
    group: tuple[str, ...] = _BY_INDEX
    finish: str = "finish_reason"
    by_index: bool = False
    ends: frozenset[str] = frozenset()
    fails: frozenset[str] = frozenset({"error"})
    silent: frozenset[str] = frozenset()
    end_flag: str = ""
    usage_ends: bool = False
    unfinished: frozenset[str] = frozenset()

    @cached_property
    def text_tree(self) -> Tree:
        """The paths of a whole body's output, joined."""
        return tree_of(self.text)

    @cached_property
    def delta_tree(self) -> Tree:
        """The paths of an event's output, joined."""
        return tree_of(self.delta)

    @cached_property
    def usage_heads(self) -> tuple[str, ...]:
        """The fields of which one stands in every event that reports."""
        heads = {at.at.partition(".")[0] or at.output for at in self.usage}
        return tuple(sorted(heads))

    @cached_property
    def fields(self) -> frozenset[str]:
        """The fields of a whole body that are read."""
        paths = [*self.id, *self.model, self.each or "", "error", "type", "status", "usage"]
        if self.each is None:
            paths += [*self.text, *self.group]
        for at in self.usage:
            counts = (at.input, at.output, at.cached_input, at.cache_write, *at.beside_input)
            paths += [at.at] if at.at else [path for path in counts if isinstance(path, str)]
        return frozenset(path.partition(".")[0] for path in paths if path)


class AnswerReader:
    """Reads one answer; `event` for each event of a stream, or `whole` once for a body.

    `failed`: an error stands in the answer. `has_output`: at least one token of output was seen.
    `deferred`: what was asked for is made later and fetched by its id. `usage_final`: the report is
    of the whole answer. `text_overflow_bytes` of output came after more text than is kept, and of
    the answer `unread_bytes` could not be read.
    """

    __slots__ = (
        "_choices",
        "_finished",
        "_form",
        "_per_prompt",
        "_pieces",
        "_pieces_seen",
        "_prompts",
        "_stale",
        "_text_bytes",
        "_told",
        "deferred",
        "failed",
        "has_output",
        "model",
        "response_id",
        "text_overflow_bytes",
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
        self._pieces: dict[tuple[int, ...], list[str]] = {}
        self._pieces_seen = 0
        self._text_bytes = 0
        self.usage_final = False
        self.model: str | None = None
        self.response_id: str | None = None
        self.failed = False
        self.deferred = False
        self.has_output = False
        self.text_overflow_bytes = 0
        self.unread_bytes = 0

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
        return max(told, self._pieces_seen) if self._stale else told or self._pieces_seen

    @property
    def unfinished(self) -> list[int]:
        """The choices that have not been told to be finished."""
        return [n for n in range(min(self._choices, CHOICES_MAX)) if n not in self._finished]

    @property
    def open_groups(self) -> list[int]:
        """The number of the text that grew last, where there was any."""
        return [group[0] for group in list(self._pieces)[-1:]]

    @property
    def text_characters(self) -> int:
        """How much output text was seen."""
        return self._text_bytes + self.text_overflow_bytes

    def event(self, data: bytes, event: bytes | None) -> int:
        """Read the data and the `event` field of one event."""
        if data == _DONE:
            return Seen.END
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
            self.has_output = True
            self._stale.add(0)
            self.unread_bytes += size

    def texts(self) -> list[str]:
        """Return the output text of each choice, joined."""
        return ["".join(pieces) for pieces in self._pieces.values()]

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
        if not kind or kind not in form.silent:
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
        self._take_text(choice, form.delta_tree, index, group)

    def _group_of(self, choice: dict[str, Any]) -> tuple[int, ...]:
        paths = self._form.group
        if paths == _BY_INDEX:
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
                self.has_output = True
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

    def _choices_of(self, value: dict[str, Any]) -> list[dict[str, Any]]:
        if self._form.each is None:
            return [value]
        choices = value.get(self._form.each)
        if type(choices) is not list:
            return []
        if len(choices) == 1 and type(choices[0]) is dict:
            return choices
        return [choice for choice in choices if isinstance(choice, dict)]

    def _take_text(
        self, choice: dict[str, Any], tree: Tree, index: int, group: tuple[int, ...]
    ) -> None:
        found: list[Any] = []
        collect(choice, tree, found)
        for value in found:
            if type(value) is str:
                self._keep(value, index, group)
            elif isinstance(value, list):
                for part in value:
                    text = part.get("text") if isinstance(part, dict) else part
                    if isinstance(text, str) and text:
                        self._keep(text, index, group)
            elif isinstance(value, dict):
                self._keep(_compact(value), index, group)

    def _keep(self, text: str, index: int, group: tuple[int, ...]) -> None:
        self.has_output = True
        self._stale.add(index)
        self._pieces_seen += 1
        pieces = self._pieces.get(group)
        if pieces is None:
            if len(self._pieces) >= CHOICES_MAX:
                group = (0,)
            pieces = self._pieces.setdefault(group, [])
        if self._form.cumulative and pieces:
            self._text_bytes -= len(pieces.pop())
        size = self._text_bytes + len(text)
        if size <= TEXT_BYTES_MAX:
            self._text_bytes = size
            pieces.append(text)
        elif self._form.cumulative:
            self.text_overflow_bytes = max(self.text_overflow_bytes, len(text))
        else:
            self.text_overflow_bytes += len(text)


def _index_of(choice: dict[str, Any]) -> int:
    return _number(choice.get("index"))


def _number(value: object) -> int:
    return value if type(value) is int and 0 <= value < CHOICES_MAX else 0


def _is_empty(choice: dict[str, Any], form: Answers) -> bool:
    found: list[Any] = []
    collect(choice, form.delta_tree, found)
    return not found and choice.get(form.finish) is None and not choice.get("delta")


def _compact(value: object) -> str:
    try:
        return msgspec.json.encode(value).decode("utf-8")
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return repr(value)
