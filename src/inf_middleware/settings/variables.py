"""Options from the environment: INF_MIDDLEWARE_<OPTION>, or …_FILE for what a file holds."""

import os
from collections.abc import Mapping
from typing import NamedTuple

from inf_middleware.domain.errors import ConfigError
from inf_middleware.domain.tables import nearest
from inf_middleware.files import read_text
from inf_middleware.settings.kinds import is_of_code
from inf_middleware.settings.options import DEFAULTS

PREFIX = "INF_MIDDLEWARE_"

# Names the settings file.
CONFIG_VARIABLE = f"{PREFIX}CONFIG"

# The URL of what the proxy forwards to.
UPSTREAM_VARIABLE = f"{PREFIX}UPSTREAM"

_NO_OPTIONS = (CONFIG_VARIABLE, UPSTREAM_VARIABLE)

# Of an option that is a secret: the variable names a file that holds it.
_FILE = "_FILE"


class Given(NamedTuple):
    """A text that a variable gives to an option."""

    variable: str
    text: str


def given_by_variables(environment: Mapping[str, str] | None = None) -> dict[str, Given]:
    """Return the texts of all variables of ours, by option; empty ones are as good as absent.

    Raises:
        ConfigError: A variable is unknown, or given twice, or its file cannot be read.
    """
    found = os.environ if environment is None else environment
    given: dict[str, Given] = {}
    for variable in sorted(found):
        text = found[variable]
        if not variable.startswith(PREFIX) or variable in _NO_OPTIONS or not text.strip():
            continue
        option = variable.removeprefix(PREFIX).lower()
        if option not in DEFAULTS and variable.endswith(_FILE):
            option = option.removesuffix(_FILE.lower())
        if option not in DEFAULTS or variable.upper() != variable:
            raise ConfigError(f"there is no variable {variable}{nearest(variable, known())}")
        if is_of_code(option):
            raise ConfigError(f"{variable}: {option} is given in code only, to {_MIDDLEWARES}")
        if option in given:
            raise ConfigError(
                f"{given[option].variable} and {variable} are both given; one of them is enough"
            )
        if variable != variable_of(option):
            text = read_text(variable, text).strip()
        given[option] = Given(variable, text)
    return given


def variable_of(option: str) -> str:
    """Return the variable that gives an option."""
    return PREFIX + option.upper()


def known() -> list[str]:
    """Return the names of all variables."""
    options = [variable_of(option) for option in DEFAULTS if not is_of_code(option)]
    return [*_NO_OPTIONS, *options, *(option + _FILE for option in options)]


_MIDDLEWARES = "TokenMeter, TierLimiter, CostLedger or Gate"
