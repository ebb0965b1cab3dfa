"""From the options on logs and metrics to who watches the calls of a stack."""

from collections.abc import Callable
from typing import Any

from inf_middleware.observers.logs import CallLog
from inf_middleware.ports import Observer


def build_observer(option: Callable[[str], Any], *, logs_calls: bool) -> Observer | None:
    """Return who watches by the values in force of options; None where nobody does.

    `logs_calls`: where nothing is said, calls are logged.
    """
    log_calls = option("log_calls")
    return CallLog() if (logs_calls if log_calls is None else log_calls) else None
