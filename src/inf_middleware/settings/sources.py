"""The values in force for what code does not give: variable, then file, then default."""

import os
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from inf_middleware.domain.errors import ConfigError
from inf_middleware.settings.config import Written, read_config, section_of
from inf_middleware.settings.kinds import value_of_text
from inf_middleware.settings.options import DEFAULTS, check, default
from inf_middleware.settings.variables import (
    CONFIG_VARIABLE,
    UPSTREAM_VARIABLE,
    Given,
    given_by_variables,
)
from inf_middleware.upstream import Upstream

# Where the value of an option comes from that nobody gives.
DEFAULT = "default"


class Setting(NamedTuple):
    """The value of an option, and where it comes from in words."""

    value: Any
    origin: str


class Sources:
    """What variables and the settings file say; values are checked when they are asked for.

    `config` names the file; None leaves that to INF_MIDDLEWARE_CONFIG.

    Raises:
        ConfigError: The file cannot be read, or there is an unknown key or variable.
    """

    def __init__(self, config: str | Path | None = None) -> None:
        named = os.environ.get(CONFIG_VARIABLE, "").strip() if config is None else config
        self.config = str(named) if named else None
        self._variables: dict[str, Given] = given_by_variables()
        self._written: dict[str, Written] = {}
        if named:
            try:
                self._written = read_config(named)
            except ConfigError as error:
                by = f"{CONFIG_VARIABLE}: " if config is None else ""
                raise ConfigError(f"{by}{error}") from None

    @property
    def names_upstream(self) -> bool:
        """Whether the variable or the file says what the proxy forwards to."""
        return "upstream" in self._written or bool(os.environ.get(UPSTREAM_VARIABLE, "").strip())

    def upstream(self) -> Upstream:
        """Return what the proxy forwards to: the file's, at the variable's URL where that is given.

        Raises:
            ConfigError: There is none, or the URL cannot hold.
        """
        url = os.environ.get(UPSTREAM_VARIABLE, "").strip()
        written = self._written.get("upstream")
        if written is None and not url:
            raise ConfigError(
                f"there is no upstream; set {UPSTREAM_VARIABLE}=http://localhost:8000, or"
                f" [upstream] url in {self.config or f'the file that {CONFIG_VARIABLE} names'}"
            )
        try:
            if written is None:
                return Upstream(url=url)
            upstream: Upstream = written.value
            return replace(upstream, url=url) if url else upstream
        except ConfigError as error:
            raise ConfigError(f"{UPSTREAM_VARIABLE}: {error}") from None

    def upstream_settings(self) -> dict[str, Setting]:
        """Return what is said of the upstream, by `upstream.` and its name; its key is not shown.

        Raises:
            ConfigError: It cannot hold.
        """
        if not self.names_upstream:
            return {}
        upstream = self.upstream()
        settings = {}
        for field in fields(Upstream):
            value = getattr(upstream, field.name)
            origin = DEFAULT if value == field.default else self._origin_of_upstream(field.name)
            if field.name == "key" and value is not None:
                value = "…"
            settings[f"upstream.{field.name}"] = Setting(value, origin)
        return settings

    def _origin_of_upstream(self, name: str) -> str:
        written = self._written.get("upstream")
        by_variable = name == "url" and os.environ.get(UPSTREAM_VARIABLE, "").strip()
        return UPSTREAM_VARIABLE if by_variable or written is None else str(written.place)

    def setting(self, option: str) -> Setting:
        """Return what an option is where code does not give it.

        Raises:
            ConfigError: The value cannot hold; names the variable, or file and line.
        """
        given = self._variables.get(option)
        if given is not None:
            value = _checked(given.variable, option, value_of_text(option, given.text))
            return Setting(value, given.variable)
        written = self._written.get(option)
        if written is not None:
            section = section_of(option)
            where = f"{written.place}, [{section}]" if section else str(written.place)
            return Setting(_checked(where, option, written.value), str(written.place))
        mode = DEFAULTS["mode"] if option == "mode" else self.setting("mode").value
        return Setting(default(option, mode), DEFAULT)


def _checked(where: str, option: str, value: Any) -> Any:
    try:
        return check(option, value, DEFAULTS)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
