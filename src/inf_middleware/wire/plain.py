"""Events that hold a piece of text of one choice, or the usage of the whole, and nothing else.

Nearly all are such. Only what could make an event another one is decoded, and the rest skipped:
half the cost of decoding it whole, on which the cost of a streamed chunk depends.
"""

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias, cast

import msgspec


class PlainChoice(Protocol):
    """A choice: `source` is its text, or the object that holds it."""

    index: Any
    finish: Any
    source: Any


class PlainEvent(Protocol):
    """An event as far as it was decoded; another one where `error` or `type` is not None."""

    choices: list[PlainChoice]
    id: Any
    model: Any
    report: Any
    error: Any
    type: Any


# Raises an error of msgspec where an event has another shape.
PlainDecoder: TypeAlias = Callable[[bytes], PlainEvent]


def plain_decoder(
    *,
    each: str,
    finish: str,
    source: str,
    id: str,  # noqa: A002 - as everywhere
    model: str,
    report: str,
    is_text: bool,
) -> PlainDecoder:
    """Return what reads events, by the names of their fields.

    `is_text`: what `source` names is text; else an object.
    """
    # No cycles can come of JSON, so that the collector need not look at any of it.
    choice = msgspec.defstruct(
        "PlainChoice",
        [
            ("source", str if is_text else dict[str, Any]),
            ("index", Any, None),
            ("finish", Any, None),
        ],
        rename={"source": source, "finish": finish},
        gc=False,
    )
    event = msgspec.defstruct(
        "PlainEvent",
        [
            ("choices", list[choice]),  # type: ignore[valid-type]
            ("id", Any, None),
            ("model", Any, None),
            ("report", Any, None),
            ("error", Any, None),
            ("type", Any, None),
        ],
        rename={"choices": each, "id": id, "model": model, "report": report},
        gc=False,
    )
    return cast("PlainDecoder", msgspec.json.Decoder(event).decode)
