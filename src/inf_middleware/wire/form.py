"""Where the facts of an API's answers sit, as data."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from inf_middleware.wire.body import Head, head_of
from inf_middleware.wire.paths import Tree, tree_of
from inf_middleware.wire.plain import PlainDecoder, plain_decoder
from inf_middleware.wire.told import ToldReader, told_reader
from inf_middleware.wire.usage import UsageAt

# The number that tells choices apart nearly everywhere.
BY_INDEX = ("index",)


@dataclass(frozen=True, kw_only=True)
class PartsAt:
    """Where the parts of a streamed answer are told.

    `closed_by`: by the type of the event that opens a part, that of the event that closes it. In
    both is `number`, which tells it apart from others of its kind, and in the first of them `part`,
    what it is ("": nothing of it is kept). `sequence`: what numbers all events, if anything.
    """

    closed_by: Mapping[str, str]
    number: str
    part: str = ""
    sequence: str = ""

    @cached_property
    def closing(self) -> frozenset[str]:
        """The types of the events that close a part."""
        return frozenset(self.closed_by.values())


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
    event only, of each choice where they are told apart `by_index`. `usage_ends`: the report of the
    whole answer ends a stream.

    `told_apart`: a field of a whole body which says that its report is of the first choice alone.

    `unfinished`: values of `status` that say that the answer is to be fetched later. `parts`: where
    its events open and close parts, which have to be closed before it ends.
    """

    usage: tuple[UsageAt, ...] = ()
    id: tuple[str, ...] = ("id",)
    model: tuple[str, ...] = ("model",)
    each: str | None = None
    text: tuple[str, ...] = ()
    delta: tuple[str, ...] = ()
    cumulative: bool = False
    group: tuple[str, ...] = BY_INDEX
    finish: str = "finish_reason"
    by_index: bool = False
    ends: frozenset[str] = frozenset()
    fails: frozenset[str] = frozenset({"error"})
    silent: frozenset[str] = frozenset()
    end_flag: str = ""
    usage_ends: bool = False
    told_apart: str = ""
    unfinished: frozenset[str] = frozenset()
    parts: PartsAt | None = None

    def may_tell_apart(self, choices: int, body: bytes) -> bool:
        """Tell whether the report in a whole body may be of one of so many choices alone."""
        return choices > 1 and self.told_apart != "" and self.told_apart.encode() in body

    @cached_property
    def text_tree(self) -> Tree:
        """The paths of a whole body's output, joined."""
        return tree_of(self.text)

    @cached_property
    def delta_tree(self) -> Tree:
        """The paths of an event's output, joined."""
        return tree_of(self.delta)

    @cached_property
    def text_heads(self) -> frozenset[str]:
        """The fields of a choice in which its output begins."""
        return frozenset(self.text_tree) | frozenset(self.delta_tree)

    @cached_property
    def delta_head(self) -> tuple[str, Tree]:
        """The one field that all output of an event is in, if so, and what of it is output."""
        if len(self.delta_tree) == 1:
            ((name, (is_end, _, branches)),) = self.delta_tree.items()
            if not is_end:
                return name, branches
        return "", self.delta_tree

    @cached_property
    def usage_heads(self) -> tuple[str, ...]:
        """The fields of which one stands in every event that reports."""
        heads = {at.at.partition(".")[0] or at.output for at in self.usage}
        return tuple(sorted(heads))

    @cached_property
    def plain(self) -> PlainDecoder | None:
        """What reads an event of nothing but a piece of text, or the usage; None where none can."""
        if self.each is None or self.group != BY_INDEX or self.end_flag or self.parts is not None:
            return None
        if not len(self.delta_tree) == len(self.usage) == len(self.id) == len(self.model) == 1:
            return None
        named = (self.id[0], self.model[0], self.usage[0].at)
        if not all(named) or any("." in path or "|" in path for path in named):
            return None
        head, _ = self.delta_head
        return plain_decoder(
            each=self.each,
            finish=self.finish,
            source=head or self.delta[0],
            id=named[0],
            model=named[1],
            report=named[2],
            is_text=not head,
        )

    @cached_property
    def told(self) -> ToldReader | None:
        """What reads of a whole body what nearly all tell; None where there is output to read."""
        if not self.text:
            return None
        return told_reader(self.usage, self.id, self.model, self.unfinished)

    @cached_property
    def report(self) -> Head | None:
        """What reads of a whole body all but its output."""
        texts = {self.each, *(path.partition(".")[0] for path in self.text)}
        return head_of(self.fields - texts)

    @cached_property
    def fields(self) -> frozenset[str]:
        """The fields of a whole body that are read."""
        paths = [*self.id, *self.model, self.each or "", "error", "type", "status", "usage"]
        paths.append(self.told_apart)
        if self.each is None:
            paths += [*self.text, *self.group]
        for at in self.usage:
            counts = (at.input, at.output, at.cached_input, at.cache_write, *at.beside_input)
            paths += [at.at] if at.at else [path for path in counts if isinstance(path, str)]
        return frozenset(path.partition(".")[0] for path in paths if path)
