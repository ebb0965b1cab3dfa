"""Options from one TOML file: sections of options, and tables of accounts, levels and prices."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from inf_middleware.accounts.toml import TomlAccounts
from inf_middleware.domain.errors import ConfigError
from inf_middleware.domain.prices import Prices
from inf_middleware.domain.tables import nearest
from inf_middleware.domain.tiers import Tiers
from inf_middleware.files import TableFile, read_text
from inf_middleware.settings.kinds import is_of_code
from inf_middleware.settings.options import (
    DEFAULTS,
    LedgerOptions,
    LimiterOptions,
    MeterOptions,
)
from inf_middleware.upstream import Upstream

# Sections that are called like an option have it as `uri`, or as `file`.
_NAMESAKES = {
    "accounts": "file",
    "tiers": "file",
    "prices": "file",
    "storage": "uri",
    "ledger": "uri",
}

# What may stand in such a section in the place of a file: its tables.
_INLINE = {
    "accounts": {"account"},
    "tiers": {"tier"},
    "prices": {"price", "version", "currency"},
}

# Of each entry a table.
_ROW = {"accounts": "account", "tiers": "tier", "prices": "price"}

_SECTIONS = {
    "accounts_ttl_s": "accounts",
    "trusted_proxies": "accounts",
    "anonymous": "accounts",
    "serves": "prices",
    "unpriced": "prices",
    "enforce_features": "prices",
    "admin_key": "policies",
    "storage_timeout_s": "storage",
    "lease_s": "storage",
    "exempt": "policies",
    "body_bytes_max": "policies",
    "websockets": "policies",
    "on_disconnect": "policies",
    "on_ledger_error": "policies",
}

# Sections that are no options of a Gate's by their keys.
_WHOLE = ("sinks", "upstream")

_TOP = ""  # deployment, help_url: not in a section


class Place(NamedTuple):
    """Where a value stands: a file, and a line of it."""

    path: str
    line: int

    def __str__(self) -> str:
        return f"{self.path}, line {self.line}"


class Written(NamedTuple):
    """A value of an option in a settings file."""

    place: Place
    value: Any


def section_of(option: str) -> str:
    """Return the section that an option stands in; "" is none."""
    if option in _NAMESAKES or option == "sinks":
        return option
    if option in _SECTIONS:
        return _SECTIONS[option]
    common = set(MeterOptions.__annotations__) & set(LedgerOptions.__annotations__)
    if option in common:
        return _TOP
    if option in MeterOptions.__annotations__:
        return "meter"
    return "policies" if option in LimiterOptions.__annotations__ else "ledger"


def written_as(option: str) -> str:
    """Return where an option stands in a settings file, in words: "[storage] uri"."""
    section = "" if option == "upstream" else section_of(option)
    key = _NAMESAKES.get(option, option)
    if not section:
        return "[upstream]" if option == "upstream" else key
    return f"[{section}]" if option == section == "sinks" else f"[{section}] {key}"


def read_config(path: str | Path) -> dict[str, Written]:
    """Read a settings file: the values of options, not checked yet, and `upstream`.

    Paths of tables and tokenizers are relative to the file.

    Raises:
        ConfigError: It cannot be read, is not TOML, or has an unknown key; names file and line.
    """
    text = read_text("settings", path)
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: {error}") from None
    return _Reader(str(path), text, table).read()


class _Reader:
    def __init__(self, path: str, text: str, table: Mapping[str, Any]) -> None:
        self._path = path
        self._text = text
        self._table = table
        self._known: dict[str, dict[str, str]] = {}  # section → key → option
        for option in DEFAULTS:
            if not is_of_code(option) and option != "sinks":
                key = _NAMESAKES.get(option, option)
                self._known.setdefault(section_of(option), {})[key] = option

    def read(self) -> dict[str, Written]:
        written: dict[str, Written] = {}
        for key, value in self._table.items():
            if key in self._known[_TOP]:
                written[key] = Written(self._place(key), value)
            elif key not in _WHOLE and key not in self._known:
                raise self._unknown(_TOP, key, [*self._known[_TOP], *self._sections()])
            elif not isinstance(value, dict):
                raise ConfigError(
                    f"{self._place(key)}: {key} is no section: write [{key}] and its keys below"
                )
            elif key == "sinks":
                written[key] = Written(self._place(key), value)
            elif key == "upstream":
                written[key] = self._upstream(value)
            else:
                self._read_section(key, value, written)
        return written

    def _upstream(self, table: Mapping[str, Any]) -> Written:
        try:
            return Written(self._place("upstream"), Upstream.from_table(table, self._path))
        except ConfigError as error:
            place = self._place_in_upstream(table, str(error))
            raise ConfigError(f"{place}: {_without(self._path, error)}") from None

    def _place_in_upstream(self, table: Mapping[str, Any], told: str) -> Place:
        """Return where the key stands with which an error about the section begins."""
        keys = sorted(table, key=lambda key: key != "url")  # which the others need
        for count in range(len(keys)):
            try:
                Upstream.from_table({key: table[key] for key in keys[:count]}, self._path)
            except ConfigError as error:
                if str(error) == told:
                    return self._place("upstream", *keys[count - 1 : count])
        return self._place("upstream", *keys[-1:])

    def _read_section(
        self, section: str, table: Mapping[str, Any], written: dict[str, Written]
    ) -> None:
        known = self._known[section]
        inline = _INLINE.get(section, set())
        for key, value in table.items():
            if key in inline:
                continue
            if key not in known:
                raise self._unknown(section, key, [*known, *inline])
            option = known[key]
            place = self._place(section, key)
            written[option] = Written(place, self._from_here(option, value))
        tables = sorted(inline & table.keys())
        if tables and section in written:
            raise ConfigError(
                f"{written[section].place}: [{section}] has `file`, and {tables[0]} beside it;"
                " write one of them"
            )
        if tables:
            place = self._place(section, tables[0])
            row = _ROW[section]
            if row not in table:
                raise ConfigError(f"{place}: [{section}] has no [[{section}.{row}]] table")
            try:
                written[section] = Written(place, _inline(section, self._path))
            except ConfigError as error:
                raise ConfigError(f"{place}: {_without(self._path, error)}") from None

    def _from_here(self, option: str, value: Any) -> Any:
        """Return a value with what is a path in it relative to this file's folder."""
        if isinstance(value, Mapping):
            return {key: self._from_here(option, item) for key, item in value.items()}
        if not isinstance(value, str):
            return value
        is_path = _NAMESAKES.get(option) == "file" or option == "counter"
        if is_path and value.endswith((".toml", ".json")):
            return str(Path(self._path).parent / value)
        return value

    def _unknown(self, section: str, key: str, known: list[str]) -> ConfigError:
        place = self._place(*filter(None, (section, key)))
        where = f"[{section}] has" if section else "there is"
        if key in DEFAULTS and is_of_code(key):
            return ConfigError(f"{place}: {key} is given in code only")
        if key in DEFAULTS and section_of(key) != section:
            belongs = section_of(key)
            named = _NAMESAKES.get(key, key)
            at = f"into [{belongs}] as {named}" if belongs else "before the first section"
            return ConfigError(f"{place}: {where} no {key}; it belongs {at}")
        for whole, row in _ROW.items():
            if key == row and not section:
                return ConfigError(f"{place}: {where} no {key}; write [[{whole}.{row}]]")
        return ConfigError(f"{place}: {where} no {key}{nearest(key, known)}")

    def _sections(self) -> list[str]:
        return [section for section in (*self._known, *_WHOLE) if section != _TOP]

    def _place(self, *keys: str) -> Place:
        return Place(self._path, line_of(self._text, keys))


def line_of(text: str, keys: tuple[str, ...]) -> int:
    """Return the line in which a key of a TOML text stands, counted from 1.

    Found by reading the text from its start, longer by a line each time: exact for whatever TOML
    allows, and fast enough for what is written by hand.
    """
    lines = text.splitlines()
    whole = 0  # lines that are TOML, and do not have the key
    for count in range(1, len(lines) + 1):
        try:
            table: Any = tomllib.loads("\n".join(lines[:count]))
        except tomllib.TOMLDecodeError:
            continue  # in the middle of a value
        for key in keys:
            table = table.get(key) if isinstance(table, dict) else None
        if table is not None:
            break
        whole = count
    return min(whole + 1, max(len(lines), 1))


def _inline(section: str, path: str) -> Any:
    if section == "accounts":
        return TomlAccounts(path, section=section)
    if section == "tiers":
        return TableFile(section, path, _tiers_of, section=section)
    return TableFile(section, path, _prices_of, section=section)


def _tiers_of(table: Mapping[str, Any], source: str) -> Tiers:
    return Tiers.from_table(_tables_of("tiers", table), source)


def _prices_of(table: Mapping[str, Any], source: str) -> Prices:
    return Prices.from_table(_tables_of("prices", table), source)


def _tables_of(section: str, table: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in table.items() if key in _INLINE[section]}


def _without(path: str, error: ConfigError) -> str:
    return str(error).removeprefix(path).lstrip(" :")
