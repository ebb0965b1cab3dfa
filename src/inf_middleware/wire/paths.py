"""Where a fact sits in a JSON value: dotted paths such as "usage.prompt_tokens".

A list on the way is entered: each of its objects is looked into. Where servers disagree about one
name, "a|b" takes the first that is there.
"""

from collections.abc import Iterable
from functools import cache
from typing import Any, NamedTuple


@cache
def steps_of(path: str) -> tuple[tuple[str, ...], ...]:
    """Return the names, each with its alternatives, of a path; none for the value itself."""
    return tuple(tuple(step.split("|")) for step in path.split(".")) if path else ()


def find(value: object, path: str) -> Any:
    """Return what a path without lists leads to, or None."""
    for names in steps_of(path):
        if not isinstance(value, dict):
            return None
        value = next((value[name] for name in names if value.get(name) is not None), None)
    return value


class Branch(NamedTuple):
    """One step of several paths together: where it leads, and whether one of them ends here."""

    names: tuple[str, ...]
    is_end: bool
    branches: tuple["Branch", ...]


def tree_of(paths: Iterable[str]) -> tuple[Branch, ...]:
    """Join paths, so that a value is walked once for all of them."""
    heads: dict[tuple[str, ...], list[str]] = {}
    for path in paths:
        head, _, rest = path.partition(".")
        heads.setdefault(steps_of(head)[0], []).append(rest)
    return tuple(
        Branch(names, "" in rests, tree_of(rest for rest in rests if rest))
        for names, rests in heads.items()
    )


def collect(value: dict[str, Any], tree: tuple[Branch, ...], found: list[Any]) -> None:
    """Append all that the paths of a tree lead to, in the order of the paths."""
    for names, is_end, branches in tree:
        for name in names:
            inner = value.get(name)
            if inner:
                break
        else:
            continue
        if is_end:
            found.append(inner)
        if branches:
            for item in inner if isinstance(inner, list) else (inner,):
                if isinstance(item, dict):
                    collect(item, branches, found)
