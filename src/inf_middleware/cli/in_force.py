"""The settings in force for a server that is started with the same file and variables."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from inf_middleware.accounts.address import Networks
from inf_middleware.cli.common import config_option, setting
from inf_middleware.cli.table import printable
from inf_middleware.domain.errors import ConfigError
from inf_middleware.domain.tiers import Tiers
from inf_middleware.exposition import check_metrics_path
from inf_middleware.files import value_of
from inf_middleware.limiting import enforces
from inf_middleware.lookups import build_lookup
from inf_middleware.settings import DEFAULT, DEFAULTS, Setting, Sources, shown


class InForce:
    """All settings, each checked by itself and with the others; nothing is opened.

    `given`: texts that a command was given for options, which go before all else. `upstream` is
    what the proxy forwards to, None where nothing says so.

    Raises:
        ConfigError: One cannot hold; names variable, option of the command, or file and line.
    """

    def __init__(self, config: str | Path | None, given: Mapping[str, str] | None = None) -> None:
        enforces()
        sources = Sources(config)
        self.config = sources.config
        self.settings: dict[str, Setting] = {
            name: Setting(setting(sources, name, text), f"--{name}")
            if (text := (given or {}).get(name)) is not None
            else sources.setting(name)
            for name in DEFAULTS
        }
        self.upstream = sources.upstream() if sources.names_upstream else None
        self.of_upstream = sources.upstream_settings()
        self._check_accounts()
        try:
            check_metrics_path(self.__getitem__)
        except ConfigError as error:
            raise ConfigError(f"{self.settings['metrics_path'].origin}: {error}") from None

    def __getitem__(self, option: str) -> Any:
        return self.settings[option].value

    def origin(self, option: str) -> str:
        """Return where the value of an option comes from, as errors begin."""
        setting = self.settings[option]
        if setting.origin != DEFAULT:
            return setting.origin
        return f"the default of {option}, {shown(option, setting.value)}"

    @property
    def tiers(self) -> Tiers:
        """The levels."""
        return value_of(self["tiers"]) or Tiers.default()

    def _check_accounts(self) -> None:
        try:
            build_lookup(
                self["accounts"],
                anonymous=self["anonymous"],
                ttl_s=self["accounts_ttl_s"],
                networks=Networks(self["trusted_proxies"]),
                tiers=self.tiers,
            )
        except ConfigError as error:
            option = "anonymous" if self["accounts"] is None else "accounts"
            raise ConfigError(f"{self.origin(option)}: {error}") from None


def with_settings(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command `--config`; a wrong setting is one line, and exit code 2."""

    @config_option
    @functools.wraps(function)
    def wrapped(config: Path | None, **options: Any) -> None:
        try:
            in_force = InForce(config)
        except ConfigError as error:
            click.echo(f"inf-middleware: {printable(str(error))}", err=True)
            raise SystemExit(2) from None
        function(in_force, **options)

    return wrapped
