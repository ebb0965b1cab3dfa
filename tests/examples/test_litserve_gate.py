"""The recipe for LitServe does what it says, by its own command, in processes of its own."""

import concurrent.futures
from pathlib import Path

from tests.examples.recipes import EXAMPLES, events_of, running, texts_of
from tests.kit import records_of
from tests.redis_servers import redis_server

COMMAND = [str(EXAMPLES / "litserve_gate.py"), "--port", "{port}"]
# What the model tells of one answer, per word.
TOLD = (4, 4, "reported", "complete")


def test_two_api_servers_bill_what_the_model_tells_and_keep_one_limit(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.db"
    with (
        redis_server() as redis,
        running(
            [*COMMAND, "--api-servers", "2"],
            tmp_path,
            ready="/health",
            STORAGE=redis.uri,
            LEDGER=f"sqlite:///{ledger}",
        ) as recipe,
    ):
        whole, stream = (recipe.post("sk-acme", stream=stream) for stream in (False, True))
        assert whole.json()["choices"][0]["message"]["content"] == "Tell me about tea. "
        assert texts_of(stream) == "Tell me about tea. "
        assert events_of(stream)[-1]["usage"]["completion_tokens"] == 4
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            statuses = list(pool.map(lambda _: recipe.post("sk-free").status_code, range(12)))
        assert sorted(set(statuses)) == [200, 429]
        assert statuses.count(200) <= 4  # once, whichever process answers
        assert recipe.preflight().status_code == 200
        assert recipe.post("sk-nobody").status_code == 401
    records = records_of(ledger)
    told = [
        tuple(record[name] for name in ("input_tokens", "output_tokens", "basis", "outcome"))
        for record in records
    ]
    assert told == [TOLD] * (2 + statuses.count(200))
    assert {record["amount_nano"] for record in records} == {80_000}


def test_litserves_own_key_stands_in_the_way_and_the_recipe_says_so(tmp_path: Path) -> None:
    assert "Leave LIT_SERVER_API_KEY unset" in (EXAMPLES / "litserve_gate.py").read_text()
    ledger = tmp_path / "ledger.db"
    with running(
        COMMAND, tmp_path, ready="/health", LIT_SERVER_API_KEY="own", LEDGER=f"sqlite:///{ledger}"
    ) as recipe:
        both = recipe.post("sk-acme", headers={"x-api-key": "own"})
        assert (both.status_code, both.json()["error"]["code"]) == (401, "invalid_api_key")
        refused = recipe.post("sk-acme")
        assert refused.status_code == 401
        assert "authenticated" in refused.text.lower()  # LitServe's own words
    assert [record["amount_nano"] for record in records_of(ledger)] == [0]
