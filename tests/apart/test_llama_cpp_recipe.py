"""The recipe for llama-cpp-python does what it says, by its own command. `make recipes`."""

import hashlib
from pathlib import Path

from tests.apart.tiny_gguf import make_gguf
from tests.examples.recipes import EXAMPLES, events_of, running, texts_of
from tests.kit import records_of


def test_the_server_with_its_settings_is_metered_limited_and_billed(tmp_path: Path) -> None:
    digest = hashlib.sha256(b"sk-acme").hexdigest()
    (tmp_path / "inf.toml").write_text(
        f'[[accounts.account]]\nid = "acme"\nkeys = ["sha256:{digest}"]\n'
        f'[ledger]\nuri = "sqlite:///{tmp_path}/ledger.db"\n[prices]\nserves = ["tiny"]\n'
    )
    command = ["-m", "uvicorn", "--app-dir", str(EXAMPLES), "llama_cpp_gate:app"]
    settings = {
        "MODEL": str(make_gguf(tmp_path / "tiny.gguf")),
        "MODEL_ALIAS": "tiny",
        "INF_MIDDLEWARE_CONFIG": str(tmp_path / "inf.toml"),
    }
    with running([*command, "--port", "{port}"], tmp_path, **settings) as recipe:
        origin = {"origin": "https://chat.example"}
        whole = recipe.post("sk-acme", model="tiny", max_tokens=8)
        stream = recipe.post("sk-acme", model="tiny", max_tokens=8, stream=True)
        assert recipe.preflight().status_code == 200
        unknown = recipe.post("sk-none", model="tiny", headers=origin)
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (401, "invalid_api_key")
        # A browser may read why.
        assert unknown.headers["access-control-allow-origin"] in ("*", origin["origin"])
        # It answers to any name: the gate does not.
        assert recipe.post("sk-acme", model="other").json()["error"]["code"] == "model_not_found"
        rest = [recipe.post("sk-acme", model="tiny", max_tokens=1).status_code for _ in range(3)]
        assert rest == [200, 200, 429]
    told = whole.json()["usage"]
    json_record, stream_record, *others = records_of(tmp_path / "ledger.db")
    assert json_record["basis"] == "reported"
    assert json_record["input_tokens"] == told["prompt_tokens"]
    assert json_record["output_tokens"] == told["completion_tokens"]
    assert all("usage" not in event for event in events_of(stream))
    assert stream_record["basis"] == "counted"
    assert stream_record["input_tokens"] > 0
    assert (stream_record["output_tokens"] > 0) is bool(texts_of(stream))
    assert len(others) == 2
