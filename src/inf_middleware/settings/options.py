"""The options: their names, kinds and defaults, each checked when it is given."""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, TypedDict

from inf_middleware.call.record import Asked, OnUsage
from inf_middleware.domain.errors import ConfigError
from inf_middleware.domain.prices import Price, Prices
from inf_middleware.domain.tables import nearest
from inf_middleware.domain.tiers import Account, Tiers
from inf_middleware.ports import AccountLookup, Ledger, LimitStore, Sink
from inf_middleware.settings import checks
from inf_middleware.settings.shown import without_credentials
from inf_middleware.stores.outage import OutagePolicy
from inf_middleware.tokens.counters import CounterOption
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
    and 429. `log_calls`: one line per settled call and per refusal, at INFO (None: where a
    TokenMeter stands alone). `metrics`: who is given them, "prometheus" and "otel".
    `metrics_path`: where a GET is answered with those of Prometheus, to anybody (None: nowhere but
    where `metrics_app()` is mounted). `metrics_by_account`: some of them for each account too.
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
    log_calls: bool | None
    metrics: Sequence[str]
    metrics_path: str | None
    metrics_by_account: bool


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
    host until the ledger is back, also where it does not answer for so long; "refuse" (prepaid)
    fails the call unbilled.
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


class AdminOptions(GateOptions, total=False):
    """Options of `admin_routes`: those of `Gate`, and its own.

    `admin_key`: what its callers send, 32 characters or more.
    """

    admin_key: str


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
    "log_calls": None,
    "metrics": (),
    "metrics_path": None,
    "metrics_by_account": False,
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
    "admin_key": None,
}

# Defaults that follow from the mode.
BY_MODE: dict[str, dict[str, str]] = {
    "unpriced": {"postpaid": "record", "prepaid": "refuse"},
    "on_ledger_error": {"postpaid": "spool", "prepaid": "refuse"},
}


# Whose options they are, of those that not all have.
_OWNERS = {
    "TokenMeter": MeterOptions.__annotations__,
    "TierLimiter": LimiterOptions.__annotations__,
    "CostLedger": LedgerOptions.__annotations__,
    "admin_routes": AdminOptions.__annotations__,
}


def default(name: str, mode: str) -> Any:
    """Return the default of an option in a mode."""
    return BY_MODE[name][mode] if name in BY_MODE else DEFAULTS[name]


def check(name: str, value: Any, known: Collection[str]) -> Any:
    """Check one option and return it as it is kept.

    Raises:
        ConfigError: The option is unknown, or its value cannot hold; says what would be right.
    """
    if name not in known:
        owner = next((owner for owner, names in _OWNERS.items() if name in names), None)
        if owner is not None:
            raise ConfigError(f"there is no option {name} here; it belongs to {owner}")
        raise ConfigError(f"there is no option {name}{nearest(name, known)}")
    checker = _CHECKS.get(name)
    if checker is None:
        return value
    try:
        return checker(name, value)
    except ConfigError as error:
        raise ConfigError(without_credentials(str(error), value)) from None


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "accounts": checks.accounts,
    "accounts_ttl_s": checks.seconds,
    "trusted_proxies": checks.proxies,
    "anonymous": checks.text_or_none,
    "exempt": checks.path_patterns,
    "body_bytes_max": checks.positive_int,
    "websockets": checks.one_of("refuse", "pass"),
    "deployment": checks.text,
    "help_url": checks.text_or_none,
    "log_calls": checks.flag_or_none,
    "metrics": checks.metrics,
    "metrics_path": checks.path_or_none,
    "metrics_by_account": checks.flag,
    "counter": checks.counter,
    "dialects": checks.dialects,
    "include_usage": checks.one_of(True, False, "continuous"),
    "assumed_output_tokens": checks.assumed_output_tokens,
    "on_usage": checks.function_or_none,
    "tiers": checks.tiers,
    "storage": checks.storage,
    "storage_timeout_s": checks.timeout,
    "on_storage_error": checks.one_of("local", "refuse", "admit"),
    "max_in_flight": checks.positive_int_or_none,
    "max_wait_s": checks.seconds,
    "lease_s": checks.lease_seconds,
    "enforce": checks.flag,
    "prices": checks.prices,
    "serves": checks.texts_or_none,
    "unpriced": checks.unpriced,
    "ledger": checks.ledger,
    "mode": checks.one_of("postpaid", "prepaid"),
    "sinks": checks.sinks,
    "on_ledger_error": checks.one_of("spool", "refuse"),
    "settle_timeout_s": checks.seconds,
    "on_disconnect": checks.one_of("produced", "drain"),
    "enforce_features": checks.flag,
    "timezone": checks.timezone,
    "admin_key": checks.admin_key,
}
