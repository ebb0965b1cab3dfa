"""Option beats variable beats file beats default, and each error says where it was written."""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inf_middleware import ConfigError, CostLedger, Gate, TierLimiter, TokenMeter
from inf_middleware.settings import DEFAULTS, Sources
from inf_middleware.settings.config import line_of, section_of
from inf_middleware.settings.kinds import is_of_code, value_of_text
from inf_middleware.settings.shown import shown, without_credentials
from inf_middleware.settings.variables import given_by_variables, variable_of
from tests.apps import JsonApp, completion, usage_of
from tests.driver import post
from tests.kit import CHAT, records_of

MODEL = JsonApp(completion(usage=usage_of(2, 3)))


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "inf.toml"
    path.write_text(text, "utf-8")
    return path


def in_force(app: Any, caplog: pytest.LogCaptureFixture) -> str:
    with caplog.at_level(logging.INFO, "inf_middleware"):
        asyncio.run(post(app, CHAT))
    (line,) = [r.getMessage() for r in caplog.records if "in force" in r.getMessage()]
    return line


@pytest.mark.parametrize("sources", range(4))
def test_an_option_beats_a_variable_beats_the_file_beats_the_default(
    sources: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = written(tmp_path, '\ndeployment = "file"\n')
    options: dict[str, Any] = {}
    expected = "deployment=default (default)"
    if sources >= 1:
        monkeypatch.setenv("INF_MIDDLEWARE_CONFIG", str(path))
        expected = f"deployment=file ({path}, line 2)"
    if sources >= 2:
        monkeypatch.setenv("INF_MIDDLEWARE_DEPLOYMENT", "variable")
        expected = "deployment=variable (INF_MIDDLEWARE_DEPLOYMENT)"
    if sources >= 3:
        options["deployment"] = "option"
        expected = "deployment=option (TokenMeter)"
    assert expected in in_force(TokenMeter(MODEL, **options), caplog)


def test_the_three_read_variables_and_file_for_the_whole_stack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, f'[ledger]\nuri = "sqlite:///{tmp_path}/l.db"\n')
    monkeypatch.setenv("INF_MIDDLEWARE_CONFIG", str(path))
    monkeypatch.setenv("INF_MIDDLEWARE_ACCOUNTS", '{ "sk-demo" = "tier2" }')
    for cls in (TokenMeter, TierLimiter, CostLedger):
        stack = TokenMeter(TierLimiter(CostLedger(MODEL)))
        answered = asyncio.run(post(stack, CHAT, key="sk-demo"))
        assert answered.headers["x-ratelimit-limit-requests"] == "80", cls
    assert len(records_of(tmp_path / "l.db")) == 3


FULL = """
deployment = "eu"
help_url = "https://example.org/help"

[accounts]
anonymous = "tier1"
accounts_ttl_s = 5
trusted_proxies = ["10.0.0.0/8"]

[[accounts.account]]
id = "acme"
tier = "gold"
keys = ["sha256:5e884898da28047151d0e56f8dc6292773603d0d6aabbdd62a11ef721d1542d8"]

[[tiers.tier]]
name = "gold"
concurrency = 3
requests_per_minute = 33
tokens_per_minute = 90_000

[prices]
version = "mine"
serves = ["inf-chat-v1"]
unpriced = "refuse"

[[prices.price]]
model = "inf-*"
input = "1"
output = "2"

[storage]
uri = "memory://"
lease_s = 9

[ledger]
uri = "sqlite:///LEDGER"
settle_timeout_s = 1

[sinks]
file = "jsonl:EVENTS"

[meter]
counter = "cl100k_base"
include_usage = "continuous"
assumed_output_tokens = { "inf-*" = 64 }

[policies]
on_disconnect = "drain"
max_in_flight = 7
exempt = ["/health"]
enforce = true
"""


def test_one_file_says_all_of_a_gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = FULL.replace("LEDGER", f"{tmp_path}/l.db").replace("EVENTS", f"{tmp_path}/e.jsonl")
    monkeypatch.setenv("INF_MIDDLEWARE_CONFIG", str(written(tmp_path, text)))
    gate = Gate(MODEL)
    answered = asyncio.run(post(gate, CHAT, key="password"))  # whose hash the account has
    assert answered.headers["x-ratelimit-limit-requests"] == "33"
    assert asyncio.run(post(gate, {**CHAT, "model": "x"}, key="password")).status == 404
    (record,) = records_of(tmp_path / "l.db")
    assert (record["account"], record["amount_nano"]) == ("acme", 2 * 1000 + 3 * 2000)


@pytest.mark.parametrize("cls", [TokenMeter, TierLimiter, CostLedger])
def test_each_of_the_three_alone_takes_the_whole_file(
    cls: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = FULL.replace("LEDGER", f"{tmp_path}/l.db").replace("EVENTS", f"{tmp_path}/e.jsonl")
    monkeypatch.setenv("INF_MIDDLEWARE_CONFIG", str(written(tmp_path, text)))
    assert asyncio.run(post(cls(MODEL), CHAT, key="password")).status == 200


def test_paths_in_the_file_are_relative_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "etc"
    folder.mkdir()
    (folder / "prices.toml").write_text('[[price]]\nmodel = "m"\ninput = "1"\noutput = "2"\n')
    path = written(folder, '[prices]\nfile = "prices.toml"\n')
    monkeypatch.chdir(tmp_path)
    assert Sources(path).setting("prices").value.value.find("m") is not None


def test_a_secret_comes_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = tmp_path / "redis-uri"
    secret.write_text("redis://:hush@localhost:6379\n")
    monkeypatch.setenv("INF_MIDDLEWARE_STORAGE_FILE", str(secret))
    setting = Sources().setting("storage")
    assert setting == ("redis://:hush@localhost:6379", "INF_MIDDLEWARE_STORAGE_FILE")
    monkeypatch.setenv("INF_MIDDLEWARE_STORAGE", "memory://")
    with pytest.raises(ConfigError, match=r"STORAGE and .*STORAGE_FILE are both given"):
        Sources()


def test_an_empty_variable_is_as_good_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INF_MIDDLEWARE_DEPLOYMENT", " ")
    monkeypatch.setenv("INF_MIDDLEWARE_CONFIG", "")
    assert Sources().setting("deployment") == ("default", "default")


@pytest.mark.parametrize(
    ("option", "text", "value"),
    [
        ("enforce", "off", False),
        ("include_usage", "1", True),
        ("include_usage", "continuous", "continuous"),
        ("max_in_flight", "none", None),
        ("max_in_flight", "12", 12),
        ("lease_s", "2.5", 2.5),
        ("anonymous", "None", None),
        ("anonymous", "free", "free"),
        ("deployment", "none", "none"),
        ("deployment", "12", "12"),
        ("exempt", "/a, /b,", ["/a", "/b"]),
        ("assumed_output_tokens", '{ "Qwen/*" = 64 }', {"Qwen/*": 64}),
        ("sinks", '{ mine = "jsonl:x" }', {"mine": "jsonl:x"}),
        ("body_bytes_max", "8M", "8M"),
    ],
)
def test_a_variable_is_read_as_what_its_option_takes(option: str, text: str, value: Any) -> None:
    assert value_of_text(option, text) == value


def test_every_option_has_its_variable_and_its_section_unless_only_code_can_give_it() -> None:
    of_code = {option for option in DEFAULTS if is_of_code(option)}
    assert of_code == {"dialects", "on_usage"}
    for option in DEFAULTS:
        environment = {variable_of(option): "x"}
        if option in of_code:
            with pytest.raises(ConfigError, match="in code only"):
                given_by_variables(environment)
        else:
            assert given_by_variables(environment)[option].text == "x"
            assert section_of(option) is not None


def assert_one_line(start: str, step: Callable[[], object]) -> None:
    """Let an error through that is one line and begins with where it was written."""
    try:
        step()
    except ConfigError as error:
        if not str(error).startswith(start) or "\n" in str(error):
            raise AssertionError(str(error)) from error
        raise


TOML_SCALARS = (
    st.just("1979-05-27T07:32:00Z")
    | st.sampled_from(["true", "false"])
    | st.integers(-(2**63), 2**63 - 1).map(str)
    | st.floats().map(lambda number: repr(number).replace("1e", "1.0e"))
    | st.text("ab:/.@{}", max_size=12).map(lambda text: f'"{text}"')
)


def lists_of(items: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.lists(items, max_size=3).map(lambda some: f"[{', '.join(some)}]")


def tables_of(items: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.dictionaries(st.sampled_from(["a", "*", "tier"]), items, max_size=2).map(
        lambda some: "{" + ", ".join(f'"{key}" = {item}' for key, item in some.items()) + "}"
    )


TOML_NESTED = TOML_SCALARS | lists_of(TOML_SCALARS) | tables_of(TOML_SCALARS)
TOML_VALUES = TOML_NESTED | lists_of(TOML_NESTED) | tables_of(TOML_NESTED)


@given(option=st.sampled_from(sorted(DEFAULTS)), value=TOML_VALUES)
def test_whatever_stands_in_a_variable_is_right_or_a_clear_error(option: str, value: str) -> None:
    environment = {variable_of(option): value}
    with pytest.MonkeyPatch.context() as patch:
        for name, text in environment.items():
            patch.setenv(name, text)
        with contextlib.suppress(ConfigError):
            assert_one_line(variable_of(option), lambda: Sources().setting(option))


@given(key=st.sampled_from(["price", "tier", "account"]), field=st.data(), value=TOML_VALUES)
def test_whatever_stands_in_a_table_is_right_or_a_clear_error(
    key: str, field: st.DataObject, value: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rows = {
        "price": {"model": '"m"', "input": '"1"', "output": '"1"'},
        "tier": {
            "name": '"t"',
            "concurrency": "1",
            "requests_per_minute": "1",
            "tokens_per_minute": "1",
        },
        "account": {"id": '"a"', "keys": "[]"},
    }[key]
    more = {
        "price": ["cached_input", "context", "features", "aliases", "scenario", "from"],
        "tier": ["recharged_from", "requests", "tokens", "models"],
        "account": ["tier", "recharged", "suspended", "metadata"],
    }[key]
    name = field.draw(st.sampled_from([*rows, *more]))
    section = key + "s"
    text = f"[[{section}.{key}]]\n" + "".join(
        f"{column} = {cell}\n" for column, cell in {**rows, name: value}.items()
    )
    path = tmp_path_factory.mktemp("t") / "inf.toml"
    path.write_text(text, "utf-8")
    with contextlib.suppress(ConfigError):
        assert_one_line(str(path), lambda: Sources(path).setting(section))


def test_the_line_of_a_key_is_exact_whatever_stands_before_it() -> None:
    text = '# [a]\n[b]\nx = """\n[a]\nk = 1\n"""\n\n# k\n[a]\nlist = [\n  1,\n  2,\n]\nk = 5\n'
    assert line_of(text, ("a", "k")) == 14
    assert line_of(text, ("a", "list")) == 10
    assert line_of(text, ("b", "x")) == 3


@pytest.mark.parametrize(
    ("value", "text"), [(60.0, "60"), (0.25, "0.25"), (3_599.875, "3599.875"), (1e-3, "0.001")]
)
def test_a_time_is_shown_in_full(value: float, text: str) -> None:
    assert shown("lease_s", value) == text


SECRETS = [
    "redis://user:hush@localhost:6379/0",
    "redis://:hu@sh@localhost:6379",
    "redis://:hu/sh@localhost:6379",
    "postgresql://me:hush@db/inf?password=hush",
    "https://me:hush@example.org/hook?token=hush",
    "https://example.org/hook?notify=ops@example.org&token=hush",
    "postgresql://db/inf?password=p@hush",
    "redis://:hush@localhost:port/0?password=p@hush",
]


@pytest.mark.parametrize("uri", SECRETS)
def test_a_password_is_never_shown(uri: str) -> None:
    for text in (
        shown("storage", uri),
        shown("sinks", {"mine": uri}),
        without_credentials(f"storage is {uri!r}; no", uri),
    ):
        assert "hush" not in text
        assert "hu" not in text.replace("hush", "")


def test_two_values_that_differ_are_told_without_their_secrets() -> None:
    uri = "redis://:hush@localhost:6379"
    inner = TierLimiter(MODEL, storage=uri, accounts={"sk-secret": "free"})
    with pytest.raises(ConfigError) as caught:
        Gate(inner, storage=uri.replace("6379", "6380"))
    assert "hush" not in str(caught.value)
    assert "localhost:6380" in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        Gate(inner, accounts={"sk-other": "free"})
    assert "sk-" not in str(caught.value)


def test_the_line_at_start_shows_no_secret(caplog: pytest.LogCaptureFixture) -> None:
    limiter = TierLimiter(
        MODEL,
        storage="redis://:hush@localhost:1",
        accounts={"sk-secret": "free"},
        on_storage_error="admit",
    )
    line = in_force(limiter, caplog)
    assert "storage=redis://…@localhost:1 (TierLimiter)" in line
    assert "hush" not in line
    assert "sk-secret" not in line
