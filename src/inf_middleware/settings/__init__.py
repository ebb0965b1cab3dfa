"""The options: names, kinds and defaults, where their values come from, how they are shown."""

from inf_middleware.settings.checks import MEMORY, is_limit_store
from inf_middleware.settings.options import (
    DEFAULTS,
    AdminOptions,
    CommonOptions,
    GateOptions,
    LedgerOptions,
    LimiterOptions,
    MeterOptions,
    check,
    default,
)
from inf_middleware.settings.restart import NeedsRestart
from inf_middleware.settings.shown import shown
from inf_middleware.settings.sources import DEFAULT, Setting, Sources

__all__ = [
    "DEFAULT",
    "DEFAULTS",
    "MEMORY",
    "AdminOptions",
    "CommonOptions",
    "GateOptions",
    "LedgerOptions",
    "LimiterOptions",
    "MeterOptions",
    "NeedsRestart",
    "Setting",
    "Sources",
    "check",
    "default",
    "is_limit_store",
    "shown",
]
