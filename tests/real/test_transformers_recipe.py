"""The recipe for `transformers serve` does what it says, by its own command. `make real`."""

import hashlib
from pathlib import Path

from tests.examples.recipes import EXAMPLES, events_of, running
from tests.kit import records_of
from tests.real.tiny_model import make_model


def test_the_command_with_its_options_is_metered_limited_and_billed(tmp_path: Path) -> None:
    model = make_model(tmp_path / "tiny")
    digest = hashlib.sha256(b"sk-acme").hexdigest()
    (tmp_path / "inf.toml").write_text(
        f'[[accounts.account]]\nid = "acme"\nkeys = ["sha256:{digest}"]\n'
        f'[ledger]\nuri = "sqlite:///{tmp_path}/ledger.db"\n'
    )
    command = [str(EXAMPLES / "transformers_gate.py"), "serve", model, "--enable-cors"]
    command += ["--host", "127.0.0.1", "--port", "{port}", "--device", "cpu"]
    config = str(tmp_path / "inf.toml")
    with running(command, tmp_path, ready="/health", INF_MIDDLEWARE_CONFIG=config) as recipe:
        origin = {"origin": "https://chat.example"}
        whole = recipe.post("sk-acme", model=model, max_tokens=8)
        stream = recipe.post("sk-acme", model=model, max_tokens=8, stream=True)
        assert recipe.preflight().status_code == 200
        unknown = recipe.post("sk-none", headers=origin)
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (401, "invalid_api_key")
        assert unknown.headers["access-control-allow-origin"] == "*"  # a browser may read why
        rest = [recipe.post("sk-acme", model=model, max_tokens=1).status_code for _ in range(3)]
        assert rest == [200, 200, 429]
    reported = [answer["usage"] for answer in (whole.json(), events_of(stream)[-1])]
    records = records_of(tmp_path / "ledger.db")
    assert [(r["input_tokens"], r["output_tokens"], r["basis"]) for r in records[:2]] == [
        (told["prompt_tokens"], told["completion_tokens"], "reported") for told in reported
    ]
    assert len(records) == 4
