"""The record of one call, shared by all of ours through the scope."""

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

import msgspec
from starlette.requests import HTTPConnection
from starlette.types import Scope

from inf_middleware.call.failed_keys import FailedKeys
from inf_middleware.call.health import LedgerHealth
from inf_middleware.call.leases import Leases
from inf_middleware.call.lost import Lost
from inf_middleware.call.waiting import Waiting
from inf_middleware.domain.errors import ConfigError
from inf_middleware.domain.events import BillingEvent
from inf_middleware.domain.limits import Admission
from inf_middleware.domain.prices import Found, Price, Prices
from inf_middleware.domain.tiers import Account, Tier, Tiers
from inf_middleware.domain.usage import Usage, token_count
from inf_middleware.ports import (
    AccountLookup,
    Claims,
    Holds,
    KnownAccounts,
    Ledger,
    LimitStore,
    LocalStore,
    Observer,
    Spool,
)
from inf_middleware.tokens.counters import Counters
from inf_middleware.wire.dialect import Dialect
from inf_middleware.wire.dialects import Dialects
from inf_middleware.wire.reader import AnswerReader
from inf_middleware.wire.request import Request
from inf_middleware.wire.told import Told

CALL_KEY = "inf_middleware.call"

# In the scope of the lifespan: where those further in tell their parts to those further out.
PARTS_KEY = "inf_middleware.parts"

# In the scope of requests that pass: the stacks around, outermost first, for routes of ours.
STACKS_KEY = "inf_middleware.stacks"

log = logging.getLogger("inf_middleware")

# Whether a stream is asked for its usage: at its end, or "continuous": in every event too.
Asked: TypeAlias = bool | Literal["continuous"]

# Called once per request, with its final usage; a coroutine function is awaited.
OnUsage: TypeAlias = Callable[[Usage, "CurrentCall"], Awaitable[None] | None]


@dataclass(frozen=True, slots=True)
class Metering:
    """How tokens are counted: the part of `TokenMeter`, on its defaults where it is absent.

    `is_given`: a TokenMeter stands in the stack; behind something opaque, its part then replaces
    the defaults of those further out.
    """

    is_given: bool
    dialects: Dialects
    counters: Counters
    include_usage: Asked
    assumed_output_tokens: Mapping[str, int]
    on_usage: OnUsage | None


@dataclass(frozen=True, slots=True)
class Limiting:
    """How admission is decided: the part of `TierLimiter`; unenforced, nobody is refused.

    `local` is the store itself where it is of this process, and nothing of it waits.
    """

    store: LimitStore
    local: LocalStore | None
    leases: Leases
    waiting: Waiting
    enforce: bool


@dataclass(frozen=True, slots=True)
class Billing:
    """How calls are priced and kept: the part of `CostLedger`.

    `spool` keeps the bills that the ledger does not take in time; None: nobody does.
    """

    ledger: Ledger
    serves: frozenset[str] | None
    unpriced: Literal["record", "refuse"] | Price
    settle_timeout_s: float
    spool: Spool | None
    health: LedgerHealth
    holds: Holds | None  # of prepaid calls
    claims: Claims | None  # None: the ledger keeps no idempotency keys
    drains: bool  # the app finishes for a client that has left
    enforce_features: bool
    lost: Lost
    warned: set[str] = field(default_factory=set)


# Who a request comes from; the last is the id of its key, None where no key was sent.
Caller: TypeAlias = tuple[Account, Tier, str | None]


@dataclass(frozen=True, slots=True)
class Parts:
    """What one worker works with: the common options, and the parts that its stack has.

    `lookup` is None where accounts are nobody's concern here; `names_accounts` tells whether the
    operator gave accounts, which beat network addresses. `network` tells the network that a
    request comes from. `prices` are the defaults where `billing` is None. `now_ns` is the wall
    clock. `observer` is None where nobody listens. `known` gives what the look-up has at hand, by
    the key's SHA-256; None where it has nothing. `callers` are what was found by `tiers`, by that
    too: each holds as long as `known` gives the same account. `identifies`: it is of concern who
    calls.
    """

    lookup: AccountLookup | None
    names_accounts: bool
    network: Callable[[HTTPConnection], str]
    failed_keys: FailedKeys
    tiers: Tiers
    prices: Prices
    metering: Metering
    limiting: Limiting | None
    billing: Billing | None
    body_bytes_max: int
    deployment: str
    help_url: str | None
    now_ns: Callable[[], int]
    observer: Observer | None
    known: Callable[[bytes], Account | None] | None = field(init=False, repr=False)
    callers: dict[bytes, Caller] = field(init=False, repr=False)
    identifies: bool = field(init=False, repr=False)

    def __post_init__(self) -> None:
        lookup = self.lookup
        known = lookup.known_by_digest if isinstance(lookup, KnownAccounts) else None
        object.__setattr__(self, "known", known)
        object.__setattr__(self, "callers", {})
        identifies = bool(self.names_accounts or self.limiting or self.billing)
        object.__setattr__(self, "identifies", identifies)


class Held(Protocol):
    """What a prepaid call holds, as its answer and its settlement see it.

    `room`: bytes of text that may follow what was covered last before it has to be asked again.
    """

    room: int

    async def covers(self, reader: AnswerReader) -> bool:
        """Tell whether the output so far is paid for and more may follow."""
        ...

    async def settled(self) -> None:
        """Let what is still under way end."""
        ...


class Call(msgspec.Struct, eq=False):
    """One request with its response, as far as it is known; each field has one writer.

    The opener (the first worker that sees the request) makes it, reads the body and closes it.
    """

    id: str
    started_ns: int
    endpoint: str
    dialect: Dialect
    parts: Parts  # of the opener; joiners add their limiting, billing and metering below
    metering: Metering
    prices: Prices  # of the CostLedger, as far as one is known
    observer: Observer | None
    state: Mapping[str, Any] | None = None  # of the request's scope: some servers write into it
    limiting: Limiting | None = None
    billing: Billing | None = None
    body: bytes | None = None
    unread: bool = False  # its body passes as it comes; else it is replayed as one message
    request: Request | None = None
    model: str | None = None  # that was asked for
    asked: Asked = False  # the app was sent a body that asks for usage in the client's place
    account: Account | None = None
    tier: Tier | None = None
    found: Found | None = None  # what the model costs, once it was looked up
    key_id: str | None = None
    named: bool = False  # the account comes from configured accounts
    input_texts: tuple[list[str], int] | None = None  # and tokens that are no text
    input_tokens: int | None = None
    input_exact: bool = True
    input_reserved: int | None = None  # counted, or a bound that is good enough
    admission: Admission | None = None
    hold: Held | None = None  # of a prepaid call
    fingerprint: str | None = None  # of a request with an idempotency key
    idempotency_key: str | None = None  # claimed for this call
    retry_of: str | None = None  # an earlier call of that key, not delivered whole
    exhausted: bool = False  # its stream was ended, because nothing more could be held
    would_refuse: str | None = None  # the code of what is not enforced
    refused: bool = False
    status: int | None = None
    reader: AnswerReader | Told | None = None  # what its answer tells
    is_stream: bool = False
    begun: bool = False  # some of the body has come of an answer that did not come to its end
    first_output_ns: int | None = None  # of a stream that is observed
    told: Usage | None = None  # by the handler itself
    billed: Usage | None = None  # of an answer that was made on: what was billed of it before
    billed_to: int = -1  # and the number of the last of its events that was
    ended: bool = False  # the answer's end was reached
    disconnected: bool = False  # the client was seen to leave before that
    draining: bool = False  # the app does not know of it, and what it sends goes nowhere
    failure: BaseException | None = None  # what the app raised, cancellation included
    usage: Usage | None = None
    event: BillingEvent | None = None
    released: bool = False  # the store has been told
    recorded: bool = False  # the ledger has been told
    settled: bool = False  # all has been told, or the ledger was given up

    @property
    def price_list(self) -> Prices:
        """The prices that hold for the caller."""
        return (self.account.prices if self.account else None) or self.prices

    def look_up_price(self) -> None:
        """Note what the model costs the caller, by the list in force when the call began."""
        self.found = self.price_list.find_at(self.model, self.started_ns)

    @property
    def tokens_so_far(self) -> int:
        """The tokens it is known to have used, without counting any text."""
        told = self.usage or self.told or (self.reader.usage if self.reader else None)
        if told is not None:
            return told.total_tokens
        return (self.input_tokens or 0) + (self.reader.output_so_far if self.reader else 0)


class CurrentCall:
    """What a handler may know and say of the call it serves."""

    __slots__ = ("_call",)

    def __init__(self, call: Call) -> None:
        self._call = call

    @property
    def id(self) -> str:
        """The request id, as in headers and event."""
        return self._call.id

    @property
    def account(self) -> Account | None:
        """Who is limited and billed."""
        return self._call.account

    @property
    def tier(self) -> Tier | None:
        """The account's level."""
        return self._call.tier

    @property
    def model(self) -> str | None:
        """The model that was asked for."""
        return self._call.model

    @property
    def usage(self) -> Usage | None:
        """The usage known so far, None before anything is."""
        call = self._call
        return call.usage or call.told or (call.reader.usage if call.reader else None)

    def report(self, *, input_tokens: int, output_tokens: int) -> None:
        """Tell the usage of this call, which then beats what the answer says.

        Raises:
            ValueError: Not a count of tokens.
        """
        for name, value in (("input_tokens", input_tokens), ("output_tokens", output_tokens)):
            if token_count(value) is None:
                raise ValueError(f"{name} is {value!r}; report a whole number of 0 or more")
        self._call.told = Usage(input_tokens, output_tokens)


def current_call(request: HTTPConnection | Scope) -> CurrentCall:
    """Return the call that a request belongs to.

    Raises:
        ConfigError: None of the middlewares stands around this handler, or the path is exempt.
    """
    scope = request.scope if isinstance(request, HTTPConnection) else request
    call = scope.get(CALL_KEY)
    if call is None:
        raise ConfigError(
            "no call is open here: add TokenMeter, TierLimiter or CostLedger around this app, and"
            " see that the path is not exempt"
        )
    return CurrentCall(call)
