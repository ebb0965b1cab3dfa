"""A process that forks while its ledger is open: neither of the two loses or breaks anything."""

import subprocess
import sys
from pathlib import Path

from tests.kit import reading

ROOT = Path(__file__).parents[2]

# With a ledger that stays open about one in ten breaks, more of them on a busy machine.
ROUNDS = 10

FORKING = """
import asyncio, os, sys
from pathlib import Path
from inf_middleware.ledgers.looking import accounts_version
from inf_middleware.ledgers.sqlite import SqliteLedger
from tests.events import event_of

async def settle(ledger, numbers):
    for number in numbers:
        await ledger.settle(event_of(number))
    await ledger.read(accounts_version)

for round in range(int(sys.argv[1])):
    ledger = SqliteLedger(Path(f"{round}.db"))
    asyncio.run(settle(ledger, [0]))
    child = os.fork()
    if not child:
        opened = [os.readlink(file) for file in Path("/dev/fd").iterdir() if file.is_symlink()
                  and file.exists()]
        assert not [name for name in opened if ".db" in name], opened
        asyncio.run(settle(ledger, range(1, 30)))
        os._exit(0)
    asyncio.run(settle(ledger, range(30, 60)))
    assert os.waitpid(child, 0)[1] == 0, "the child failed"
    asyncio.run(settle(ledger, [60]))
    asyncio.run(ledger.aclose())
"""


# As where another thread of the parent holds the locks in the moment of the fork.
LOCKED = """
import asyncio, os, signal
from pathlib import Path
from inf_middleware.ledgers.looking import accounts_version
from inf_middleware.ledgers.sqlite import SqliteLedger
from tests.events import event_of

async def use(ledger, number):
    await ledger.settle(event_of(number))
    await ledger.read(accounts_version)

ledger = SqliteLedger(Path("locked.db"))
asyncio.run(use(ledger, 0))
locks = [ledger._writer._lock, ledger._reader._lock]
for lock in locks:
    lock.acquire()
child = os.fork()
if not child:
    signal.alarm(20)
    asyncio.run(use(ledger, 1))
    os._exit(0)
for lock in locks:
    lock.release()
assert os.waitpid(child, 0)[1] == 0, "the child waited for a thread that it does not have"
"""


def run(code: str, *arguments: str, folder: Path) -> None:
    """Run it in a process of its own, which must end well."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env={"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def test_a_fork_waits_for_no_thread_that_only_its_parent_has(tmp_path: Path) -> None:
    run(LOCKED, folder=tmp_path)


def test_what_a_process_and_its_fork_settle_is_all_there(tmp_path: Path) -> None:
    run(FORKING, str(ROUNDS), folder=tmp_path)
    for number in range(ROUNDS):
        with reading(tmp_path / f"{number}.db") as db:
            assert db.execute("SELECT count(*) FROM request").fetchall() == [(61,)]
            assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
