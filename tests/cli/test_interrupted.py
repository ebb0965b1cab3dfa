"""Ctrl-C leaves nothing half done: real processes, interrupted where they are at work."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from inf_middleware.cli import main
from inf_middleware.ledgers.sqlite import SqliteLedger
from tests.events import event_of
from tests.kit import reading
from tests.processes import wait_until

COMMAND = str(Path(sys.executable).with_name("inf-middleware"))

# Under the load of other tests a command takes some seconds to start.
PATIENCE_S = 90.0


def settled(path: Path, count: int) -> str:
    """A ledger with some events, one of whose sinks has them all; returns its URI."""

    async def go() -> None:
        ledger = SqliteLedger(path)
        await asyncio.gather(*(ledger.settle(event_of(number)) for number in range(count)))
        await ledger.advance("mine", count, {})
        await ledger.aclose()

    asyncio.run(go())
    return f"sqlite:///{path}"


def told(uri: str, *words: str) -> Any:
    result = CliRunner().invoke(main, [*words, "--ledger", uri, "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def started(*words: str) -> "subprocess.Popen[str]":
    """Start a command that says its process' number first, and goes on when it is told to."""
    script = 'read go; exec "$0" "$@"'
    return subprocess.Popen(
        ["sh", "-c", script, COMMAND, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_interrupts,  # noqa: PLW1509 - no other thread runs by then
    )


def heed_interrupts() -> None:
    """Take SIGINT as a terminal's programs do: what a shell runs in the background ignores it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def go_on(process: "subprocess.Popen[str]") -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def interrupted(process: "subprocess.Popen[str]") -> str:
    """Return what a command that was interrupted has said; it must not call that a success."""
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1, err
    assert "Traceback" not in err
    assert "Aborted!" in err
    return err


def test_an_export_leaves_neither_a_part_of_a_file_nor_the_file(tmp_path: Path) -> None:
    uri = settled(tmp_path / "ledger.db", 400)
    output = tmp_path / "export.jsonl"
    process = started("ledger", "export", "--ledger", uri, "--output", str(output))
    # What it writes to is a pipe, which is full before it is through.
    partial = tmp_path / f"export.jsonl.{process.pid}.partial"
    os.mkfifo(partial)
    go_on(process)
    with partial.open("rb") as pipe:
        assert pipe.read(1)
        process.send_signal(signal.SIGINT)
        rest = threading.Thread(target=pipe.read)
        rest.start()
        interrupted(process)
        rest.join(PATIENCE_S)
    assert not partial.exists()
    assert not output.exists()


def test_a_recharge_is_booked_whole_or_not_at_all_and_once_when_it_is_run_again(
    tmp_path: Path,
) -> None:
    path = tmp_path / "ledger.db"
    uri = settled(path, 1)
    words = ("recharge", "acme", "5", "--reference", "r1")
    process = started(*words, "--ledger", uri)
    with reading(path) as db:
        before = db.execute("SELECT balance_nano FROM balance").fetchone()[0]
        db.execute("BEGIN IMMEDIATE")  # it waits for its turn to write
        go_on(process)
        wait_until(lambda: is_open(process.pid, path), "the ledger open", timeout_s=PATIENCE_S)
        process.send_signal(signal.SIGINT)
        db.execute("COMMIT")
    process.communicate(timeout=PATIENCE_S)
    shown = told(uri, "account", "show", "acme")
    assert int(shown["balance_nano"]) - before in (0, 5 * 10**9)
    assert told(uri, "ledger", "reconcile")["ok"] is True
    again = told(uri, *words)
    assert int(again["balance_nano"]) - before == 5 * 10**9
    assert told(uri, "ledger", "reconcile")["ok"] is True


def is_open(pid: int, path: Path) -> bool:
    folder = Path(f"/proc/{pid}/fd")
    try:
        return any(os.readlink(file) == str(path) for file in folder.iterdir())
    except OSError:
        return False


def test_a_replay_that_is_not_waited_for_any_more_stays_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    uri = settled(path, 5)
    words = ("events", "replay", "--sink", "mine", "--since", "2026-01-01", "--wait")
    process = started(*words, "--ledger", uri)
    go_on(process)

    def is_asked() -> bool:
        with reading(path) as db:
            return bool(db.execute("SELECT 1 FROM replay").fetchall())

    wait_until(is_asked, "a replay that is asked for", timeout_s=PATIENCE_S)
    process.send_signal(signal.SIGINT)  # no server runs: it would wait for ever
    interrupted(process)
    assert told(uri, "events", "status")[0]["replaying"] == 5
