"""What of the settings file waits for a restart is told once, when it is seen to have changed."""

import asyncio
import logging
from pathlib import Path

import pytest

from inf_middleware import Gate
from tests.apps import JsonApp, completion, usage_of
from tests.driver import post
from tests.kit import CHAT
from tests.settings.test_following import MovedLoop, run, tiers_text, until_limit_is


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if "restart" in r.getMessage()]


def test_what_waits_for_a_restart_is_told_once_and_what_is_followed_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "inf.toml"

    def write(requests: int, top: str, policies: str) -> None:
        levels = tiers_text(requests=requests).replace("[[tier]]", "[[tiers.tier]]")
        path.write_text(
            f'{top}[accounts]\nanonymous = "gold"\n{levels}'
            f'[ledger]\nuri = "sqlite:///{tmp_path}/l.db"\n{policies}'
        )

    write(1000, "", "[policies]\nmax_wait_s = 1\n")
    monkeypatch.setenv("INF_MIDDLEWARE_CONFIG", str(path))
    monkeypatch.setenv("INF_MIDDLEWARE_MAX_WAIT_S", "2")
    gate = Gate(JsonApp(completion(usage=usage_of(1, 1))), help_url="https://example.org")

    async def go() -> None:
        await until_limit_is("1000", gate)
        # A level is followed; a variable and code go before what the file says of two others.
        write(1001, 'help_url = "https://x"\n', "[policies]\nmax_wait_s = 9\n")
        await until_limit_is("1001", gate)
        assert warnings(caplog) == []
        top = 'deployment = "eu"\n'
        storage = '[storage]\nuri = "redis://localhost:1"\n[upstream]\nurl = "http://x"\n'
        write(1002, top, storage)
        await until_limit_is("1002", gate)
        write(1003, top, storage)
        await until_limit_is("1003", gate)
        write(1004, "", storage)
        await until_limit_is("1004", gate)

    with caplog.at_level(logging.WARNING, "inf_middleware"):
        run(go())
    told = "changed since the start; restart to take them over"
    assert warnings(caplog) == [
        f"{path}: deployment, [storage] uri, [upstream] {told}",
        f"{path}: [storage] uri, [upstream] {told}",
    ]


def test_a_settings_file_that_breaks_is_told_once_and_served_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "inf.toml"
    path.write_text(f'[ledger]\nuri = "sqlite:///{tmp_path}/l.db"\n')
    monkeypatch.setenv("INF_MIDDLEWARE_CONFIG", str(path))
    gate = Gate(JsonApp(completion(usage=usage_of(1, 1))), accounts={"k": "tier5"})

    async def go() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, MovedLoop)
        assert (await post(gate, CHAT, key="k")).status == 200
        path.write_text("[ledger\n")
        for _ in range(40):
            assert (await post(gate, CHAT, key="k")).status == 200
            loop.moved_s += 10
            await asyncio.sleep(0.005)

    with caplog.at_level(logging.ERROR, "inf_middleware"):
        run(go())
    (told,) = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert "a change is not taken over, what was in force stays" in told
    assert "inf.toml: Expected ']'" in told
