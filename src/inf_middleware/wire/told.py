"""Whole bodies that tell all that is asked of them: their names and their usage, at once.

So nearly all are. What is odd about a body in any way (an error, a count that is none, a report in
another place) makes it one that has to be looked into, which takes some five times as long.
"""

from collections.abc import Callable, Sequence
from keyword import iskeyword
from operator import attrgetter
from typing import Annotated, Any, ClassVar, Protocol, TypeAlias

import msgspec

from inf_middleware.domain.usage import TOKENS_MAX, Usage
from inf_middleware.wire.body import ODD
from inf_middleware.wire.usage import WHOLES, UsageAt


class Told(msgspec.Struct, frozen=True, gc=False):
    """What such a body tells, in the words of `AnswerReader`: it did not fail, and it is all."""

    usage: Usage
    response_id: str | None
    model: str | None

    failed: ClassVar[bool] = False
    deferred: ClassVar[bool] = False
    has_output: ClassVar[bool] = True

    @property
    def usage_of_all(self) -> Usage:
        """The usage."""
        return self.usage

    @property
    def output_so_far(self) -> int:
        """All of the output."""
        return self.usage.output_tokens


# None where a body has to be looked into.
ToldReader: TypeAlias = Callable[[bytes], Told | None]

_Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=TOKENS_MAX)]


class _Report(Protocol):
    input: int
    output: int


class _Body(Protocol):
    report: _Report
    id: str | None
    model: str | None
    type: Any
    status: Any


def told_reader(
    usage: Sequence[UsageAt],
    id: Sequence[str],  # noqa: A002 - as everywhere
    model: Sequence[str],
    unfinished: frozenset[str],
) -> ToldReader | None:
    """Return what reads bodies by where their facts sit (see `Answers`); None where it cannot.

    One place of reports is at the top of a body, and what leads to the others must be absent.
    """
    near = [at for at in usage if at.at and "." not in at.at]
    if len(near) != 1 or not (id and model):
        return None
    (at,) = near
    far = {other.at.partition(".")[0] for other in usage if other is not at}
    far |= {path.partition(".")[0] for path in (*id[:-1], *model[:-1])}
    parts = sorted({head for name, head, _ in at.ways if name not in WHOLES})
    others = ("type", "status", "error", *far)
    told = (at.input, at.output, *parts), (at.at, id[-1], model[-1], *others)
    ours = ("input", "output", *parts), ("report", "id", "model", *others)
    if not all(map(_are_names, (*told, *ours))):
        return None
    report = _struct(
        {"input": at.input, "output": at.output},
        [("input", _Count), ("output", _Count), *((part, Any, None) for part in parts)],
    )
    decode = _struct(
        {"report": at.at, "id": id[-1], "model": model[-1]},
        [
            ("report", report),
            *((name, str | None, None) for name in ("id", "model")),
            *((name, Any, None) for name in others[:2]),
            *((name, None, None) for name in others[2:]),
        ],
    )
    return _reader(msgspec.json.Decoder(decode).decode, at, parts, unfinished)


def _reader(
    decode: Callable[[bytes], _Body], at: UsageAt, parts: list[str], unfinished: frozenset[str]
) -> ToldReader:
    # Twice the first, for of one name no tuple would be made.
    parts_of = attrgetter(*parts, parts[0]) if parts else None
    none = (None,) * (len(parts) + 1)

    def read(body: bytes) -> Told | None:
        try:
            value = decode(body)
        except ODD:
            return None
        report = value.report
        if not report.output or value.type == "error":
            return None
        status = value.status
        if status is not None and isinstance(status, str) and status in unfinished:
            return None
        if parts_of is None or (found := parts_of(report)) == none:
            usage = Usage(report.input, report.output)
        else:
            told: dict[str, Any] = dict(zip(parts, found, strict=False))
            told |= {at.input: report.input, at.output: report.output}
            usage = at.usage(at.counts(told))
        return Told(usage, value.id, value.model)

    return read


def _are_names(names: Sequence[str]) -> bool:
    return len(set(names)) == len(names) and all(
        name.isidentifier() and not iskeyword(name) for name in names
    )


def _struct(names: dict[str, str], fields: list[Any]) -> Any:
    return msgspec.defstruct("Body", fields, rename=names, gc=False)
