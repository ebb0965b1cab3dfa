"""The options: their names, kinds and defaults, each checked when it is given."""

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, TypedDict

from inf_middleware.accounts.toml import TomlAccounts
from inf_middleware.call.record import Asked, OnUsage
from inf_middleware.domain.errors import ConfigError
from inf_middleware.domain.moments import zone_of
from inf_middleware.domain.prices import Price, Prices
from inf_middleware.domain.tiers import Account, Tiers
from inf_middleware.ledgers.uris import ledger_of
from inf_middleware.ports import AccountLookup, Ledger, LimitStore, Sink
from inf_middleware.sinks.uris import sink_from_uri
from inf_middleware.stores.outage import OutagePolicy
from inf_middleware.tokens.counters import CounterOption, Counters
from inf_middleware.wire.dialect import Dialect
from inf_middleware.wire.forwarded import TrustedProxies


class LimitsStorage(Protocol):
    """A Redis storage of `limits.aio.storage`, made with implementation="redispy"."""

    bridge: Any


class CommonOptions(TypedDict, total=False):
    """Options of all; given to one of the three they hold for its whole stack.

    `accounts`: a mapping from key to level name or `Account`, the path of a TOML file, the
    URI of a ledger that keeps them, or an `AccountLookup`; none: each network address is an account
    on the level `anonymous` (None: 401).
    `accounts_ttl_s`: how long the answer of a look-up is remembered. `trusted_proxies`: addresses
    and networks whose forwarded headers are believed. `exempt`: path patterns that pass untouched;
    everything but POST and WebSocket does anyway. `body_bytes_max`: of a request. `websockets`:
    "refuse" or "pass". `deployment`: names this service in events. `help_url`: named in 401, 402
    and 429.
    """

    accounts: Mapping[str, str | Account] | AccountLookup | str | Path | None
    accounts_ttl_s: float
    trusted_proxies: Sequence[str]
    anonymous: str | None
    exempt: Sequence[str]
    body_bytes_max: int
    websockets: Literal["refuse", "pass"]
    deployment: str
    help_url: str | None


class MeterOptions(CommonOptions, total=False):
    """Options of `TokenMeter`.

    `counter`, for what no usage is told of: an encoding's name, a `tiktoken.Encoding`, the path of
    a `tokenizer.json`, any function from text to count, a `Counting` of one of these, or a mapping
    from model pattern to them. `dialects`: descriptions of further APIs. `include_usage`: ask
    streams for their usage; "continuous" asks servers that can (vLLM, SGLang) for running totals,
    so that a stream that is cut is billed exactly. `assumed_output_tokens`: reserved for a request
    without a cap of its own, also per model pattern. `on_usage`: called once per request with its
    final usage and its call.
    """

    counter: CounterOption | Mapping[str, CounterOption]
    dialects: Sequence[Dialect]
    include_usage: Asked
    assumed_output_tokens: int | Mapping[str, int]
    on_usage: OnUsage | None


class LimiterOptions(CommonOptions, total=False):
    """Options of `TierLimiter`.

    `tiers`: the levels, as `Tiers` or the path of a TOML file. `storage`: "memory://", a URI of
    the Redis or Valkey family as `limits` takes them, such a storage of `limits.aio`, or a
    `LimitStore`. `storage_timeout_s`: the deadline of each of its commands. `on_storage_error`:
    while it is away, "local" (this process alone, with its share), "refuse" (503) or "admit".
    `max_in_flight`: requests this process serves at a time (503 above; None: any number).
    `max_wait_s`: how long a request waits for its turn instead of being refused. `lease_s`: how
    long a slot outlives a process that died. `enforce`: False refuses nobody and marks who would
    have been.
    """

    tiers: Tiers | str | Path
    storage: str | LimitStore | LimitsStorage
    storage_timeout_s: float
    on_storage_error: OutagePolicy
    max_in_flight: int | None
    max_wait_s: float
    lease_s: float
    enforce: bool


class LedgerOptions(CommonOptions, total=False):
    """Options of `CostLedger`.

    `prices`: the price list, as `Prices` or the path of a TOML file. `serves`: the models this
    server really serves (None: any name); others are 404. `unpriced`: "record" at ¥0 (postpaid),
    "refuse" (prepaid), or a `Price` for models without one. `ledger`: "sqlite:///PATH", or a
    `Ledger`. `mode`: "postpaid" bills at the end, whatever the balance; "prepaid" holds the money
    before the app is called, and answers 402 where there is none. `sinks`: from a name, which is
    its place in the outbox and stays, to an async function, "jsonl:PATH", "https://HOST/PATH" or
    "redis://HOST:PORT?stream=NAME". `settle_timeout_s`: how long a failing ledger is tried again;
    `on_ledger_error` then: "spool" (postpaid) keeps the bill in a bounded, durable file on this
    host until the ledger is back, "refuse" (prepaid) fails the call unbilled.
    `on_disconnect`: "produced" tells the app that its client has left, and bills what it made until
    then; "drain" lets it finish, and bills what the server reports. `enforce_features`: refuse
    tools and structured output on models whose price does not list them. `timezone`: of the days
    and months in reports; records are in UTC whatever it is.
    """

    prices: Prices | str | Path
    serves: Sequence[str] | None
    unpriced: Literal["record", "refuse"] | Price
    ledger: str | Ledger
    mode: Literal["postpaid", "prepaid"]
    sinks: Mapping[str, Sink | str]
    on_ledger_error: Literal["spool", "refuse"]
    settle_timeout_s: float
    on_disconnect: Literal["produced", "drain"]
    enforce_features: bool
    timezone: str


class GateOptions(MeterOptions, LimiterOptions, LedgerOptions, total=False):
    """Options of `Gate`: those of all three."""


DEFAULTS: dict[str, Any] = {
    "accounts": None,
    "accounts_ttl_s": 60.0,  # how long a key that was taken back may still be good
    "trusted_proxies": TrustedProxies(),
    "anonymous": "free",
    "exempt": (),
    "body_bytes_max": 8 * 1024 * 1024,  # a 32k-token prompt is 0.2 MB; this leaves room for images
    "websockets": "refuse",
    "deployment": "default",
    "help_url": None,
    "counter": "o200k_base",  # nearest to open models, Chinese above all
    "dialects": (),
    "include_usage": True,
    "assumed_output_tokens": {"*": 1024},
    "on_usage": None,
    "tiers": None,
    "storage": "memory://",
    "storage_timeout_s": 0.25,  # a thousand times what a command takes, short for a caller
    "on_storage_error": "local",
    "max_in_flight": None,
    "max_wait_s": 0.0,
    "lease_s": 30.0,
    "enforce": True,
    "prices": None,
    "serves": None,
    "unpriced": None,
    "ledger": "sqlite:///inf-ledger.db",
    "mode": "postpaid",
    "sinks": {},
    "on_ledger_error": None,
    "settle_timeout_s": 2.0,
    "on_disconnect": "produced",
    "enforce_features": False,
    "timezone": "UTC",
}

MEMORY = "memory://"

# Renewed a third of it apart: shorter, and a busy event loop would lose leases.
LEASE_S_MIN = 1.0

# What one option may be at most where it is a number: far above use, below overflow.
_NUMBER_MAX = 2**40


def check(name: str, value: Any, known: Mapping[str, Any]) -> Any:
    """Check one option and return it as it is kept.

    Raises:
        ConfigError: The option is unknown, or its value cannot hold; says what would be right.
    """
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; known are {', '.join(sorted(known))}"
        raise ConfigError(f"there is no option {name}{hint}")
    checker = _CHECKS.get(name)
    return checker(name, value) if checker else value


def _positive_int(name: str, value: Any) -> int:
    if type(value) is not int or not 1 <= value <= _NUMBER_MAX:
        raise ConfigError(f"{name} is {value!r}; it must be a whole number of 1 or more")
    return value


def _seconds(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 3600:
        raise ConfigError(f"{name} is {value!r}; it must be from 0 to 3600 seconds")
    return float(value)


def _lease_seconds(name: str, value: Any) -> float:
    seconds = _seconds(name, value)
    if not seconds >= LEASE_S_MIN:
        raise ConfigError(f"{name} is {value!r}; it must be from {LEASE_S_MIN:g} to 3600 seconds")
    return seconds


def _timeout(name: str, value: Any) -> float:
    seconds = _seconds(name, value)
    if not seconds:
        raise ConfigError(f"{name} is {value!r}; it must be more than 0, such as 0.25")
    return seconds


def _positive_int_or_none(name: str, value: Any) -> int | None:
    return None if value is None else _positive_int(name, value)


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"{name} is {value!r}; it must be True or False")
    return value


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value.isprintable() or not value:
        raise ConfigError(f"{name} is {value!r}; it must be a printable text")
    return value


def _text_or_none(name: str, value: Any) -> str | None:
    return None if value is None else _text(name, value)


def _texts(name: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str) or not all(isinstance(item, str) for item in value):
        raise ConfigError(f'{name} is {value!r}; it must be a list of texts: ["/health"]')
    return tuple(value)


def _texts_or_none(name: str, value: Any) -> tuple[str, ...] | None:
    return None if value is None else _texts(name, value)


def _one_of(*choices: str | bool) -> Callable[[str, Any], Any]:
    def checker(name: str, value: Any) -> Any:
        if not isinstance(value, str | bool) or value not in choices:
            allowed = " or ".join(
                f'"{choice}"' if isinstance(choice, str) else str(choice) for choice in choices
            )
            raise ConfigError(f"{name} is {value!r}; it must be {allowed}")
        return value

    return checker


def _accounts(name: str, value: Any) -> Any:
    if isinstance(value, str | Path) and str(value).endswith(".toml"):
        return TomlAccounts(value)
    if value is None or isinstance(value, Mapping):
        return value
    if callable(value) and not isinstance(value, type):
        return value
    if isinstance(value, str) and "://" in value:
        ledger_of(value)
        return value
    raise ConfigError(
        f"{name} is {value!r}; give a mapping from key to level name or Account, such as"
        ' {"sk-demo": "free"}, the path of a file that ends in .toml, the URI of a ledger,'
        " or an async function"
        " (key, connection) -> Account | None"
    )


def _proxies(name: str, value: Any) -> TrustedProxies:
    if isinstance(value, Iterable):
        return TrustedProxies.of(value, name)
    raise ConfigError(f'{name} is {value!r}; write a list: ["10.0.0.0/8"]')


def _tiers(name: str, value: Any) -> Tiers:
    if isinstance(value, Tiers):
        return value
    return Tiers.from_toml(_file(name, value), source=str(value))


def _prices(name: str, value: Any) -> Prices:
    if isinstance(value, Prices):
        return value
    return Prices.from_toml(_file(name, value), source=str(value))


def _file(name: str, value: Any) -> str:
    if not isinstance(value, str | Path):
        raise ConfigError(f"{name} is {value!r}; give an object, or the path of a TOML file")
    try:
        return Path(value).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name}: {value} cannot be read: {error}") from error


def _storage(name: str, value: Any) -> Any:
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


def _counter(name: str, value: Any) -> Any:
    Counters(value)
    return value


def _assumed_output_tokens(name: str, value: Any) -> dict[str, int]:
    if not isinstance(value, Mapping):
        return {"*": _positive_int(name, value)}
    return {
        _text(f"a model pattern in {name}", pattern): _positive_int(f"{name}[{pattern!r}]", tokens)
        for pattern, tokens in value.items()
    }


def _function_or_none(name: str, value: Any) -> Any:
    if value is not None and not callable(value):
        raise ConfigError(f"{name} is {value!r}; give a function (usage, call) -> None")
    return value


def _dialects(name: str, value: Any) -> tuple[Dialect, ...]:
    if isinstance(value, str | Dialect) or not all(isinstance(one, Dialect) for one in value):
        raise ConfigError(
            f"{name} is {value!r}; give a list of `inf_middleware.wire.dialect.Dialect`"
        )
    return tuple(value)


def _ledger(name: str, value: Any) -> Any:
    if isinstance(value, str):
        ledger_of(value)
    elif not callable(getattr(value, "settle", None)):
        raise ConfigError(f'{name} is {value!r}; give "sqlite:///inf-ledger.db" or a Ledger')
    return value


def _timezone(name: str, value: Any) -> str:
    text = _text(name, value)
    zone_of(text)
    return text


def _unpriced(name: str, value: Any) -> Any:
    return value if isinstance(value, Price) else _one_of("record", "refuse")(name, value)


def _sinks(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f'{name} is {value!r}; give a mapping: {{"mine": send}}')
    for key, sink in value.items():
        _text(f"the name of a sink in {name}", key)
        if isinstance(sink, str):
            sink_from_uri(sink)
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


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "accounts": _accounts,
    "accounts_ttl_s": _seconds,
    "trusted_proxies": _proxies,
    "anonymous": _text_or_none,
    "exempt": _texts,
    "body_bytes_max": _positive_int,
    "websockets": _one_of("refuse", "pass"),
    "deployment": _text,
    "help_url": _text_or_none,
    "counter": _counter,
    "dialects": _dialects,
    "include_usage": _one_of(True, False, "continuous"),
    "assumed_output_tokens": _assumed_output_tokens,
    "on_usage": _function_or_none,
    "tiers": _tiers,
    "storage": _storage,
    "storage_timeout_s": _timeout,
    "on_storage_error": _one_of("local", "refuse", "admit"),
    "max_in_flight": _positive_int_or_none,
    "max_wait_s": _seconds,
    "lease_s": _lease_seconds,
    "enforce": _flag,
    "prices": _prices,
    "serves": _texts_or_none,
    "unpriced": _unpriced,
    "ledger": _ledger,
    "mode": _one_of("postpaid", "prepaid"),
    "sinks": _sinks,
    "on_ledger_error": _one_of("spool", "refuse"),
    "settle_timeout_s": _seconds,
    "on_disconnect": _one_of("produced", "drain"),
    "enforce_features": _flag,
    "timezone": _timezone,
}
