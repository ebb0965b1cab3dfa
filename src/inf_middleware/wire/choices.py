"""The choices of one event or answer, told apart by their numbers."""

from typing import Any

from inf_middleware.wire.form import BY_INDEX, Answers
from inf_middleware.wire.paths import collect, find
from inf_middleware.wire.texts import CHOICES_MAX, Group
from inf_middleware.wire.usage import OUTPUT


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


def group_of(choice: dict[str, Any], form: Answers) -> Group:
    """Return the numbers that tell the texts of a choice apart."""
    if form.group == BY_INDEX:
        return (number_of(choice.get("index")),)
    return tuple([number_of(find(choice, path)) for path in form.group])


def only_text(value: dict[str, Any], kind: str, form: Answers) -> tuple[str, Group] | None:
    """Return the only text of an event of a type, and its group.

    None where it has none or several, or where texts repeat those before.
    """
    if form.cumulative or kind in form.silent:
        return None
    found: list[Any] = []
    choices = choices_of(value, form)
    for choice in choices:
        collect(choice, form.delta_tree, found)
    if len(choices) != 1 or len(found) != 1 or type(found[0]) is not str:
        return None
    return found[0], group_of(choices[0], form)


def is_empty(choice: dict[str, Any], form: Answers) -> bool:
    """Whether a choice of an event says nothing."""
    found: list[Any] = []
    collect(choice, form.delta_tree, found)
    return not found and choice.get(form.finish) is None and not choice.get("delta")


def holds_text(value: dict[str, Any], form: Answers) -> bool:
    """Whether a value has a place of a form's text, be it empty."""
    heads = form.text_heads
    return any(not heads.isdisjoint(choice) for choice in choices_of(value, form))


def reports_output(value: dict[str, Any], form: Answers) -> bool:
    """Whether a value tells output tokens in a form's place and words."""
    return any(OUTPUT in at.read(value) for at in form.usage)
