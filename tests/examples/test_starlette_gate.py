"""The recipe for Starlette does what it says, by its own command."""

from pathlib import Path

from inf_middleware.tokens.encodings import load_encoding
from tests.examples.recipes import EXAMPLES, MESSAGES, running, texts_of
from tests.kit import records_of

ANSWER = "Tea is served at five."


def test_starlette_json_and_streams_are_counted_billed_and_limited(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.db"
    command = [
        "-m",
        "uvicorn",
        "--app-dir",
        str(EXAMPLES),
        "starlette_gate:app",
        "--port",
        "{port}",
    ]
    with running(command, tmp_path, LEDGER=f"sqlite:///{ledger}") as recipe:
        assert recipe.post("sk-acme").json()["choices"][0]["message"]["content"] == ANSWER
        assert texts_of(recipe.post("sk-acme", stream=True)) == ANSWER
        origin = {"origin": "https://chat.example"}
        answers = [recipe.post("sk-free", headers=origin) for _ in range(5)]
        assert [answer.status_code for answer in answers] == [200] * 4 + [429]
        # A browser may read why.
        assert answers[-1].headers["access-control-allow-origin"] == "https://chat.example"
        assert "retry-after" in answers[-1].headers["access-control-expose-headers"]
        assert recipe.preflight().status_code == 200
    encoding = load_encoding("o200k_base")
    written = len(encoding.encode_ordinary(ANSWER))
    read = len(encoding.encode_ordinary(str(MESSAGES[0]["content"])))
    records = records_of(ledger)
    assert [record["output_tokens"] for record in records] == [written] * 6
    assert all(record["input_tokens"] >= read for record in records)
    assert {record["basis"] for record in records} == {"counted"}
