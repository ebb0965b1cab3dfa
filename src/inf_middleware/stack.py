"""The options of all of ours in one stack, and what is built from them."""

import logging
import time
import weakref
from collections.abc import Awaitable, Callable, Mapping
from functools import cached_property
from typing import Any

from starlette.types import ASGIApp

from inf_middleware import settings
from inf_middleware.accounts.address import Networks
from inf_middleware.around import Around, Rules
from inf_middleware.billing import Ledgers, build_accounts, build_billing
from inf_middleware.call.failed_keys import FailedKeys
from inf_middleware.call.record import Billing, Limiting, Metering, Parts
from inf_middleware.call.worker import Worker
from inf_middleware.domain.errors import ConfigError
from inf_middleware.domain.moments import zone_of
from inf_middleware.domain.prices import Prices
from inf_middleware.domain.tiers import Tiers
from inf_middleware.exposition import with_metrics
from inf_middleware.files import TableFile, value_of
from inf_middleware.following import Following, Read
from inf_middleware.limiting import build_limiting, enforces
from inf_middleware.lookups import build_lookup, check_levels
from inf_middleware.observing import Sampler, build_observer
from inf_middleware.ports import LimitStore, Observer
from inf_middleware.settings import DEFAULT, Setting, Sources
from inf_middleware.sharing import User, identity, share
from inf_middleware.tokens.counters import Counters
from inf_middleware.wire.dialects import Dialects

log = logging.getLogger("inf_middleware")

METER, LIMITER, LEDGER = "TokenMeter", "TierLimiter", "CostLedger"


class Stack:
    """The options of all of ours in one stack; what they name is built at first use."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._kinds: set[str] = set()
        self._given: dict[str, Setting] = {}
        self._found: dict[str, Setting] = {}  # by variables and file, for what is not given
        self._config: str | None = None  # the settings file
        self.fault: ConfigError | None = None  # of a constructor, where that could not be told
        self._user = User()
        self._sampler: Sampler | None = None  # where somebody watches
        self._store: LimitStore | None = None  # where something limits

    def add(self, member: str, kinds: tuple[str, ...], options: Mapping[str, Any]) -> None:
        """Take the options of one more middleware, and what variables and file say of the others.

        Raises:
            ConfigError: An option is unknown, cannot hold, or differs from one given before.
        """
        if "worker" in self.__dict__:
            raise ConfigError(
                f"{member} is put around a stack that serves already, and would have no part in it;"
                " build all of a stack before its first request"
            )
        known = _known_options(kinds)
        if LIMITER in kinds:
            enforces()  # a variable that cannot be read is an error now, not at the first request
        for name, given in options.items():
            value = settings.check(name, given, known)
            if name in self._given:
                other, giver = self._given[name]
                if other is not value and other != value:
                    raise ConfigError(
                        f"{name} is {_quoted(name, value)} in {member} and"
                        f" {_quoted(name, other)} in {giver};"
                        " an option given to one of a stack holds for all, give it once"
                    )
                continue
            self._given[name] = Setting(value, member)
        sources = Sources()
        self._config = sources.config
        # Of all, also of those that are absent: accounts may be on levels that the file has.
        for name in settings.DEFAULTS:
            if name not in self._given and name not in self._found:
                self._found[name] = sources.setting(name)
        self._kinds.update(kinds)

    @cached_property
    def worker(self) -> Worker:
        """The worker, built from the options of all at first use.

        Raises:
            ConfigError: Two of them cannot hold together, or one that came in a lifespan at all.
        """
        if self.fault is not None:
            raise self.fault
        startup: list[Callable[[], Awaitable[None]]] = []
        shutdown: list[Callable[[], Awaitable[None]]] = []
        ledgers = Ledgers(self._user)
        parts = self._parts(ledgers, startup, shutdown)
        self._log_options()
        following = self._following(parts, lambda: weakly())  # noqa: PLW0108 - bound below
        shutdown.append(following.aclose)

        async def on_startup() -> None:
            for step in startup:
                await step()

        async def on_shutdown() -> None:
            for step in shutdown:
                try:
                    await step()
                except Exception:
                    log.exception("a part did not close cleanly")

        worker = Worker(
            with_metrics(self._app, self._option),
            parts,
            touch=self._touching(following),
            around=Around(
                parts=parts,
                store=self._store,
                ledger=ledgers.of(self._option("ledger")) if LEDGER in self._kinds else None,
                rules=self._rules(following),
            ),
            exempt=self._option("exempt"),
            websockets=self._option("websockets"),
            on_startup=on_startup,
            on_shutdown=on_shutdown,
        )
        # Weakly: what a dropped stack shares shall be free at once, not when a cycle is found.
        weakly = weakref.ref(worker)
        return worker

    def _touching(self, following: Following) -> Callable[[], Awaitable[None] | None]:
        sampler = self._sampler
        if sampler is None:
            return following.touch
        if not following.follows:
            return sampler.start  # where no lifespan has

        def touch() -> Awaitable[None] | None:
            sampler.start()
            return following.touch()

        return touch

    def _following(self, parts: Parts, worker: Callable[[], Worker | None]) -> Following:
        tiers, prices, accounts = map(self._option, ("tiers", "prices", "accounts"))
        settings_file = self._settings_file()

        def check(read: Read) -> None:
            levels = read.get(tiers) or value_of(tiers) or parts.tiers
            check_levels(accounts, parts.lookup, read, levels)

        def taken() -> None:
            if settings_file is not None:
                settings_file.look()
            found = worker()
            if found is not None:
                found.take_over(value_of(tiers) or parts.tiers, value_of(prices) or parts.prices)

        options = (getattr(accounts, "file", None), tiers, prices)
        files: list[TableFile[Any]] = [one for one in options if isinstance(one, TableFile)]
        if settings_file is not None:
            files.append(settings_file.file)
        return Following(files, check=check, taken=taken)

    def _rules(self, following: Following) -> Rules:
        option = self._option
        return Rules(
            mode=option("mode"),
            zone=zone_of(option("timezone")),
            tiers=option("tiers"),
            prices=option("prices"),
            touch=following.touch,
        )

    def _settings_file(self) -> settings.NeedsRestart | None:
        if self._config is None:
            return None
        in_force = {name: self._setting(name) for name in settings.DEFAULTS}
        try:
            return settings.NeedsRestart(self._config, in_force)
        except ConfigError:  # broken since it was read at construction: its values are in force
            return None

    def _parts(
        self,
        ledgers: Ledgers,
        startup: list[Callable[[], Awaitable[None]]],
        shutdown: list[Callable[[], Awaitable[None]]],
    ) -> Parts:
        option = self._option
        given = option("counter")
        counters = share(("counter", identity(given)), self._user, lambda: Counters(given)).thing
        startup.append(counters.load)
        observer = build_observer(option, logs_calls=self._kinds == {METER})
        limiting = billing = spool = relays = None
        if LIMITER in self._kinds:
            limiting, self._store, close = build_limiting(option, self._user, observer)
            shutdown.append(close)
        if LEDGER in self._kinds:
            billing, spool, relays, start, close = build_billing(
                option, self._user, ledgers, observer
            )
            startup.append(start)
            shutdown.append(close)
        shutdown.append(ledgers.aclose)
        if observer is not None:
            self._sampler = sampler = Sampler(
                observer,
                deployment=option("deployment"),
                leases=limiting.leases if limiting else None,
                store=self._store,
                health=billing.health if billing else None,
                spool=spool,
                relays=relays,
            )
            startup.append(sampler.begin)
            shutdown.insert(0, sampler.aclose)  # before what it looks at is closed
        return self._whole(ledgers, counters, limiting, billing, observer)

    def _whole(
        self,
        ledgers: Ledgers,
        counters: Counters,
        limiting: Limiting | None,
        billing: Billing | None,
        observer: Observer | None,
    ) -> Parts:
        option = self._option
        tiers: Tiers = value_of(option("tiers")) or Tiers.default()
        networks = Networks(option("trusted_proxies"))
        lookup = build_lookup(
            build_accounts(option, ledgers),
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
            prices=value_of(option("prices")) or Prices.default(),
            metering=Metering(
                is_given=METER in self._kinds,
                dialects=Dialects(option("dialects")),
                counters=counters,
                include_usage=option("include_usage"),
                assumed_output_tokens=option("assumed_output_tokens"),
                on_usage=option("on_usage"),
            ),
            limiting=limiting,
            billing=billing,
            body_bytes_max=option("body_bytes_max"),
            deployment=option("deployment"),
            help_url=option("help_url"),
            now_ns=time.time_ns,
            observer=observer,
        )

    def _option(self, name: str) -> Any:
        return self._setting(name).value

    def _setting(self, name: str) -> Setting:
        setting = self._given.get(name) or self._found.get(name)
        if setting is None or setting.origin == DEFAULT:
            mode = settings.DEFAULTS["mode"] if name == "mode" else self._option("mode")
            setting = Setting(settings.default(name, mode), DEFAULT)
        return setting

    def _log_options(self) -> None:
        shown = []
        for name in _known_options(tuple(self._kinds)):
            value, origin = self._setting(name)
            shown.append(f"{name}={settings.shown(name, value)} ({origin})")
        log.info("%s in force: %s", " + ".join(sorted(self._kinds)), ", ".join(shown))


def _quoted(name: str, value: Any) -> str:
    text = settings.shown(name, value)
    return repr(text) if isinstance(value, str) else text


def _known_options(kinds: tuple[str, ...]) -> dict[str, None]:
    tables = {
        METER: settings.MeterOptions,
        LIMITER: settings.LimiterOptions,
        LEDGER: settings.LedgerOptions,
    }
    return {name: None for kind in kinds for name in tables[kind].__annotations__}
