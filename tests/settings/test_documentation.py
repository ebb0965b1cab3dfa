"""The page on settings: its file is one, its messages are said, and no option is missing."""

import re
from pathlib import Path

import pytest

from inf_middleware import ConfigError
from inf_middleware.settings import DEFAULTS, Sources
from inf_middleware.settings.kinds import is_of_code

PAGE = (Path(__file__).parents[2] / "docs" / "settings.md").read_text("utf-8")
(FILE,) = re.findall(r"```toml[^\n]*\n(.*?)```", PAGE, re.DOTALL)


def test_the_file_of_the_page_is_one_and_names_every_option(tmp_path: Path) -> None:
    path = tmp_path / "inf.toml"
    path.write_text(FILE, "utf-8")
    (tmp_path / "accounts.toml").write_text('[[account]]\nid = "a"\nkeys = []\n')
    (tmp_path / "tiers.toml").write_text(
        '[[tier]]\nname = "free"\nconcurrency = 1\nrequests_per_minute = 1\n'
        "tokens_per_minute = 1000\n"
    )
    sources = Sources(path)
    missing = {
        option
        for option in DEFAULTS
        if not is_of_code(option) and sources.setting(option).origin == "default"
    }
    assert missing == set()


def test_the_message_of_the_page_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("inf.toml").write_text("[storage]\nurl = 'memory://'\n")
    with pytest.raises(ConfigError) as caught:
        Sources("inf.toml")
    assert f"```text\n{caught.value}\n```" in PAGE
