"""Accounts in a TOML file: readable, without keys in clear, and each mistake named."""

import asyncio
import hashlib
import re
from pathlib import Path

import pytest

from inf_middleware import Account, ConfigError, Gate, Tier, Tiers
from inf_middleware.accounts.toml import TomlAccounts
from tests.apps import JsonApp, completion, usage_of
from tests.driver import post
from tests.kit import CHAT


def sha(key: str) -> str:
    return "sha256:" + hashlib.sha256(key.encode()).hexdigest()


GOOD = f"""
[[account]]
id = "acme"
recharged = "500.00"
keys = ["{sha("sk-a1")}", "{sha("sk-a2")}"]
metadata = {{ customer = "C-17" }}

[[account]]
id = "gone"
tier = "tier2"
keys = ["{sha("sk-gone")}"]
suspended = true

[[account]]
id = "umbrella"
keys = ["{sha("sk-u")}"]

[account.tier]
name = "Umbrella"
concurrency = 100
requests_per_minute = 7
tokens_per_minute = 5_000_000
tokens = ["10000000/day"]
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "accounts.toml"
    path.write_text(text, "utf-8")
    return path


def found(accounts: TomlAccounts, key: str | None) -> Account | None:
    return asyncio.run(accounts(key, None))  # type: ignore[arg-type]


def test_the_accounts_of_a_file_are_found_by_their_keys(tmp_path: Path) -> None:
    accounts = TomlAccounts(written(tmp_path, GOOD))
    acme = Account("acme", recharged="500.00", metadata={"customer": "C-17"})
    assert found(accounts, "sk-a1") == found(accounts, "sk-a2") == acme
    assert found(accounts, "sk-gone") == Account("gone", tier="tier2", suspended=True)
    own = Tier("Umbrella", 100, 7, 5_000_000, tokens=["10000000/day"])
    assert found(accounts, "sk-u") == Account("umbrella", tier=own)
    assert found(accounts, "sk-other") is found(accounts, None) is None


@pytest.mark.parametrize("as_text", [True, False])
def test_a_path_that_ends_in_toml_is_a_file_of_accounts(tmp_path: Path, as_text: bool) -> None:
    path = written(tmp_path, GOOD)
    gate = Gate(
        JsonApp(completion(usage=usage_of(1, 1))),
        accounts=str(path) if as_text else path,
        ledger=f"sqlite:///{tmp_path}/l.db",
    )

    async def go() -> list[int]:
        keys = ("sk-a1", "sk-a2", "sk-gone", "sk-u", "sk-no")
        answers = [await post(gate, CHAT, key=key) for key in keys]
        assert answers[0].headers["x-ratelimit-remaining-requests"] == "19"
        assert answers[1].headers["x-ratelimit-remaining-requests"] == "18"
        assert answers[3].headers["x-ratelimit-limit-requests"] == "7"
        return [answer.status for answer in answers]

    assert asyncio.run(go()) == [200, 200, 403, 200, 401]


def entry(more: str = "", keys: str = f'keys = ["{sha("k")}"]') -> str:
    return f'[[account]]\nid = "acme"\n{keys}\n{more}\n'


WRONG = [
    ("", "accounts.toml has no [[account]] table"),
    ("account = 5", "has no [[account]] table"),
    ("[[account]\n", "accounts.toml: "),
    ("[[acount]]\n", "accounts.toml has unknown acount"),
    ("[[account]]\nkeys = []\n", 'account 1 lacks id; write id = "acme"'),
    ("[[account]]\nid = 5\nkeys = []\n", "account 1 (5): account id is 5"),
    (entry(keys=""), "account 1 (acme) lacks keys; write keys = ["),
    (entry(keys='keys = "sk"'), "lacks keys; write keys = ["),
    (entry(keys='keys = ["sk-clear-text"]'), 'key 1 is not "sha256:" and 64 hexadecimal digits'),
    (entry(keys='keys = ["sha256:zz"]'), "key 1 has a sha256: key that is not 64"),
    (entry(keys=f'keys = ["{sha("k")}", 5]'), "account 1 (acme): key 2 is not"),
    (entry("teir = 'free'"), "account 1 (acme) has unknown teir"),
    (entry("tier = 5"), "account 1 (acme): tier is 5; write a level's name"),
    (entry("[account.tier]\nname = 'x'"), "account 1 (acme): tier lacks concurrency"),
    (entry("recharged = 1.5"), "account 1 (acme): recharged of account acme"),
    (entry("suspended = 'no'"), "account 1 (acme): suspended of account acme is 'no'"),
    (entry("metadata = 5"), "account 1 (acme): metadata is no table"),
    (entry() + entry(keys="keys = []"), "account 2 (acme) has the id of another"),
    (
        entry() + entry().replace("acme", "other"),
        "account 2 (other) has a key that",
    ),
]


@pytest.mark.parametrize(("text", "words"), WRONG, ids=[words for _, words in WRONG])
def test_a_mistake_is_told_with_file_entry_and_what_would_be_right(
    text: str, words: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        Gate(JsonApp({}), accounts=written(tmp_path, text))
    assert words in str(caught.value)
    assert "accounts.toml" in str(caught.value)
    assert "sk-clear-text" not in str(caught.value)


def test_a_file_that_is_not_there_and_a_level_that_does_not_exist_are_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"accounts: .*none\.toml cannot be read"):
        Gate(JsonApp({}), accounts=tmp_path / "none.toml")
    gate = Gate(JsonApp({}), accounts=written(tmp_path, entry("tier = 'gold'")))
    with pytest.raises(ConfigError, match=r"account 1 \(acme\): there is no tier 'gold'"):
        asyncio.run(post(gate, CHAT, key="k"))


def test_the_file_of_the_documentation_is_one(tmp_path: Path) -> None:
    docs = Path(__file__).parent.parent.parent / "docs" / "accounts.md"
    (text,) = re.findall(r"```toml[^\n]*\n(.*?)```", docs.read_text("utf-8"), re.DOTALL)
    accounts = TomlAccounts(written(tmp_path, text))
    accounts.check_levels(Tiers.default())
    acme = found(accounts, "password")  # whose hash it has
    assert acme is not None
    assert acme.id == "acme"
