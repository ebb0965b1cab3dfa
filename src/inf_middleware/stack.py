"""Who else is in the stack: of ours, the innermost does all the work with the options of all."""

import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from inf_middleware import settings
from inf_middleware.accounts.address import Networks
from inf_middleware.accounts.ledger import LedgerAccounts
from inf_middleware.call.failed_keys import FailedKeys
from inf_middleware.call.health import LedgerHealth
from inf_middleware.call.record import Billing, Metering, Parts
from inf_middleware.call.worker import Worker
from inf_middleware.domain.errors import ConfigError
from inf_middleware.domain.events import BillingEvent
from inf_middleware.domain.prices import Prices
from inf_middleware.domain.tiers import Tiers
from inf_middleware.ledgers.base import LedgerBase
from inf_middleware.ledgers.spool import SpoolingLedger
from inf_middleware.ledgers.uris import ledger_of
from inf_middleware.limiting import build_limiting, close_limiting, enforces
from inf_middleware.lookups import build_lookup
from inf_middleware.ports import Claims, Holds, Ledger, Outbox, Sink
from inf_middleware.sinks.relay import Relay
from inf_middleware.sinks.uris import sink_from_uri
from inf_middleware.tokens.counters import Counters
from inf_middleware.wire.dialects import Dialects

log = logging.getLogger("inf_middleware")

METER, LIMITER, LEDGER = "TokenMeter", "TierLimiter", "CostLedger"

# How long a server that shuts down waits for sinks to take what is left; the rest goes out at the
# next start, by the cursor.
DRAIN_TIMEOUT_S = 5.0

# Deeper than any real chain of middlewares: a guard against a chain that bites its tail.
_DEPTH_MAX = 1000


class Member:
    """What the three and `Gate` have in common: they find their stack and join it.

    Constructors look inward along `.app`. The innermost of ours leads; the others hand through.
    """

    def __init__(self, app: ASGIApp, kinds: tuple[str, ...], options: Mapping[str, Any]) -> None:
        self.app = app
        inner = _member_within(app)
        self._leads = inner is None
        self._stack: Stack = Stack(app) if inner is None else inner._stack
        self._stack.add(type(self).__name__, kinds, options)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope."""
        if self._leads:
            await self._stack.worker(scope, receive, send)
        else:
            await self.app(scope, receive, send)


def _member_within(app: object) -> Member | None:
    for _ in range(_DEPTH_MAX):
        if isinstance(app, Member):
            # Its own leader may be further in; they share one stack.
            return app
        app = getattr(app, "app", None)
        if app is None:
            break
    return None


class Stack:
    """The options of all of ours in one stack; what they name is built at first use."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._kinds: set[str] = set()
        self._given: dict[str, tuple[Any, str]] = {}
        self._ledgers: dict[str, LedgerBase] = {}

    def add(self, member: str, kinds: tuple[str, ...], options: Mapping[str, Any]) -> None:
        """Take the options of one more middleware.

        Raises:
            ConfigError: An option is unknown, cannot hold, or differs from one given before.
        """
        known = _known_options(kinds)
        if LIMITER in kinds:
            enforces()  # a variable that cannot be read is an error now, not at the first request
        for name, given in options.items():
            value = settings.check(name, given, known)
            if name in self._given:
                other, giver = self._given[name]
                if other is not value and other != value:
                    raise ConfigError(
                        f"{name} is {value!r} in {member} and {other!r} in {giver};"
                        " an option given to one of a stack holds for all, give it once"
                    )
                continue
            self._given[name] = (value, member)
        self._kinds.update(kinds)

    @cached_property
    def worker(self) -> Worker:
        """The worker, built from the options of all at first use."""
        startup: list[Callable[[], Awaitable[None]]] = []
        shutdown: list[Callable[[], Awaitable[None]]] = []
        parts = self._parts(startup, shutdown)
        self._log_options()

        async def on_startup() -> None:
            for step in startup:
                await step()

        async def on_shutdown() -> None:
            for step in shutdown:
                try:
                    await step()
                except Exception:
                    log.exception("a part did not close cleanly")

        return Worker(
            self._app,
            parts,
            exempt=self._option("exempt"),
            websockets=self._option("websockets"),
            on_startup=on_startup,
            on_shutdown=on_shutdown,
        )

    def _parts(
        self,
        startup: list[Callable[[], Awaitable[None]]],
        shutdown: list[Callable[[], Awaitable[None]]],
    ) -> Parts:
        option = self._option
        tiers: Tiers = option("tiers") or Tiers.default()
        counters = Counters(option("counter"))
        startup.append(counters.load)
        limiting = billing = None
        if LIMITER in self._kinds:
            limiting = build_limiting(option)
            shutdown.append(partial(close_limiting, limiting))
        if LEDGER in self._kinds:
            ledger, kept, spool = self._ledger(startup, shutdown)
            serves = option("serves")
            billing = Billing(
                ledger=ledger,
                serves=None if serves is None else frozenset(serves),
                unpriced=self._by_mode("unpriced", "record", "refuse"),
                settle_timeout_s=option("settle_timeout_s"),
                spool=spool,
                health=LedgerHealth(getattr(kept, "probe", None)),
                holds=self._holds(kept),
                claims=kept if isinstance(kept, Claims) else None,
                drains=option("on_disconnect") == "drain",
                enforce_features=option("enforce_features"),
            )
        networks = Networks(option("trusted_proxies"))
        lookup = build_lookup(
            self._accounts(shutdown),
            anonymous=option("anonymous"),
            ttl_s=option("accounts_ttl_s"),
            networks=networks,
            tiers=tiers,
        )
        return Parts(
            lookup=lookup,
            names_accounts=option("accounts") is not None,
            network=networks,
            failed_keys=FailedKeys(),
            tiers=tiers,
            prices=option("prices") or Prices.default(),
            metering=Metering(
                is_given=METER in self._kinds,
                dialects=Dialects(option("dialects")),
                counters=counters,
                include_usage=option("include_usage"),
                assumed_output_tokens=option("assumed_output_tokens"),
                on_usage=option("on_usage"),
                logs_calls=self._kinds == {METER},
            ),
            limiting=limiting,
            billing=billing,
            body_bytes_max=option("body_bytes_max"),
            deployment=option("deployment"),
            help_url=option("help_url"),
            now_ns=time.time_ns,
        )

    def _ledger(
        self,
        startup: list[Callable[[], Awaitable[None]]],
        shutdown: list[Callable[[], Awaitable[None]]],
    ) -> tuple[Ledger, Ledger, SpoolingLedger | None]:
        given = self._option("ledger")
        kept: Ledger = self._ledger_at(given) if isinstance(given, str) else given
        ledger, spool = kept, None
        if self._by_mode("on_ledger_error", "spool", "refuse") == "spool":
            ledger = spool = SpoolingLedger(kept, self._spool_directory(kept))
            startup.append(spool.start)
        sinks = {
            name: sink_from_uri(sink) if isinstance(sink, str) else sink
            for name, sink in self._option("sinks").items()
        }
        if sinks:
            delivering = _DeliveringLedger(ledger, kept, sinks)
            startup.append(delivering.start)
            ledger = delivering
        shutdown.append(ledger.aclose)
        return ledger, kept, spool

    def _accounts(self, shutdown: list[Callable[[], Awaitable[None]]]) -> Any:
        """Return the accounts, those that a ledger keeps as a look-up."""
        accounts = self._option("accounts")
        if not isinstance(accounts, str):
            return accounts
        book = self._ledger_at(accounts)
        shutdown.append(book.aclose)
        return LedgerAccounts(book, (self._option("prices") or Prices.default()).currency)

    def _by_mode(self, name: str, postpaid: str, prepaid: str) -> Any:
        """Return an option whose default depends on the mode."""
        default = prepaid if self._option("mode") == "prepaid" else postpaid
        given = self._option(name)
        return default if given is None else given

    def _holds(self, kept: Ledger) -> Holds | None:
        if self._option("mode") != "prepaid":
            return None
        if not (isinstance(kept, Holds) and isinstance(kept, Claims)):
            raise ConfigError(f'mode is "prepaid", and the ledger {kept!r} cannot hold money')
        return kept

    def _spool_directory(self, ledger: Ledger) -> Path:
        # A user's own ledger tells no place: the deployment tells it from others.
        own = f"inf-ledger-{self._option('deployment')}.spool"
        return Path(getattr(ledger, "spool_directory", own))

    def _ledger_at(self, uri: str) -> LedgerBase:
        """Return the ledger of a URI: one for all that name it."""
        if uri not in self._ledgers:
            self._ledgers[uri] = ledger_of(uri)
        return self._ledgers[uri]

    def _option(self, name: str) -> Any:
        given = self._given.get(name)
        return settings.DEFAULTS[name] if given is None else given[0]

    def _log_options(self) -> None:
        shown = []
        for name in _known_options(tuple(self._kinds)):
            _, giver = self._given.get(name, (None, "default"))
            value = self._option(name)
            text = value if isinstance(value, str | int | float | bool | None) else "…"
            shown.append(f"{name}={text} ({giver})")
        log.info("%s in force: %s", " + ".join(sorted(self._kinds)), ", ".join(shown))


class _DeliveringLedger:
    """A ledger whose events go to sinks: its relay starts with the first use of a loop."""

    def __init__(self, ledger: Ledger, kept: Ledger, sinks: Mapping[str, Sink]) -> None:
        if not isinstance(kept, Outbox):
            raise ConfigError(
                f"sinks are given, and the ledger {kept!r} has no outbox for them to read"
            )
        self._ledger = ledger
        self._relay = Relay(kept, sinks)

    async def start(self) -> None:
        """Begin to deliver, what an earlier run left included."""
        self._relay.start()

    def settle(self, event: BillingEvent) -> Awaitable[None]:
        """Hand a settlement over, and see that it will be delivered."""
        self._relay.start()
        return self._ledger.settle(event)

    async def aclose(self) -> None:
        """Deliver what can be delivered, and close."""
        await self._relay.drain(DRAIN_TIMEOUT_S)
        await self._relay.aclose()
        await self._ledger.aclose()


def _known_options(kinds: tuple[str, ...]) -> dict[str, None]:
    tables = {
        METER: settings.MeterOptions,
        LIMITER: settings.LimiterOptions,
        LEDGER: settings.LedgerOptions,
    }
    return {name: None for kind in kinds for name in tables[kind].__annotations__}
