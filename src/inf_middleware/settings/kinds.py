"""What kinds of values an option takes when it is written as text, from its annotation."""

import tomllib
import types
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypedDict, Union, get_args, get_origin

from inf_middleware.domain.prices import Prices
from inf_middleware.domain.tiers import Tiers
from inf_middleware.settings.options import AdminOptions

_SWITCHED = {"0": False, "false": False, "no": False, "off": False}
_SWITCHED |= {"1": True, "true": True, "yes": True, "on": True}


class Kinds(TypedDict):
    """Which kinds of values an option takes; one without any is an object of code."""

    none: bool
    flag: bool
    number: bool
    text: bool
    texts: bool
    mapping: bool


@lru_cache(maxsize=1)
def kinds_of_options() -> Mapping[str, Kinds]:
    """Return the kinds of all options."""
    return {name: _kinds(hint) for name, hint in AdminOptions.__annotations__.items()}


def is_of_code(name: str) -> bool:
    """Tell whether an option can be given by code alone."""
    kinds = kinds_of_options()[name]
    return not any(kinds[kind] for kind in ("flag", "number", "text", "texts", "mapping"))


def value_of_text(name: str, text: str) -> Any:
    """Return the value that an option has when it is written as a text.

    What cannot be one is returned as it is, for the option's check to say what would be right.
    """
    kinds = kinds_of_options()[name]
    word = text.strip().lower()
    if kinds["none"] and word == "none":
        return None
    if kinds["flag"] and word in _SWITCHED:
        return _SWITCHED[word]
    if kinds["number"]:
        number = _toml(word)
        if isinstance(number, int | float):
            return number
    if kinds["mapping"] and word.startswith("{"):
        mapping = _toml(text.strip())
        if isinstance(mapping, dict):
            return mapping
    if kinds["texts"]:
        return [part.strip() for part in text.split(",") if part.strip()]
    return text


def _toml(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}").get("value")
    except tomllib.TOMLDecodeError:
        return None


def _kinds(hint: Any) -> Kinds:
    members = list(_members(hint))
    return {
        "none": type(None) in members,
        "flag": bool in members,
        "number": int in members or float in members,
        "text": any(one in (str, Path, Tiers, Prices) for one in members),
        "texts": Sequence[str] in members,
        "mapping": any(_is_mapping(one) for one in members),
    }


def _is_mapping(hint: Any) -> bool:
    return get_origin(hint) is Mapping


def _members(hint: Any) -> Sequence[Any]:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return [one for part in get_args(hint) for one in _members(part)]
    if origin is Literal:
        return [type(choice) for choice in get_args(hint)]
    if origin is Callable:
        return []
    return [hint]
