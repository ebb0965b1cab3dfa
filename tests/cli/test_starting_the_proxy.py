"""`inf-middleware serve` at start: what is wrong is one line and exit code 2, before it listens."""

import contextlib
import json
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from inf_middleware.ledgers.connection import connect
from tests.apps import JsonApp
from tests.processes import Running, free_ports, wait_until
from tests.servers import serving

COMMAND = str(Path(sys.executable).with_name("inf-middleware"))
DIGEST = "sha256:" + "0" * 64
GOLD = f'[[account]]\nid = "acme"\ntier = "gold"\nkeys = ["{DIGEST}"]\n'


def refused(folder: Path, *arguments: str) -> str:
    """What `serve` says when it ends by itself: one line."""
    command = [COMMAND, "serve", "--port", "0", "--upstream", "http://127.0.0.1:9", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=120)
    lines = [
        line
        for line in done.stderr.splitlines()
        if "warning: the upstream" not in line and not line.startswith("INFO: ")
    ]
    assert (done.returncode, done.stdout, len(lines)) == (2, "", 1), done.stderr
    return lines[0]


def test_an_account_of_an_unknown_level(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(GOLD)
    told = refused(tmp_path, "--accounts", "a.toml")
    assert "--accounts: a.toml: account 1 (acme): there is no tier 'gold'; there are Free" in told


def test_a_file_that_is_no_toml(tmp_path: Path) -> None:
    (tmp_path / "inf.toml").write_text("[accounts\n")
    assert "inf.toml: Expected ']'" in refused(tmp_path, "--config", "inf.toml")


def test_a_port_that_another_has(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        told = refused(tmp_path, "--port", port)
    assert f"127.0.0.1:{port} cannot be listened on" in told
    assert "give another --host or --port" in told


def test_a_tokenizer_that_cannot_be_loaded(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text("{}")
    (tmp_path / "inf.toml").write_text('[meter]\ncounter = "t.json"\n')
    assert "t.json is no tokenizer.json" in refused(tmp_path, "--config", "inf.toml")


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("sqlite:///none/l.db", "--ledger: ledger: there is no folder"),
        ("sqlite:///.", "is a folder; name a file in it"),
        ("oracle://u:pw@h/x", "--ledger: ledger is 'oracle://…@h/x'; write"),
    ],
)
def test_a_ledger_that_cannot_be_there(uri: str, told: str, tmp_path: Path) -> None:
    assert told in refused(tmp_path, "--ledger", uri)


def test_accounts_in_a_ledger_that_cannot_be_there(tmp_path: Path) -> None:
    (tmp_path / "inf.toml").write_text('[accounts]\nfile = "sqlite:///none/l.db"\n')
    told = refused(tmp_path, "--config", "inf.toml")
    assert "inf.toml, line 2: accounts: there is no folder" in told


def test_a_file_that_is_no_ledger(tmp_path: Path) -> None:
    (tmp_path / "l.db").write_bytes(b"no ledger at all" * 500)
    told = refused(tmp_path, "--ledger", "sqlite:///l.db")
    assert told == f"inf-middleware: {tmp_path}/l.db is no ledger: file is not a database"
    assert not (tmp_path / "l.db.spool").exists()


def test_a_ledger_of_a_later_version(tmp_path: Path) -> None:
    connect(tmp_path / "l.db").close()
    db = sqlite3.connect(tmp_path / "l.db", isolation_level=None)
    db.execute("UPDATE meta SET schema_version = 99")
    db.close()
    assert "has schema version 99, and this" in refused(tmp_path, "--ledger", "sqlite:///l.db")


def test_a_sink_whose_folder_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "inf.toml").write_text('[sinks]\nmine = "jsonl:none/x.jsonl"\n')
    told = refused(tmp_path, "--config", "inf.toml")
    assert f"inf.toml, line 1: mine: there is no folder {tmp_path}/none; make it" in told
    command = [COMMAND, "doctor", "--config", "inf.toml"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 1
    assert f"WRONG  sinks     mine: there is no folder {tmp_path}/none" in done.stdout


def test_a_folder_that_may_not_be_written_and_no_ledger_is_given(tmp_path: Path) -> None:
    code = (
        "import os, sys; os.access = lambda *_: False; sys.argv[0] = 'inf-middleware';"
        "from inf_middleware.cli import main; main()"
    )
    command = [sys.executable, "-c", code, "serve", "--upstream", "http://127.0.0.1:9"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "inf-middleware: the default of ledger, sqlite:///inf-ledger.db: ledger: the folder"
        f" {tmp_path} cannot be written"
    )


def test_what_the_proxy_needs_is_not_installed(tmp_path: Path) -> None:
    # As without the extra: the interpreter finds no uvicorn.
    code = (
        "import sys; sys.modules['uvicorn'] = None; sys.argv[0] = 'inf-middleware';"
        "from inf_middleware.cli import main; main()"
    )
    command = [sys.executable, "-c", code, "serve", "--upstream", "http://127.0.0.1:9"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "inf-middleware: the proxy needs uvicorn; install it: pip install 'inf-middleware[serve]'\n"
    )


@contextlib.contextmanager
def started(folder: Path, upstream: int, *arguments: str) -> Iterator[Running]:
    """Serve before an upstream of this host, whether anybody is there or not."""
    command = [COMMAND, "serve", "--port", "0", "--upstream", f"http://127.0.0.1:{upstream}"]
    command += arguments
    server = Running(command, folder / "out.txt", folder=folder, env={"PYTHONUNBUFFERED": "1"})
    try:
        wait_until(lambda: "Listening on" in server.said(), "the proxy starts", timeout_s=60)
        yield server
    finally:
        server.stop()


def test_an_upstream_that_is_not_there_yet_is_warned_of_and_waited_for(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    with started(tmp_path, port) as server:
        assert f"warning: the upstream http://127.0.0.1:{port} cannot be reached" in server.said()
        assert "Traceback" not in server.said()


def test_no_password_is_told(tmp_path: Path) -> None:
    (nobody,) = free_ports(1)
    ledger = f"postgresql://billing:s3cret@127.0.0.1:{nobody}/bills"
    with started(tmp_path, nobody, "--ledger", ledger) as server:
        assert f"@127.0.0.1:{nobody}/bills" in server.said()
        assert "s3cret" not in server.said()


def test_what_the_library_logs_is_shown(tmp_path: Path) -> None:
    (redis, upstream) = free_ports(2)
    with started(tmp_path, upstream, "--storage", f"redis://127.0.0.1:{redis}") as server:
        url = server.said().partition("Listening on ")[2].partition(",")[0]
        httpx.post(f"{url}/v1/chat/completions", json={"model": "m", "messages": []})
        said = server.said()
        assert "\nINFO:     CostLedger + TierLimiter + TokenMeter in force: " in said
        assert "\nERROR:    the limits' storage failed: " in said
        assert f"\nWARNING:  http://127.0.0.1:{upstream} cannot be asked" in said


@pytest.mark.parametrize(
    ("status", "answer", "right", "told"),
    [
        (200, {"data": [{"id": "tiny"}, {"id": "large"}]}, True, "and has tiny, large"),
        (404, {"detail": "Not Found"}, True, "/v1/models is 404, so it does not tell its models"),
        (401, {"error": "Unauthorized"}, True, "wants a key: callers' own go through, or give key"),
        (503, {"error": "loading"}, False, "with status 503"),
    ],
)
def test_the_doctor_says_what_the_upstream_answers(
    status: int, answer: object, right: bool, told: str, tmp_path: Path
) -> None:
    with serving(JsonApp(answer, status=status), lifespan="off") as url:
        found = doctor(tmp_path, f'[upstream]\nurl = "{url}"\n')
    assert found["right"] is right
    assert told in found["words"]
    assert url in found["words"]


def test_the_doctor_says_that_the_upstream_is_away_or_refuses_the_key(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    found = doctor(tmp_path, f'[upstream]\nurl = "http://127.0.0.1:{port}"\n')
    assert found["right"] is False
    assert "cannot be reached" in found["words"]
    (tmp_path / "key").write_text("sk-wrong")
    with serving(JsonApp({}, status=401), lifespan="off") as url:
        found = doctor(tmp_path, f'[upstream]\nurl = "{url}"\nkey_file = "key"\n')
    assert found["right"] is False
    assert "refuses the key of key_file (401)" in found["words"]
    assert "sk-wrong" not in found["words"]


def test_the_doctor_sees_that_the_upstreams_clock_is_wrong(tmp_path: Path) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"date", b"Mon, 01 Jan 2024 00:00:00 GMT")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b'{"data": []}'})

    with serving(app, lifespan="off", date_header=False) as url:
        found = doctor(tmp_path, f'[upstream]\nurl = "{url}"\n')
    assert found["right"] is False
    assert "behind: set the clocks of both hosts by NTP" in found["words"]


def doctor(folder: Path, config: str) -> dict[str, Any]:
    """What the doctor finds of the upstream."""
    (folder / "inf.toml").write_text(config)
    command = [COMMAND, "doctor", "--config", "inf.toml", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=120)
    return next(one for one in json.loads(done.stdout) if one["part"] == "upstream")


def test_once_it_has_started_the_garbage_collector_leaves_alone_what_is_there(
    tmp_path: Path,
) -> None:
    steps = (
        "import gc; _, *others = gc.get_threshold();"
        "from inf_middleware.cli.serve import COLLECTED_AFTER, spare_garbage_collector;"
        "spare_garbage_collector(); assert gc.get_freeze_count() > 10_000, gc.get_freeze_count();"
        "assert gc.isenabled(); assert gc.get_threshold() == (COLLECTED_AFTER, *others)"
    )
    subprocess.run([sys.executable, "-c", steps], check=True, cwd=tmp_path)
