"""A ledger's file that this user may not read or write: said in words, with the path."""

import asyncio
import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from inf_middleware.domain.errors import LedgerUnavailable
from inf_middleware.ledgers.connection import connect, connect_to_read, version_of
from inf_middleware.ledgers.sqlite import SqliteLedger
from tests.events import event_of

_NOBODY = 65_534


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that everybody may look into, with a ledger in use, `l.db`."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        ledger = SqliteLedger(folder / "l.db")

        async def settle() -> None:
            await ledger.settle(event_of())

        asyncio.run(settle())
        yield folder
        asyncio.run(ledger.aclose())


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Be a user without rights of its own: root may read and write everything."""
    was = os.geteuid()
    if was == 0:
        os.seteuid(_NOBODY)
    try:
        yield
    finally:
        os.seteuid(was)


@pytest.mark.parametrize("look", [connect_to_read, version_of, connect])
def test_a_file_that_may_not_be_read(look: object, folder: Path) -> None:
    path = folder / "l.db"
    path.chmod(0)
    with as_nobody(), pytest.raises(LedgerUnavailable) as raised:
        look(path)  # type: ignore[operator]
    assert f"there is no permission to read {path}" in str(raised.value)
    assert "is no ledger" not in str(raised.value)


def test_a_file_that_may_not_be_written(folder: Path) -> None:
    path = folder / "l.db"
    path.chmod(0o444)
    with as_nobody(), pytest.raises(LedgerUnavailable) as raised:
        connect(path)
    assert str(raised.value) == (
        f"the ledger {path} cannot be used: there is no permission to write {path}"
    )


def test_a_folder_that_may_not_be_written(folder: Path) -> None:
    path = folder / "new.db"
    folder.chmod(0o555)
    with as_nobody(), pytest.raises(LedgerUnavailable) as raised:
        connect(path)
    assert str(raised.value).endswith(f"there is no permission to write {folder}")


def test_a_log_beside_it_that_may_not_be_written(folder: Path) -> None:
    path = folder / "l.db"
    path.chmod(0o666)
    with as_nobody(), pytest.raises(LedgerUnavailable) as raised:
        connect(path)
    assert f"there is no permission to write {path}-" in str(raised.value)


@pytest.mark.parametrize("look", [connect_to_read, connect])
def test_a_folder_that_may_not_be_entered(look: object, folder: Path) -> None:
    path = folder / "l.db"
    folder.chmod(0o600)
    with as_nobody(), pytest.raises(LedgerUnavailable) as raised:
        look(path)  # type: ignore[operator]
    assert f"there is no permission to read {folder}" in str(raised.value)
