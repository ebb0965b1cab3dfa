"""`inf-middleware init` and `serve`, as a newcomer uses them."""

import json
import re
import stat
import subprocess
import sys
from pathlib import Path

import openai
import pytest

from tests.apps import JsonApp, completion, usage_of
from tests.kit import records_of
from tests.processes import Running, wait_until
from tests.servers import serving

COMMAND = str(Path(sys.executable).with_name("inf-middleware"))


def run(*arguments: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([COMMAND, *arguments], capture_output=True, text=True, cwd=cwd)


def test_init_shows_each_key_once_and_keeps_only_its_digest(tmp_path: Path) -> None:
    shown = run("init", "--users", "alice, 小明", "--tier", "tier1", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    keys = re.findall(r"^  (\S+) +(sk-\S+)$", shown.stdout, re.MULTILINE)
    assert [name for name, _ in keys] == ["alice", "小明"]
    assert "inf-middleware serve --config inf.toml" in shown.stdout
    for name in ("inf.toml", "accounts.toml"):
        written = tmp_path / name
        assert stat.S_IMODE(written.stat().st_mode) == 0o600
        assert not any(key in written.read_text("utf-8") for _, key in keys)
    assert (tmp_path / "accounts.toml").read_text("utf-8").count('tier = "Tier1"') == 2


@pytest.mark.parametrize("there", ["inf.toml", "accounts.toml"])
def test_init_never_writes_over_a_file(there: str, tmp_path: Path) -> None:
    (tmp_path / there).write_text("mine")
    refused = run("init", "--users", "alice", cwd=tmp_path)
    assert refused.returncode == 2
    assert f"{there} already here" in refused.stderr
    assert [path.name for path in tmp_path.iterdir()] == [there]
    assert (tmp_path / there).read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("init", "--users", "a,,b"), "alice,bob"),
        (("init", "--users", "a,a"), "names one twice"),
        (("init", "--users", "a", "--tier", "Gold"), "Gold"),
        (("init", "--users", "a", "--upstream", "localhost"), "must be a URL"),
        (("serve",), "there is no upstream"),
        (("serve", "--upstream", "localhost:11434"), "must be a URL"),
        (("serve", "--config", "none.toml"), "none.toml cannot be read"),
        (("serve", "--upstream", "http://x", "--accounts", "none.toml"), "none.toml"),
        (("serve", "--upstream", "http://x", "--storage", "mysql://x"), "mysql"),
        (("serve", "--upstream", "http://x", "--host", "192.0.2.1"), "cannot be listened on"),
    ],
)
def test_what_cannot_hold_is_one_clear_line(
    arguments: tuple[str, ...], told: str, tmp_path: Path
) -> None:
    refused = run(*arguments, cwd=tmp_path)
    assert refused.returncode == 2
    assert told in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_from_init_to_a_bill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    answer = completion("Hello there.", usage=usage_of(7, 3))
    with serving(JsonApp(answer), lifespan="off") as url:
        init = run(
            "init", "--users", "alice,bob", "--tier", "Tier1", "--upstream", url, cwd=tmp_path
        )
        keys = dict(re.findall(r"^  (\S+) +(sk-\S+)$", init.stdout, re.MULTILINE))
        command = [COMMAND, "serve", "--config", "inf.toml", "--port", "0"]
        server = Running(command, tmp_path / "out.txt", env={"PYTHONUNBUFFERED": "1"})
        try:
            wait_until(lambda: "Try it" in server.said(), "the proxy's first words")
            told = server.said()
            assert f"forwarding to {url}" in told
            assert "curl http://127.0.0.1:" in told
            here = re.findall(r"Listening on (\S+),", told)[0]
            with openai.OpenAI(base_url=f"{here}/v1", api_key=keys["bob"], max_retries=3) as client:
                raw = client.chat.completions.with_raw_response.create(
                    model="inf-chat-v1", messages=[{"role": "user", "content": "Hello"}]
                )
                assert raw.headers["x-ratelimit-limit-requests"] == "20"
                with pytest.raises(openai.AuthenticationError):
                    client.with_options(api_key="sk-none").chat.completions.create(
                        model="inf-chat-v1", messages=[{"role": "user", "content": "Hello"}]
                    )
        finally:
            server.stop()
    (record,) = records_of(tmp_path / "inf-ledger.db")
    assert (record["account"], record["tier"], record["amount_nano"]) == ("bob", "Tier1", 100_000)
    usage = json.loads(run("usage", "--json", cwd=tmp_path).stdout)
    assert [row["account"] for row in usage] == ["bob"]
