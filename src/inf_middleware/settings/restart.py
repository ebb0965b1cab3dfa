"""What of the settings file is read at start alone, and is told of when it has changed since."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from inf_middleware.files import TableFile
from inf_middleware.settings.config import read_config, written_as
from inf_middleware.settings.sources import DEFAULT, Setting

_log = logging.getLogger("inf_middleware.settings")


class NeedsRestart:
    """Tells once of each key of a settings file that has changed and is not taken over.

    `in_force` are the settings by option. What others give goes before the file, now and after a
    restart, and is not told of.
    """

    def __init__(self, path: str, in_force: Mapping[str, Setting]) -> None:
        self.file: TableFile[dict[str, Any]] = TableFile("settings", path, _values)
        self._at_start = self.file.value
        self._mine = {
            option
            for option, setting in in_force.items()
            if setting.origin == DEFAULT or setting.origin.startswith(f"{path}, line ")
        } | {"upstream"}
        self._told: tuple[str, ...] = ()

    def look(self) -> None:
        """Tell of what differs from the start, where it is not what was told last."""
        changed = _changed(self._at_start, self.file.value, self._mine)
        if changed and changed != self._told:
            _log.warning(
                "%s: %s changed since the start; restart to take %s over",
                self.file.path,
                ", ".join(changed),
                "it" if len(changed) == 1 else "them",
            )
        self._told = changed


def _values(_: Mapping[str, Any], path: str) -> dict[str, Any]:
    return {option: written.value for option, written in read_config(path).items()}


def _changed(
    before: Mapping[str, Any], now: Mapping[str, Any], options: set[str]
) -> tuple[str, ...]:
    missing = object()
    names: Sequence[str] = sorted(options & {*before, *now})
    return tuple(
        written_as(name) for name in names if before.get(name, missing) != now.get(name, missing)
    )
