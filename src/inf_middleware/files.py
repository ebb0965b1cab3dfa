"""Tables in TOML files that an operator edits: read whole, told apart by their stamps."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeAlias, TypeVar

from inf_middleware.domain import tables
from inf_middleware.domain.errors import ConfigError

T = TypeVar("T")

# What an operator writes by hand is far smaller; more is another kind of file.
FILE_BYTES_MAX = 64 * 1024 * 1024

Stamp: TypeAlias = tuple[int, int, int] | None


class TableFile(Generic[T]):
    """A table in a file: `value` is what was made of it when it was last taken over.

    `option` names what it is for in errors. `section` is the name of a table within the file;
    None takes all of it. `parse` makes the value of a table and of words that say where it is.

    Raises:
        ConfigError: The file cannot be read, or does not hold; names the file.
    """

    def __init__(
        self,
        option: str,
        path: str | Path,
        parse: Callable[[dict[str, Any], str], T],
        *,
        section: str | None = None,
    ) -> None:
        self.option = option
        self.path = str(path)
        self.source = self.path if section is None else f"{self.path} [{section}]"
        self._section = section
        self._parse = parse
        self.stamp = stamp_of(self.path)  # before it is read: a change meanwhile is seen later
        self.value = self.read()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TableFile):
            return NotImplemented
        return (self.option, self.source) == (other.option, other.source)

    def __hash__(self) -> int:
        return hash((self.option, self.source))

    def __repr__(self) -> str:
        return repr(self.source)

    def read(self) -> T:
        """Read what the file says now, without taking it over.

        Raises:
            ConfigError: It cannot be read, or does not hold; names the file.
        """
        table: Any = tables.parse(read_text(self.option, self.path), self.path)
        if self._section is not None:
            table = table.get(self._section)
            if not isinstance(table, dict):
                raise ConfigError(f"{self.path} has no table [{self._section}]")
        try:
            return self._parse(table, self.source)
        except ConfigError as error:
            text = str(error)
            raise ConfigError(
                text if text.startswith(self.path) else f"{self.source}: {text}"
            ) from None


def value_of(option: Any) -> Any:
    """Return the value of an option: of a file, what was taken over last."""
    return option.value if isinstance(option, TableFile) else option


def stamp_of(path: str) -> Stamp:
    """Return what changes with a file: time, size and place; None where it is not to be seen."""
    try:
        status = Path(path).stat()
    except (OSError, ValueError):  # told when it is read
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def fault_of_place(path: Path) -> str | None:
    """Say why a file cannot be made or written where it shall be; None where it can."""
    folder = path.absolute().parent
    if not folder.is_dir():
        return f"there is no folder {folder}; make it"
    if not os.access(folder, os.W_OK):
        return f"the folder {folder} cannot be written"
    return f"{path} is a folder; name a file in it" if path.is_dir() else None


def read_text(what: str, path: str | Path) -> str:
    """Read a text file; `what` says in errors what it is for.

    Raises:
        ConfigError: It cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            raw = file.read(FILE_BYTES_MAX + 1)
        if len(raw) > FILE_BYTES_MAX:
            raise ConfigError(f"{what}: {path} has more than {FILE_BYTES_MAX:,} bytes")
        return raw.decode("utf-8-sig")  # some editors put a mark before the text
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{what}: {path} cannot be read: {error}") from error
