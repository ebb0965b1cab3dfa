"""Reads one answer by the description of its dialect: bytes in, facts out.

Nothing that a server sends makes it raise: the worst case is a fact not known.
"""

from typing import Any

from inf_middleware.wire.alike import ESCAPE, Alike, alike_of
from inf_middleware.wire.body import ODD as _ODD
from inf_middleware.wire.body import decode as _decode
from inf_middleware.wire.body import read_parts, read_value
from inf_middleware.wire.choices import choices_of, group_of, is_empty, number_of, only_text
from inf_middleware.wire.facts import Facts
from inf_middleware.wire.paths import find
from inf_middleware.wire.plain import PlainChoice, PlainDecoder
from inf_middleware.wire.reports import WHOLE
from inf_middleware.wire.seen import Seen
from inf_middleware.wire.sse import SSEReader
from inf_middleware.wire.texts import CHOICES_MAX, piece_of

# OpenAI's end of a stream; nobody else sends it meaning anything else.
_DONE = b"[DONE]"
# How JSON begins that is more than a word.
_OPENING = (b"{", b"[")


class AnswerReader(Facts):
    """Reads one answer; `event` for each event of a stream, or `whole` once for a body."""

    __slots__ = ()

    @property
    def text_characters(self) -> int:
        """How much output text was seen."""
        self._read_output()
        return self._texts.characters

    def texts(self) -> list[str]:
        """Return the output text of each choice, joined."""
        self._read_output()
        return self._texts.joined()

    def texts_of(self, number: int) -> list[str]:
        """Return the texts of one part."""
        self._read_output()
        return self._texts.of(number)

    def event(self, data: bytes, event: bytes | None) -> int:
        """Read the data and the `event` field of one event."""
        if data == _DONE:
            return Seen.END
        self._latest = None
        if event is None:
            plain = self._form.plain
            seen = None if plain is None else self._take_plain(data, plain)
            if seen is not None:
                self._others = ()
                return seen
        try:
            value = _decode(data)
        except _ODD:
            value = read_value(data)
        if type(value) is dict:
            return self._take_event(value, event)
        if data.lstrip().startswith(b'{"error"'):  # some servers do not escape their errors
            self.failed = True
        return Seen.NOTHING

    def alike(self, piece: bytes, data: bytes, event: bytes | None) -> Alike | None:
        """Return what is alike to a piece that held just the last event; None where unsure.

        That event must have been `Seen.NOTHING`: what it says beside its text may be said again.
        """
        if ESCAPE in piece:
            return None
        if self._latest is not None:
            text, group = self._latest
            return alike_of(piece, text, group, self._texts) if text else None
        try:
            value = _decode(data)
        except _ODD:
            return None
        if type(value) is not dict:
            return None
        kind = _kind_of(value, event)
        only = only_text(value, kind, self._form)
        if only is None or (self.outline is not None and self.outline.heeds(kind)):
            return None
        return alike_of(piece, *only, self._texts)

    def whole(self, body: bytes) -> None:
        """Read a body that is no stream: JSON, or a stream that does not say that it is one."""
        if not self._form.may_tell_apart(self._choices, body) and self._take_reported(body):
            self._unread = body
        else:
            self._read_whole(body)

    def _read_whole(self, body: bytes) -> None:
        value = read_parts(body, self._form.fields.union(*(one.fields for one in self._others)))
        if self._others:
            first = value[0] if isinstance(value, list) and value else value
            self._find_form(first if isinstance(first, dict) else {})
        if isinstance(value, dict):
            self._take_whole(value, WHOLE)
        elif isinstance(value, list):
            for index, item in enumerate(value[:CHOICES_MAX]):
                if isinstance(item, dict):
                    self._take_whole(item, index)
        else:
            self._take_stream(body)
            if body.lstrip()[:1] in _OPENING and not (self.has_output or self.failed):
                self.unread(len(body))  # JSON that was cut, or is broken: something was made
        self.usage_final = bool(self._reports)

    def unread(self, size: int) -> None:
        """Note bytes of the answer that could not be read: only their number is known."""
        if self._form.text and size:
            self._read_output()
            self.has_output = True
            self._reports.stale.add(0)
            self.unread_bytes += size

    def _take_plain(self, data: bytes, decode: PlainDecoder) -> int | None:
        """Take an event that is plain (see `wire.plain`); None where it is another."""
        try:
            value = decode(data)
        except _ODD:
            return None
        choices, report = value.choices, value.report
        if value.error is not None or value.type is not None:
            return None
        if len(choices) != 1 or report is not None:
            if choices or type(report) is not dict:
                return None
            seen = self._take_plain_report(report)
        else:
            self._take_plain_choice(choices[0])
            seen = Seen.NOTHING
        if self.response_id is None and isinstance(value.id, str):
            self.response_id = value.id
        if self.model is None and isinstance(value.model, str):
            self.model = value.model
        return seen

    def _take_plain_choice(self, choice: PlainChoice) -> None:
        index = number_of(choice.index)
        group = (index,)
        if index >= self._choices:
            self._choices = index + 1
        if choice.finish is not None:
            self._finished[index] = None
        source = choice.source
        if type(source) is str:
            piece: str | None = source
        else:
            tree = self._form.delta_head[1]
            piece = piece_of(source, tree)
            if piece is None and not self._texts.take(source, tree, group):
                self._latest = ("", group)
                return
        if piece:
            self._texts.add(piece, group)
        if piece is not None and not self._form.cumulative:
            self._latest = (piece, group)
        if piece != "":
            self.has_output = True
            self._reports.stale.add(index)

    def _take_plain_report(self, report: dict[str, Any]) -> int:
        form = self._form
        at = form.usage[0]
        # Without choices it is our own event, whatever it says.
        seen = Seen.USAGE_ONLY if at.at == "usage" else Seen.NOTHING
        counts = at.counts(report)
        if not counts:
            return seen
        self._reports.take_counts(at, counts, self._choice_reported())
        if not self.has_output:
            self.has_output = self._reports.output > 0
        self.usage_final = self._has_ended
        if not seen:
            seen = Seen.RUNNING_USAGE
        return seen | Seen.END if self.usage_final and form.usage_ends else seen

    def _take_reported(self, body: bytes) -> bool:
        """Take a body whose report makes its output uninteresting; False where it has to be read.

        So nearly all are, and the output is nearly all of them.
        """
        read = self._form.report
        if read is None or (self._others and not self._form.text):
            return False  # without a form that has output, one of the others may be it
        try:
            value = read(body)
        except _ODD:
            return False
        self._take_facts(value)
        if self.failed or self.deferred or not self._take_usage(value, WHOLE):
            return False
        self.usage_final = True
        return self.usage_covers and (self.has_output or not self._form.text)

    def _read_output(self) -> None:
        if self._unread is not None:
            body, self._unread = self._unread, None
            self._read_whole(body)

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
        self._take_facts(value)
        choices = choices_of(value, form)
        for choice in choices:
            own = number_of(choice.get("index")) if form.each else max(index, 0)
            self._take_text(choice, form.text_tree, own, (own,))
        if len(choices) > 1 and value.get(form.told_apart) is not None:
            index = number_of(choices[0].get("index"))
        self._take_usage(value, index)

    def _take_facts(self, value: dict[str, Any]) -> None:
        self._take_names(value)
        if value.get("error") or value.get("type") == "error":
            self.failed = True
        status = value.get("status")
        self.deferred = isinstance(status, str) and status in self._form.unfinished

    def _take_event(self, value: dict[str, Any], event: bytes | None) -> int:
        # Run for every chunk: what is usually absent is asked for as cheaply as can be.
        if self._others:
            self._find_form(value)
        form = self._form
        kind = _kind_of(value, event)
        if self.response_id is None or self.model is None:
            self._take_names(value)
        if value.get("error") or (kind and kind in form.fails):
            self.failed = True
        is_known = False
        if self.outline is not None:
            self.outline.note(kind, value)
            is_known = self.outline.is_known
        choices = choices_of(value, form)
        if kind not in form.silent and not is_known:
            for choice in choices:
                self._take_choice(choice)
        seen = Seen.NOTHING
        for head in form.usage_heads:
            if value.get(head) is not None:
                seen = self._take_report(value, choices)
                break
        if (kind and kind in form.ends) or (form.end_flag and self._is_last(value)):
            self.usage_final = bool(self._reports)
            return seen | Seen.END
        return seen

    def _is_last(self, value: dict[str, Any]) -> bool:
        """Tell whether the end flag of an event is that of the last choice to end."""
        form = self._form
        if not find(value, form.end_flag):
            return False
        if not form.by_index or self._choices == 1:
            return True
        self._finished[group_of(value, form)[0]] = None
        return self._has_ended

    @property
    def _has_ended(self) -> bool:
        """Whether all choices are told to be finished."""
        return len(self._finished) >= self._choices

    def _choice_reported(self) -> int:
        """Return what a report that stands beside no choice is of: `WHOLE`, or one choice.

        Where several tell theirs so, each as it finishes (llama.cpp), it is the latest to finish.
        """
        latest = next(reversed(self._finished), WHOLE)
        before, self._reported = self._reported, latest
        if before not in (WHOLE, latest):
            self._reports.were_of(before)  # and not of the whole, as it had seemed
        return WHOLE if before == WHOLE or self._reports.are_of_whole else latest

    def _take_choice(self, choice: dict[str, Any]) -> None:
        form = self._form
        group = group_of(choice, form)
        if form.each:
            index = group[0]
            if choice.get(form.finish) is not None:
                self._finished[index] = None
        else:
            index = group[0] if form.by_index else 0
        if index >= self._choices:
            self._choices = index + 1
        head, tree = form.delta_head
        source = choice.get(head) if head else choice
        if type(source) is dict:
            self._take_text(source, tree, index, group)
        elif source:
            self._take_text(choice, form.delta_tree, index, group)

    def _take_report(self, value: dict[str, Any], choices: list[dict[str, Any]]) -> int:
        form = self._form
        if form.each is None:
            index = WHOLE
            if form.by_index:
                index = number_of(find(value, form.group[0]))
            return Seen.RUNNING_USAGE if self._take_usage(value, index) else Seen.NOTHING
        ended = self._has_ended
        of_whole = not choices or (ended and all(is_empty(choice, form) for choice in choices))
        # Where choices are empty and a usage object is there it is our own event, whatever it says.
        only = of_whole and isinstance(value.get("usage"), dict) and form.each in value
        index = WHOLE
        if not choices:
            index = self._choice_reported()
        elif len(choices) == 1 and not of_whole:
            index = number_of(choices[0].get("index"))
        if not self._take_usage(value, index):
            return Seen.USAGE_ONLY if only else Seen.NOTHING
        self.usage_final = ended and (of_whole or not self.awaits_report)
        seen = Seen.USAGE_ONLY if only else Seen.RUNNING_USAGE
        return seen | Seen.END if self.usage_final and form.usage_ends else seen


def _kind_of(value: dict[str, Any], event: bytes | None) -> str:
    kind = value.get("type")
    if type(kind) is str:
        return kind
    return event.decode("latin-1") if event else ""
