"""What is measured: names, labels and buckets, for whoever exports it.

Names are of OpenTelemetry's GenAI conventions where these have one; the others are ours.
Source: open-telemetry/semantic-conventions-genai, docs/gen-ai/gen-ai-metrics.md (2026-11, all of it
in "development").
"""

from typing import Literal, NamedTuple, TypeAlias

Kind: TypeAlias = Literal["counter", "histogram", "gauge"]

# How the values of several processes of one host become one: of those that live.
Across: TypeAlias = Literal["livesum", "livemax"]


class Metric(NamedTuple):
    """One thing that is measured: by its Prometheus `name`, and its name in OpenTelemetry.

    A counter's name gets `_total` from Prometheus. `buckets` are of histograms, `across` of gauges.
    """

    name: str
    otel: str
    kind: Kind
    unit: str
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    across: Across = "livemax"


# The conventions' own.
_REQUEST_S = (
    0.01,
    0.02,
    0.04,
    0.08,
    0.16,
    0.32,
    0.64,
    1.28,
    2.56,
    5.12,
    10.24,
    20.48,
    40.96,
    81.92,
)
_FIRST_S = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1.0,
    2.5,
    5.0,
    7.5,
    10.0,
)
_PER_TOKEN_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
_TOKENS = tuple(float(4**power) for power in range(14))

# Memory takes microseconds, Redis a fraction of a millisecond, an fsync some milliseconds; what
# takes seconds is about to be given up.
_STEP_S = (
    0.0001,
    0.00025,
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
)

_OF_CALL = ("endpoint", "model", "tier")

REQUESTS = Metric(
    "inf_middleware_requests",
    "inf_middleware.requests",
    "counter",
    "{request}",
    "Requests that were served, by how they ended and what their usage rests on.",
    (*_OF_CALL, "outcome", "basis"),
)
TOKENS = Metric(
    "inf_middleware_tokens",
    "inf_middleware.tokens",
    "counter",
    "{token}",
    "Tokens served; cached_input and cache_write are parts of input, reasoning of output.",
    ("model", "tier", "type"),
)
COST = Metric(
    "inf_middleware_cost",
    "inf_middleware.cost",
    "counter",
    "1",
    "What served requests cost, in the currency of the price list.",
    ("model", "tier", "currency"),
)
UNRECORDED = Metric(
    "inf_middleware_unrecorded",
    "inf_middleware.unrecorded",
    "counter",
    "{request}",
    "Requests that were served and could neither be recorded nor kept: they are not billed.",
)
REFUSALS = Metric(
    "inf_middleware_refusals",
    "inf_middleware.refusals",
    "counter",
    "{request}",
    "Requests that were refused, by the code of their answer.",
    ("code", "tier", "endpoint"),
)
WOULD_REFUSE = Metric(
    "inf_middleware_would_refuse",
    "inf_middleware.would_refuse",
    "counter",
    "{request}",
    "Requests that were served because limits are not enforced.",
    ("code", "tier"),
)
DURATION = Metric(
    "inf_middleware_request_duration_seconds",
    "gen_ai.server.request.duration",
    "histogram",
    "s",
    "From a request's arrival to the end of its answer.",
    ("endpoint", "model", "outcome"),
    _REQUEST_S,
)
FIRST_OUTPUT = Metric(
    "inf_middleware_time_to_first_token_seconds",
    "gen_ai.server.time_to_first_token",
    "histogram",
    "s",
    "From a request's arrival to the first output of its stream.",
    ("endpoint", "model"),
    _FIRST_S,
)
PER_TOKEN = Metric(
    "inf_middleware_time_per_output_token_seconds",
    "gen_ai.server.time_per_output_token",
    "histogram",
    "s",
    "Time per output token of a stream, after the first.",
    ("endpoint", "model"),
    _PER_TOKEN_S,
)
TOKEN_USAGE = Metric(
    "inf_middleware_request_tokens",
    "gen_ai.client.token.usage",
    "histogram",
    "{token}",
    "Input and output tokens of one request.",
    ("endpoint", "model", "type"),
    _TOKENS,
)
ACCOUNT_REQUESTS = Metric(
    "inf_middleware_account_requests",
    "inf_middleware.account.requests",
    "counter",
    "{request}",
    "Requests of an account, served or refused; only where metrics_by_account is set.",
    ("account", "code"),
)
ACCOUNT_TOKENS = Metric(
    "inf_middleware_account_tokens",
    "inf_middleware.account.tokens",
    "counter",
    "{token}",
    "Tokens of an account, input and output; only where metrics_by_account is set.",
    ("account", "type"),
)
ACCOUNT_COST = Metric(
    "inf_middleware_account_cost",
    "inf_middleware.account.cost",
    "counter",
    "1",
    "What an account's requests cost; only where metrics_by_account is set.",
    ("account", "currency"),
)
STORE = Metric(
    "inf_middleware_store_seconds",
    "inf_middleware.store.duration",
    "histogram",
    "s",
    "How long the limits' store took.",
    ("operation", "result"),
    _STEP_S,
)
LEDGER = Metric(
    "inf_middleware_ledger_seconds",
    "inf_middleware.ledger.duration",
    "histogram",
    "s",
    "How long the ledger took to make something durable.",
    ("operation", "result"),
    _STEP_S,
)
RUNNING = Metric(
    "inf_middleware_reservations_open",
    "inf_middleware.reservations.open",
    "gauge",
    "{request}",
    "Requests in progress that hold a slot and a reservation.",
    across="livesum",
)
RESERVED = Metric(
    "inf_middleware_reserved_tokens",
    "inf_middleware.reserved_tokens",
    "gauge",
    "{token}",
    "Tokens that requests in progress have reserved.",
    across="livesum",
)
LEASES_LOST = Metric(
    "inf_middleware_leases_lost",
    "inf_middleware.leases.lost",
    "counter",
    "{lease}",
    "Leases that ran out while their request was running.",
)
STORAGE_AWAY = Metric(
    "inf_middleware_storage_away",
    "inf_middleware.storage.away",
    "gauge",
    "1",
    "1 while the limits' storage is out of reach and on_storage_error holds.",
)
LEDGER_AWAY = Metric(
    "inf_middleware_ledger_away",
    "inf_middleware.ledger.away",
    "gauge",
    "1",
    "1 while the ledger takes no bills: they are spooled, or requests refused.",
)
SPOOLED = Metric(
    "inf_middleware_spool_bytes",
    "inf_middleware.spool.size",
    "gauge",
    "By",
    "Bills that are kept on this host until the ledger takes them.",
    across="livesum",
)
RELAY = Metric(
    "inf_middleware_relay",
    "inf_middleware.relay",
    "gauge",
    "1",
    "1 where a process delivers events to a sink, as one does for each sink of a ledger.",
    across="livesum",
)
OUTBOX = Metric(
    "inf_middleware_outbox_events",
    "inf_middleware.outbox.events",
    "gauge",
    "{event}",
    "Events that wait for a sink, told by the process that delivers.",
    ("sink",),
)
OUTBOX_AGE = Metric(
    "inf_middleware_outbox_oldest_seconds",
    "inf_middleware.outbox.oldest",
    "gauge",
    "s",
    "Age of the oldest event that waits for a sink.",
    ("sink",),
)
SINK_LAG = Metric(
    "inf_middleware_sink_lag_seconds",
    "inf_middleware.sink.lag",
    "gauge",
    "s",
    "How old the oldest event of the last batch was when the sink had taken it.",
    ("sink",),
)
SINK_EVENTS = Metric(
    "inf_middleware_sink_events",
    "inf_middleware.sink.events",
    "counter",
    "{event}",
    "Events that a sink has taken, or refused for good (dead letters).",
    ("sink", "result"),
)
SINK_FAILURES = Metric(
    "inf_middleware_sink_failures",
    "inf_middleware.sink.failures",
    "counter",
    "{offer}",
    "Offers that a sink did not take and that are made again.",
    ("sink",),
)

CATALOGUE: tuple[Metric, ...] = tuple(
    one for one in list(globals().values()) if isinstance(one, Metric)
)
