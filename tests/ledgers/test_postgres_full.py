"""PostgreSQL whose data directory, WAL and all, is on a disk that is full."""

import asyncio
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.ledgers.postgres_server import PostgresServer
from tests.ledgers.small_disk import Mounted
from tests.ledgers.test_postgres_disk import Shop, check
from tests.processes import processes_of

# A fresh cluster takes 40 MB, of which 16 are the first segment of its log.
_SIZE = "160m"

# Of 16 bills or so per page of 8 kB: a server that can add no page stops long before.
BILLS_MAX = 400

PATIENCE_S = 90.0


# Less than the first segment of the log, and than most tables of the catalogue.
_LIMIT_BYTES = 100_000


class Limited:
    """A server whose files do not grow, for want of the right to mount.

    To PostgreSQL this is a full disk: it ignores the signal, and the write fails.
    """

    def __init__(self, server: PostgresServer) -> None:
        self._server = server

    def fill(self) -> None:
        """Let none of its processes, and none that it starts, write beyond this."""
        self._limit(str(_LIMIT_BYTES))

    def empty(self) -> None:
        """Let files grow again."""
        self._limit("unlimited")

    def _limit(self, size: str) -> None:
        process = self._server.process
        assert process is not None
        for pid in processes_of(process.pid):
            with suppress(subprocess.CalledProcessError):  # one that has ended
                self._server.call(["prlimit", f"--fsize={size}:unlimited", "--pid", str(pid)])


@contextmanager
def on_a_small_disk() -> Iterator[tuple[PostgresServer, Mounted | Limited]]:
    # A short path: that of a unix socket has at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="pg", ignore_cleanup_errors=True) as folder:
        mount = ["mount", "-t", "tmpfs", "-o", f"size={_SIZE}", "tmpfs", folder]
        mounted = not (os.geteuid() or subprocess.run(mount, capture_output=True).returncode)
        try:
            server = PostgresServer(Path(folder))
            server.start()
            try:
                yield server, Mounted(Path(folder)) if mounted else Limited(server)
            finally:
                server.stop(signal.SIGQUIT)  # at once: it is thrown away
        finally:
            if mounted:
                subprocess.run(["umount", "--lazy", folder], check=True)


def restart_where_it_died(server: PostgresServer) -> None:
    """Start it again where it ended itself: it does where its log cannot be written."""
    if server.process is not None and server.process.poll() is not None:
        server.start()


@pytest.mark.parametrize(
    ("mode", "on_ledger_error"), [("prepaid", "refuse"), ("postpaid", "spool")]
)
def test_a_postgres_whose_disk_is_full_loses_no_bill_and_heals_without_a_restart_of_ours(
    mode: str, on_ledger_error: str, tmp_path: Path
) -> None:
    with on_a_small_disk() as (server, disk):

        async def go(shop: Shop) -> None:
            assert await shop.post() == 200
            disk.fill()
            refused = 0
            for _ in range(BILLS_MAX):
                if await shop.post() != 200:
                    refused += 1
                if refused == 3 or os.listdir(tmp_path):
                    break
            if on_ledger_error == "spool":
                assert [await shop.post() for _ in range(5)] == [200] * 5
                assert refused == 0
                assert os.listdir(tmp_path)
            else:
                assert refused == 3
                seen = len(shop.model.bodies)
                assert [await shop.post() for _ in range(3)] == [503] * 3
                assert len(shop.model.bodies) == seen
            disk.empty()
            # It recovers first, or has to be started.
            deadline = time.monotonic() + PATIENCE_S
            while not server.is_ready() or await shop.post() != 200:
                assert time.monotonic() < deadline, "it does not heal"
                restart_where_it_died(server)
                await asyncio.sleep(0.2)
            assert [await shop.post() for _ in range(3)] == [200] * 3

        shop = Shop(server.uri(), tmp_path, mode=mode, on_ledger_error=on_ledger_error)
        shop.run(go)
        check(shop)
