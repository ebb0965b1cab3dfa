"""Tables in TOML: price lists and levels."""

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from importlib.resources import files
from typing import Any

from inf_middleware.domain.errors import ConfigError


def shipped(name: str) -> str:
    """Read one of the tables that ship with the package."""
    return (files("inf_middleware") / "domain" / name).read_text("utf-8")


def parse(text: str, source: str) -> dict[str, object]:
    """Parse TOML.

    Raises:
        ConfigError: Not TOML; names the source, line and column.
    """
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source}: {error}") from None


def refuse_unknown(table: Mapping[str, object], known: Iterable[str], where: str) -> None:
    """Refuse keys that are not known, naming the nearest one that is, or all.

    Raises:
        ConfigError: A key is not among `known`.
    """
    unknown = sorted(set(table) - set(known))
    if unknown:
        hint = nearest(unknown[0] if len(unknown) == 1 else "", known)
        raise ConfigError(f"{where} has unknown {', '.join(unknown)}{hint}")


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the end of an error about an unknown name: the nearest known one, or all."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {near[0]}?" if near else f"; known are {', '.join(sorted(names))}"


def rows(table: Mapping[str, object], key: str, source: str) -> list[dict[str, Any]]:
    """Return the `[[key]]` tables.

    Raises:
        ConfigError: There is none.
    """
    entries = table.get(key)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ConfigError(f"{source} has no [[{key}]] table")
    return entries
