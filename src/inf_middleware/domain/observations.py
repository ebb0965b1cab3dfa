"""What is told to those who watch: facts that are known anyway, none of a prompt and no key."""

from typing import NamedTuple

from inf_middleware.domain.usage import Usage


class RefusedCall(NamedTuple):
    """A call that was refused, by the `code` of its answer.

    `account`, `tier` and `model` are None where it came to its end before they were known.
    `listed_model` is as in `SettledCall`.
    """

    call_id: str
    endpoint: str
    dialect: str
    model: str | None
    listed_model: str | None
    account: str | None
    tier: str | None
    status: int
    code: str


class SettledCall(NamedTuple):
    """A call that was served, and what it came to.

    `model` is what the caller wrote; `listed_model` is what of it the operator has written down: a
    name in `serves`, else the name or pattern of its price; None where it stands nowhere.
    `amount_nano` and `currency` are None where nothing is billed; `recorded` is False where it
    should have been and could not be. `first_output_s` is None where the answer was no stream.
    `would_refuse` is the code of what is not enforced.
    """

    call_id: str
    endpoint: str
    dialect: str
    model: str | None
    listed_model: str | None
    account: str | None
    tier: str | None
    usage: Usage
    amount_nano: int | None
    currency: str | None
    outcome: str
    recorded: bool
    would_refuse: str | None
    duration_s: float
    first_output_s: float | None


class Timing(NamedTuple):
    """How long one `operation` of a `part` ("store" or "ledger") took, and whether it failed."""

    part: str
    operation: str
    duration_s: float
    failed: bool


class SinkSample(NamedTuple):
    """How deliveries to one sink stand, and what came of them since the last sample.

    `pending` events wait, the oldest of them for `oldest_s` (None: not known to this process).
    `lag_s`: how old the oldest event of the last batch was when it was taken.
    """

    sink: str
    pending: int | None
    oldest_s: float | None
    lag_s: float | None
    taken: int
    rejected: int
    failures: int


class Sample(NamedTuple):
    """How a process stands, looked at every few seconds; None of what it has not.

    `leases_lost` since the last sample. `is_relay`: it delivers events to a sink.
    """

    running: int | None
    reserved_tokens: int | None
    leases_lost: int
    storage_is_away: bool | None
    ledger_is_away: bool | None
    spooled_bytes: int | None
    is_relay: bool | None
    sinks: tuple[SinkSample, ...]
