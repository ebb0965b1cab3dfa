"""What is known of one answer: its usage, its names, its text, and whether it failed."""

from typing import Any

from inf_middleware.domain.usage import Usage
from inf_middleware.wire.choices import holds_text, reports_output
from inf_middleware.wire.form import Answers
from inf_middleware.wire.outline import Outline
from inf_middleware.wire.paths import Tree, find
from inf_middleware.wire.reports import WHOLE, Reports
from inf_middleware.wire.texts import CHOICES_MAX, Group, Texts


class Facts:
    """What is known of one answer by now; `AnswerReader` finds it.

    `has_output`: at least one token of output was seen. `failed`: an error stands in the answer.
    `deferred`: what was asked for is made later and fetched by its id. `awaits_report`: one was
    asked for, and comes in an event of its own. `usage_final`: the report is of the whole answer.
    `unread_bytes` of it could not be read. `outline`: of its parts, where its dialect has them.
    """

    __slots__ = (
        "_choices",
        "_finished",
        "_form",
        "_latest",
        "_others",
        "_reported",
        "_reports",
        "_texts",
        "_unread",
        "awaits_report",
        "deferred",
        "failed",
        "has_output",
        "model",
        "outline",
        "response_id",
        "unread_bytes",
        "usage_final",
    )

    def __init__(
        self,
        form: Answers,
        choices: int = 1,
        prompts: int = 1,
        others: tuple[Answers, ...] = (),
    ) -> None:
        self._others = others  # forms in which it may be instead, until it is seen which it is
        self._choices = choices
        self._finished: dict[int, None] = {}  # the numbers of choices, in the order of their ends
        self._reported = WHOLE  # who had finished last when a report beside no choice came last
        self._reports = Reports(choices, prompts)
        self._go_by(form)
        self._unread: bytes | None = None  # a body of whose output nothing was asked yet
        self._latest: tuple[str, Group] | None = None  # all text of the last event, if it is known
        self.usage_final = self.awaits_report = False
        self.model: str | None = None
        self.response_id: str | None = None
        self.failed = False
        self.deferred = False
        self.has_output = False
        self.unread_bytes = 0

    def _go_by(self, form: Answers) -> None:
        self._form = form
        self._texts = Texts(cumulative=form.cumulative)
        self.outline = Outline(form.parts) if form.parts is not None else None

    def _find_form(self, value: dict[str, Any]) -> None:
        """Go by the form that an answer is seen to be in, where it may be in several."""
        form = self._form
        if holds_text(value, form) or reports_output(value, form):
            self._others = ()
            return
        for holds in (holds_text, reports_output):
            for other in self._others:
                if holds(value, other):
                    self._others = ()
                    self._go_by(other)
                    return

    @property
    def usage(self) -> Usage | None:
        """The latest report, None where nothing was told."""
        return self._reports.usage

    @property
    def tells_input(self) -> bool:
        """Whether the report tells the input of all prompts."""
        return self._reports.tells_input

    @property
    def tells_output(self) -> bool:
        """Whether the report contains all the output that was seen."""
        return self._reports.tells_output

    @property
    def usage_of_all(self) -> Usage | None:
        """The latest report, where it is of all that was seen, so that nothing need be counted."""
        covers = self._reports.covers if self._form.text else bool(self._reports)
        return self._reports.usage if covers else None

    @property
    def usage_covers(self) -> bool:
        """Whether the report is of all that was seen."""
        return self.usage_of_all is not None

    @property
    def output_so_far(self) -> int:
        """A lower estimate of the output in tokens, without counting text."""
        told = self._reports.output
        pieces = self._texts.seen
        return max(told, pieces) if self._reports.stale else told or pieces

    @property
    def text_overflow_bytes(self) -> int:
        """Bytes of output that came after more text than is kept."""
        return self._texts.overflow_bytes

    @property
    def unfinished(self) -> list[int]:
        """The choices that have not been told to be finished."""
        return [n for n in range(min(self._choices, CHOICES_MAX)) if n not in self._finished]

    def _take_text(self, source: dict[str, Any], tree: Tree, index: int, group: Group) -> None:
        if self._texts.take(source, tree, group):
            self.has_output = True
            self._reports.stale.add(index)

    def _take_usage(self, value: dict[str, Any], index: int) -> bool:
        if not self._reports.take(self._form.usage, value, index):
            return False
        if not self.has_output:
            self.has_output = self._reports.output > 0
        return True

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
