"""How each kind of option is checked: an error says what would be right."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from inf_middleware.accounts.toml import TomlAccounts
from inf_middleware.domain.errors import ConfigError
from inf_middleware.domain.keys import key_of
from inf_middleware.domain.moments import zone_of
from inf_middleware.domain.prices import Price, Prices
from inf_middleware.domain.tiers import Tiers
from inf_middleware.domain.uris import check_patterns
from inf_middleware.files import TableFile
from inf_middleware.ledgers.uris import ledger_of
from inf_middleware.observers.needs import EXPORTERS, check_installed
from inf_middleware.sinks.uris import sink_from_uri
from inf_middleware.tokens.counters import Counters
from inf_middleware.wire.dialect import Dialect
from inf_middleware.wire.forwarded import TrustedProxies

T = TypeVar("T")

MEMORY = "memory://"

# 128 bits, written as hexadecimal digits.
ADMIN_KEY_CHARACTERS_MIN = 32

# Renewed a third of it apart: shorter, and a busy event loop would lose leases.
LEASE_S_MIN = 1.0

# What one option may be at most where it is a number: far above use, below overflow.
_NUMBER_MAX = 2**40


def positive_int(name: str, value: Any) -> int:
    """A whole number of 1 or more."""
    if type(value) is not int or not 1 <= value <= _NUMBER_MAX:
        raise ConfigError(f"{name} is {value!r}; it must be a whole number of 1 or more")
    return value


def seconds(name: str, value: Any) -> float:
    """A length of time."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 3600:
        raise ConfigError(f"{name} is {value!r}; it must be a number of seconds from 0 to 3600")
    return float(value)


def lease_seconds(name: str, value: Any) -> float:
    """How long a lease holds."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= LEASE_S_MIN:
        raise ConfigError(
            f"{name} is {value!r}; it must be a number of seconds from {LEASE_S_MIN:g} to 3600"
        )
    return seconds(name, value)


def timeout(name: str, value: Any) -> float:
    """A deadline, which cannot be 0."""
    length_s = seconds(name, value)
    if not length_s:
        raise ConfigError(f"{name} is {value!r}; it must be more than 0, such as 0.25")
    return length_s


def positive_int_or_none(name: str, value: Any) -> int | None:
    """A whole number of 1 or more, or None."""
    return None if value is None else positive_int(name, value)


def flag(name: str, value: Any) -> bool:
    """True or False, which files and variables write as true and false."""
    if not isinstance(value, bool):
        raise ConfigError(f"{name} is {value!r}; it must be true or false")
    return value


def flag_or_none(name: str, value: Any) -> bool | None:
    """True or False, or None."""
    return None if value is None else flag(name, value)


def text(name: str, value: Any) -> str:
    """A printable text."""
    if not isinstance(value, str) or not value.isprintable() or not value:
        raise ConfigError(f"{name} is {value!r}; it must be a printable text")
    return value


def text_or_none(name: str, value: Any) -> str | None:
    """A printable text, or None."""
    return None if value is None else text(name, value)


def texts(name: str, value: Any) -> tuple[str, ...]:
    """A list of texts."""
    items = tuple(value) if _is_list(value) else (None,)
    if not all(isinstance(item, str) for item in items):
        example = "/health" if name == "exempt" else "inf-chat-v1"
        raise ConfigError(f'{name} is {value!r}; it must be a list of texts: ["{example}"]')
    return items


def path_patterns(name: str, value: Any) -> tuple[str, ...]:
    """A list of patterns that paths can match."""
    patterns = texts(name, value)
    check_patterns(name, patterns)
    return patterns


def _is_list(value: Any) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping)


def metrics(name: str, value: Any) -> tuple[str, ...]:
    """Who is given metrics; imports nothing."""
    chosen = tuple(value) if _is_list(value) else (None,)
    if not all(one in EXPORTERS for one in chosen):
        known = ", ".join(f'"{one}"' for one in EXPORTERS)
        raise ConfigError(f"{name} is {value!r}; it must be a list of {known}")
    for one in dict.fromkeys(chosen):
        check_installed(one)
    return tuple(dict.fromkeys(chosen))


def path_or_none(name: str, value: Any) -> str | None:
    """A URL path, or None."""
    if value is not None and not (text(name, value).startswith("/") and len(value) > 1):
        raise ConfigError(f'{name} is {value!r}; it must be a path such as "/metrics"')
    return None if value is None else str(value)


def texts_or_none(name: str, value: Any) -> tuple[str, ...] | None:
    """A list of texts, or None."""
    return None if value is None else texts(name, value)


def one_of(*choices: str | bool) -> Callable[[str, Any], Any]:
    """Return the check of a choice."""

    def checker(name: str, value: Any) -> Any:
        if not isinstance(value, str | bool) or value not in choices:
            allowed = " or ".join(
                f'"{choice}"' if isinstance(choice, str) else str(choice).lower()
                for choice in choices
            )
            raise ConfigError(f"{name} is {value!r}; it must be {allowed}")
        return value

    return checker


def accounts(name: str, value: Any) -> Any:
    """Where accounts come from."""
    if isinstance(value, str | Path) and str(value).endswith(".toml"):
        return TomlAccounts(value)
    if value is None or isinstance(value, Mapping):
        return value
    if callable(value) and not isinstance(value, type):
        return value
    if isinstance(value, str):
        if "://" not in value:  # it may be a key, and is not shown
            raise ConfigError(
                f"{name} is neither the path of a file that ends in .toml nor the URI of a ledger;"
                ' write such as "accounts.toml" or "sqlite:///inf-ledger.db"'
            )
        ledger_of(value)
        return value
    raise ConfigError(
        f"{name} is a {type(value).__name__}; give a mapping from key to level name or Account,"
        ' such as {"sk-demo": "free"}, the path of a file that ends in .toml, the URI of a ledger,'
        " or an async function (key, connection) -> Account | None"
    )


def proxies(name: str, value: Any) -> TrustedProxies:
    """Addresses and networks that are trusted."""
    if isinstance(value, Iterable):
        return TrustedProxies.of(value, name)
    raise ConfigError(f'{name} is {value!r}; write a list: ["10.0.0.0/8"]')


def tiers(name: str, value: Any) -> Tiers | TableFile[Tiers]:
    """Levels, or the file they are in."""
    return value if isinstance(value, Tiers) else _table(name, value, Tiers.from_table)


def prices(name: str, value: Any) -> Prices | TableFile[Prices]:
    """A price list, or the file it is in."""
    return value if isinstance(value, Prices) else _table(name, value, Prices.from_table)


def _table(name: str, value: Any, parse: Callable[[dict[str, Any], str], T]) -> TableFile[T]:
    if isinstance(value, TableFile):
        return value
    if not isinstance(value, str | Path):
        raise ConfigError(f"{name} is {value!r}; give an object, or the path of a TOML file")
    return TableFile(name, value, parse)


def storage(name: str, value: Any) -> Any:
    """Where limits are counted; opens nothing."""
    if value == MEMORY or is_limit_store(value):
        return value
    from inf_middleware.stores.scripts import (  # noqa: PLC0415 - 100 ms at import, for this alone
        check_storage,
    )

    check_storage(value)
    return value


def is_limit_store(value: object) -> bool:
    """Tell whether a value is a `LimitStore`."""
    return all(hasattr(value, needed) for needed in ("admit", "renew", "settle", "aclose"))


def counter(name: str, value: Any) -> Any:
    """What counts tokens; loads nothing."""
    Counters(value)
    return value


def assumed_output_tokens(name: str, value: Any) -> dict[str, int]:
    """Tokens, or a mapping from model pattern to tokens."""
    if not isinstance(value, Mapping):
        return {"*": positive_int(name, value)}
    return {
        text(f"a model pattern in {name}", pattern): positive_int(f"{name}[{pattern!r}]", tokens)
        for pattern, tokens in value.items()
    }


def function_or_none(name: str, value: Any) -> Any:
    """A function, or None."""
    if value is not None and not callable(value):
        raise ConfigError(f"{name} is {value!r}; give a function (usage, call) -> None")
    return value


def dialects(name: str, value: Any) -> tuple[Dialect, ...]:
    """A list of dialects."""
    items = tuple(value) if _is_list(value) and not isinstance(value, Dialect) else (None,)
    if not all(isinstance(item, Dialect) for item in items):
        raise ConfigError(
            f"{name} is {value!r}; give a list of `inf_middleware.wire.dialect.Dialect`"
        )
    return items


def ledger(name: str, value: Any) -> Any:
    """A ledger, or its URI; opens nothing."""
    if isinstance(value, str):
        ledger_of(value)
    elif not callable(getattr(value, "settle", None)):
        raise ConfigError(f'{name} is {value!r}; give "sqlite:///inf-ledger.db" or a Ledger')
    return value


def timezone(name: str, value: Any) -> str:
    """The name of a time zone."""
    zone = text(name, value)
    zone_of(zone)
    return zone


def admin_key(name: str, value: Any) -> str:
    """A key that callers can send, and that nobody guesses; no error shows it."""
    sent = key_of(value.encode("utf-8", "replace")) if isinstance(value, str) else None
    if sent is None or sent != sent.strip() or len(sent) < ADMIN_KEY_CHARACTERS_MIN:
        raise ConfigError(
            f"{name} must be a printable text of {ADMIN_KEY_CHARACTERS_MIN} or more characters,"
            " without spaces around it; make one with: openssl rand -hex 32"
        )
    return sent


def unpriced(name: str, value: Any) -> Any:
    """What is done with models without a price."""
    return value if isinstance(value, Price) else one_of("record", "refuse")(name, value)


def _check_sink(name: str, uri: str) -> None:
    try:
        sink_from_uri(uri)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None


def sinks(name: str, value: Any) -> dict[str, Any]:
    """Sinks by name; opens nothing."""
    if not isinstance(value, Mapping):
        raise ConfigError(
            f'{name} is {value!r}; give a mapping from names: {{"mine": send}} in code,'
            ' { mine = "jsonl:events.jsonl" } in a file or a variable'
        )
    for key, sink in value.items():
        text(f"the name of a sink in {name}", key)
        if isinstance(sink, str):
            _check_sink(key, sink)
        elif not callable(sink):
            raise ConfigError(
                f'{name}[{key!r}] is {sink!r}; give an async function or a URI: "jsonl:PATH"'
            )
        window_s = getattr(sink, "dedupe_window_s", None)
        if window_s is not None and (
            isinstance(window_s, bool) or not isinstance(window_s, int | float) or window_s < 0
        ):
            raise ConfigError(
                f"dedupe_window_s of {name}[{key!r}] is {window_s!r};"
                " it must be a number of seconds, or None where ids are known for ever"
            )
    return dict(value)
