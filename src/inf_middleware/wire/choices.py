"""The choices of one event or answer, told apart by their numbers."""

from typing import Any

from inf_middleware.wire.form import Answers
from inf_middleware.wire.paths import collect
from inf_middleware.wire.texts import CHOICES_MAX


def choices_of(value: dict[str, Any], form: Answers) -> list[dict[str, Any]]:
    """Return the choices that a value holds; where there is no list of them, the value itself."""
    if form.each is None:
        return [value]
    choices = value.get(form.each)
    if type(choices) is not list:
        return []
    if len(choices) == 1 and type(choices[0]) is dict:
        return choices
    return [choice for choice in choices if isinstance(choice, dict)]


def number_of(value: object) -> int:
    """Return the number of a choice; 0 for what is none."""
    return value if type(value) is int and 0 <= value < CHOICES_MAX else 0


def is_empty(choice: dict[str, Any], form: Answers) -> bool:
    """Whether a choice of an event says nothing."""
    found: list[Any] = []
    collect(choice, form.delta_tree, found)
    return not found and choice.get(form.finish) is None and not choice.get("delta")
