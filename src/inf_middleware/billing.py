"""From the options that concern a ledger to what keeps bills: ledger, spool, relay, accounts."""

from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import anyio

from inf_middleware.accounts.ledger import LedgerAccounts
from inf_middleware.call.health import LedgerHealth
from inf_middleware.call.lost import Lost
from inf_middleware.call.record import Billing
from inf_middleware.domain.errors import ConfigError
from inf_middleware.domain.events import BillingEvent
from inf_middleware.domain.prices import Prices
from inf_middleware.files import value_of
from inf_middleware.ledgers.in_time import InTime
from inf_middleware.ledgers.spool import SpoolingLedger
from inf_middleware.ledgers.sqlite import SqliteLedger
from inf_middleware.ledgers.uris import ledger_of
from inf_middleware.observers.timed import TimedHolds, TimedLedger
from inf_middleware.ports import Claims, Holds, Ledger, Observer, Outbox, Sink
from inf_middleware.sharing import Shared, User, identity, share
from inf_middleware.sinks.relay import Relay, Relays
from inf_middleware.sinks.uris import sink_from_uri

# How long a server that shuts down waits for sinks to take what is left; the rest goes out at the
# next start, by the cursor.
DRAIN_TIMEOUT_S = 5.0

Option = Callable[[str], Any]


class Ledgers:
    """The ledgers of one stack, each shared with all others of the process that name it."""

    def __init__(self, user: User) -> None:
        self._user = user
        self._shared: dict[Hashable, Shared[Any]] = {}

    def of(self, given: str | Ledger) -> Any:
        """Return the ledger that an option means: a URI's, or the object itself."""
        made = ledger_of(given) if isinstance(given, str) else given
        place = _place(given, made)
        if place not in self._shared:
            self._shared[place] = share(("ledger", place), self._user, lambda: made)
        return self._shared[place].thing

    async def aclose(self) -> None:
        """Let go of all; what nobody else uses is closed."""
        for shared in self._shared.values():
            if shared.let_go():
                await shared.thing.aclose()


def _place(given: str | Ledger, made: Any) -> Hashable:
    if not isinstance(given, str):
        return identity(given)
    return str(made.path) if isinstance(made, SqliteLedger) else given


class Built(NamedTuple):
    """What bills calls, how it starts, and how it is closed: before the ledgers.

    `spool` and `relays` are None where nothing is spooled or delivered.
    """

    billing: Billing
    spool: SpoolingLedger | None
    relays: Relays | None
    start: Callable[[], Awaitable[None]]
    aclose: Callable[[], Awaitable[None]]


def build_accounts(option: Option, ledgers: Ledgers) -> Any:
    """Return what `accounts` is, those that a ledger keeps as a look-up. Opens nothing."""
    accounts = option("accounts")
    if not isinstance(accounts, str):
        return accounts
    prices: Prices = value_of(option("prices")) or Prices.default()
    return LedgerAccounts(ledgers.of(accounts), prices.currency)


def build_billing(option: Option, user: User, ledgers: Ledgers, observer: Observer | None) -> Built:
    """Build what bills calls; `option` returns the value in force of an option. Opens nothing.

    Raises:
        ConfigError: The ledger lacks what other options need, or another stack of the process uses
            a sink's name or a spool's folder for something else.
    """
    kept: Ledger = ledgers.of(option("ledger"))
    serves = option("serves")
    spool = _shared_spool(option, user, kept) if option("on_ledger_error") == "spool" else None
    holds = _holds(option("mode"), kept)
    delivered = _shared_deliveries(user, kept, option("sinks"))
    relays = Relays([one.thing.relay for one in delivered]) if delivered else None
    ledger: Ledger = kept if spool is None else InTime(spool.thing, option("settle_timeout_s"))
    claims = kept if isinstance(kept, Claims) else None
    if relays is not None:
        ledger = _DeliveringLedger(ledger, relays)
    if observer is not None:
        ledger = TimedLedger(ledger, observer)
        holds = None if holds is None else TimedHolds(holds, observer)
    billing = Billing(
        ledger=ledger,
        serves=None if serves is None else frozenset(serves),
        unpriced=option("unpriced"),
        settle_timeout_s=option("settle_timeout_s"),
        spool=None if spool is None else spool.thing,
        health=LedgerHealth(getattr(kept, "probe", None)),
        holds=holds,
        claims=claims,
        lost=Lost(claims),
        drains=option("on_disconnect") == "drain",
        enforce_features=option("enforce_features"),
    )

    async def start() -> None:
        if spool is not None:
            await spool.thing.start()
        if relays is not None:
            relays.start()

    async def aclose() -> None:
        try:
            await billing.lost.aclose()
            await _end([one.thing.relay for one in delivered if one.let_go()])
        finally:
            if spool is not None and spool.let_go():
                await spool.thing.stop()

    return Built(
        billing,
        spool=None if spool is None else spool.thing,
        relays=relays,
        start=start,
        aclose=aclose,
    )


def _holds(mode: str, kept: Ledger) -> Holds | None:
    if mode != "prepaid":
        return None
    if not (isinstance(kept, Holds) and isinstance(kept, Claims)):
        raise ConfigError(f'mode is "prepaid", and the ledger {kept!r} cannot hold money')
    return kept


def _shared_spool(option: Option, user: User, kept: Ledger) -> Shared[SpoolingLedger]:
    # A user's own ledger tells no place: the deployment tells it from others.
    own = f"inf-ledger-{option('deployment')}.spool"
    directory = Path(getattr(kept, "spool_directory", own)).absolute()
    key = ("spool", str(directory))
    shared = share(key, user, lambda: SpoolingLedger(kept, directory))
    if shared.thing.ledger is not kept:  # whose bills would be handed to the other
        shared.let_go()
        raise ConfigError(
            f"another stack of this process keeps the bills of another ledger in {directory};"
            " give both the same ledger, or each a deployment of its own"
        )
    return shared


class _Delivered(NamedTuple):
    """A sink as it was given, and what delivers to it."""

    given: Sink | str
    relay: Relay


def _shared_deliveries(
    user: User, kept: Ledger, sinks: Mapping[str, Sink | str]
) -> list[Shared[_Delivered]]:
    """Return what delivers to each sink: one for all stacks of the process that have it."""
    if not sinks:
        return []
    if not isinstance(kept, Outbox):
        raise ConfigError(
            f"sinks are given, and the ledger {kept!r} has no outbox for them to read"
        )
    delivered: list[Shared[_Delivered]] = []
    try:
        for name, sink in sinks.items():
            delivered.append(_shared_delivery(user, kept, name, sink))
    except ConfigError:
        for one in delivered:
            one.let_go()  # or the stacks that do work would never close it
        raise
    return delivered


def _shared_delivery(user: User, outbox: Outbox, name: str, sink: Sink | str) -> Shared[_Delivered]:
    def make() -> _Delivered:
        made = sink_from_uri(sink) if isinstance(sink, str) else sink
        return _Delivered(sink, Relay(outbox, {name: made}))

    key = ("sink", id(outbox), name)
    shared = share(key, user, make, lambda delivered: delivered.relay.abandon())
    if identity(shared.thing.given) != identity(sink):
        shared.let_go()
        raise ConfigError(
            f"sink {name} is another one in another stack of this process, with the same"
            " ledger; a name is one place in its outbox: choose another"
        )
    return shared


async def _end(relays: Sequence[Relay]) -> None:
    async def end(relay: Relay) -> None:
        await relay.drain(DRAIN_TIMEOUT_S)
        await relay.aclose()

    async with anyio.create_task_group() as group:
        for relay in relays:
            group.start_soon(end, relay)


class _DeliveringLedger:
    """A ledger whose events go to sinks: relays start with the first use of a loop."""

    def __init__(self, ledger: Ledger, relays: Relays) -> None:
        self._ledger = ledger
        self._relays = relays

    def settle(self, event: BillingEvent) -> Awaitable[None]:
        """Hand a settlement over, and see that it will be delivered."""
        self._relays.start()
        return self._ledger.settle(event)

    async def aclose(self) -> None:
        """Do nothing: relays and ledger may have other users."""
