"""`inf-middleware limits`: an operator sees and frees what keys of a storage cannot tell him."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from inf_middleware import Tier
from inf_middleware.cli import main
from inf_middleware.domain.limits import Admission, Ask
from inf_middleware.stores.redis import RedisStore
from tests.redis_servers import RedisServer, redis_server

TIER = Tier(
    "T",
    4,
    20,
    10_000,
    requests=["500/day", "9000/month"],
    models={"big-*": {"tokens_per_minute": 5_000}},
)


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture
def admit(server: RedisServer, request: pytest.FixtureRequest) -> Any:
    deployment = request.node.name

    async def go(calls: int, model: str) -> list[Admission]:
        store = RedisStore(server.uri, deployment=deployment, timeout_s=5.0)
        held = []
        for number in range(calls):
            answer = await store.admit(
                Ask(f"{model}-{number}", "acme", TIER.groups_for(model), 1_000)
            )
            assert isinstance(answer, Admission)
            held.append(answer)
        await store.aclose()
        return held

    return lambda calls, model="small": asyncio.run(go(calls, model))


@pytest.fixture
def run(server: RedisServer, request: pytest.FixtureRequest) -> Any:
    def run(*words: str) -> Result:
        given = ["--storage", server.uri, "--deployment", request.node.name]
        return CliRunner().invoke(main, ["limits", *words, *given])

    return run


def test_show_tells_what_is_counted_as_a_table(admit: Any, run: Any) -> None:
    admit(2)
    admit(1, "big-1")
    shown = run("show", "acme")
    assert shown.exit_code == 0, shown.output
    lines = [line.split() for line in shown.output.splitlines()]
    assert lines[0] == ["models", "limit", "used", "empty", "in"]
    assert ["all", "models", "in", "progress", "3"] in lines
    assert ["big-*", "in", "progress", "1"] in lines
    found = {tuple(line[:-2]): line[-2] for line in lines if line[-1].endswith("s")}
    assert found["all", "models", "requests", "per", "minute"] == "3"
    assert found["all", "models", "requests", "per", "day"] == "3"
    assert found["all", "models", "requests", "per", "2592000", "s"] == "3"
    assert found["all", "models", "tokens", "per", "minute"] == "2,000"
    assert found["big-*", "tokens", "per", "minute"] == "1,000"


def test_show_tells_records_as_json(admit: Any, run: Any) -> None:
    admit(1)
    (record,) = json.loads(run("show", "acme", "--json").output)
    assert (record["account"], record["model"], record["in_progress"]) == ("acme", None, 1)
    assert {(w["metric"], w["window_s"]): w["used"] for w in record["windows"]} == {
        ("requests", 60.0): 1,
        ("tokens", 60.0): 1_000,
        ("requests", 86_400.0): 1,
        ("requests", 2_592_000.0): 1,
    }


def test_release_frees_the_slots(admit: Any, run: Any) -> None:
    admit(3)
    assert run("release", "acme").output == "3 slots of account acme are free again.\n"
    assert json.loads(run("release", "acme", "--json").output) == {"account": "acme", "released": 0}
    (record,) = json.loads(run("show", "acme", "--json").output)
    assert (record["in_progress"], record["lost_leases"]) == (0, 3)
    # What they reserved is given back: nothing is known to have been used.
    assert {w["metric"]: w["used"] for w in record["windows"]} == {"requests": 3, "tokens": 0}


def test_an_account_of_which_nothing_is_known_is_said(run: Any) -> None:
    shown = run("show", "nob\x1body")
    assert shown.exit_code == 0
    assert "Nothing is counted for account nob\\x1body just now" in shown.output


@pytest.mark.parametrize(
    ("storage", "says"),
    [
        ("memory://", "live in each worker process"),
        ("memcached://localhost:1", "must be memory:// or one of"),
        ("redis://localhost", "write host and port"),
        ("redis://127.0.0.1:1", "the limits' storage failed"),
    ],
)
def test_what_goes_wrong_is_one_line_and_exit_code_2(storage: str, says: str) -> None:
    shown = CliRunner().invoke(main, ["limits", "show", "acme", "--storage", storage])
    assert shown.exit_code == 2
    assert shown.output.count("\n") == 1
    assert says in shown.output


def test_the_storage_is_taken_from_the_settings_file(server: RedisServer, tmp_path: Path) -> None:
    path = tmp_path / "inf.toml"
    path.write_text(f'deployment = "none"\n[storage]\nuri = "{server.uri}"\n')
    shown = CliRunner().invoke(main, ["limits", "show", "acme", "--config", str(path)])
    assert (shown.exit_code, "Nothing is counted" in shown.output) == (0, True)
    path.write_text("[storage]\nurl = 5\n")
    shown = CliRunner().invoke(main, ["limits", "release", "acme", "--config", str(path)])
    assert (shown.exit_code, "line 2: [storage] has no url" in shown.output) == (2, True)


def test_without_a_storage_it_says_how_one_is_given() -> None:
    shown = CliRunner().invoke(main, ["limits", "show", "acme"])
    assert (shown.exit_code, "is given by --storage, or by the settings" in shown.output) == (
        2,
        True,
    )


def test_the_storage_is_taken_from_the_environment(server: RedisServer) -> None:
    environment = {"INF_MIDDLEWARE_STORAGE": server.uri, "INF_MIDDLEWARE_DEPLOYMENT": "none"}
    shown = CliRunner().invoke(main, ["limits", "show", "acme"], env=environment)
    assert shown.exit_code == 0
    assert "Nothing is counted" in shown.output
