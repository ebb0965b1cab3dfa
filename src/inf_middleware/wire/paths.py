"""Where a fact sits in a JSON value: dotted paths such as "usage.prompt_tokens".

A list on the way is entered: each of its objects is looked into. Where servers disagree about one
name, "a|b" takes the first that is there.
"""

from collections.abc import Iterable
from functools import cache
from typing import Any, NamedTuple, TypeAlias


@cache
def steps_of(path: str) -> tuple[tuple[str, ...], ...]:
    """Return the names, each with its alternatives, of a path; none for the value itself."""
    return tuple(tuple(step.split("|")) for step in path.split(".")) if path else ()


def find(value: object, path: str) -> Any:
    """Return what a path without lists leads to, or None."""
    for names in steps_of(path):
        if type(value) is not dict:
            return None
        for name in names:
            inner = value.get(name)
            if inner is not None:
                break
        value = inner
    return value


class Branch(NamedTuple):
    """One step of several paths together.

    `is_end`: one of them ends here. `before`: the names that are taken in its place where they are
    there.
    """

    is_end: bool
    before: tuple[str, ...]
    tree: "Tree"


Tree: TypeAlias = dict[str, Branch]


def tree_of(paths: Iterable[str]) -> Tree:
    """Join paths, so that a value is walked once for all of them."""
    heads: dict[tuple[str, ...], list[str]] = {}
    for path in paths:
        head, _, rest = path.partition(".")
        heads.setdefault(steps_of(head)[0], []).append(rest)
    return {
        name: Branch("" in rests, names[:place], tree_of(rest for rest in rests if rest))
        for names, rests in heads.items()
        for place, name in enumerate(names)
    }


def collect(value: dict[str, Any], tree: Tree, found: list[Any]) -> None:
    """Append all that the paths of a tree lead to."""
    for name in tree if len(tree) < len(value) else value:
        inner = value.get(name)
        if not inner:
            continue
        branch = tree.get(name)
        if branch is None:
            continue
        is_end, before, branches = branch
        if before and any(value.get(other) for other in before):
            continue
        if is_end:
            found.append(inner)
        if branches:
            if type(inner) is dict:
                collect(inner, branches, found)
            elif type(inner) is list:
                for item in inner:
                    if type(item) is dict:
                        collect(item, branches, found)
