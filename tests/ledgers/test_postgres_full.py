"""PostgreSQL whose data directory, WAL and all, is on a disk that is full."""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.ledgers.postgres_server import PostgresServer
from tests.ledgers.small_disk import Mounted
from tests.ledgers.test_postgres_disk import Shop, check

# A fresh cluster takes 40 MB, of which 16 are the first segment of its log.
_SIZE = "160m"

# Of 16 bills or so per page of 8 kB: a server that can add no page stops long before.
BILLS_MAX = 400


@contextmanager
def on_a_small_disk() -> Iterator[tuple[PostgresServer, Mounted]]:
    # A short path: that of a unix socket has at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="pg", ignore_cleanup_errors=True) as folder:
        mount = ["mount", "-t", "tmpfs", "-o", f"size={_SIZE}", "tmpfs", folder]
        subprocess.run(mount, check=True, capture_output=True)
        try:
            server = PostgresServer(Path(folder))
            server.start()
            try:
                yield server, Mounted(Path(folder))
            finally:
                server.stop()
        finally:
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
            restart_where_it_died(server)
            statuses = [await shop.post() for _ in range(5)]
            assert statuses[-3:] == [200] * 3

        shop = Shop(server.uri(), tmp_path, mode=mode, on_ledger_error=on_ledger_error)
        shop.run(go)
        check(shop)
