"""The recipe for Ollama: its settings as they are printed, `serve`, and Ollama's own client."""

import hashlib
import re
import subprocess
import sys
from pathlib import Path

import httpx
import ollama
import pytest

from tests.kit import records_of
from tests.processes import Running, wait_until
from tests.proxy.ollama_app import OllamaApp
from tests.servers import serving

COMMAND = str(Path(sys.executable).with_name("inf-middleware"))
PAGE = Path(__file__).parent.parent.parent / "docs" / "recipes" / "ollama.md"
OLLAMA = "http://localhost:11434"


def test_ollama_behind_the_proxy_as_the_recipe_says(tmp_path: Path) -> None:
    (settings,) = re.findall(r"```toml\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    assert OLLAMA in settings
    digest = hashlib.sha256(b"sk-alice").hexdigest()
    (tmp_path / "accounts.toml").write_text(
        f'[[account]]\nid = "alice"\ntier = "Tier1"\nkeys = ["sha256:{digest}"]\n'
    )
    with serving(OllamaApp(), lifespan="off") as url:
        (tmp_path / "inf.toml").write_text(settings.replace(OLLAMA, url))
        checked = subprocess.run(
            [COMMAND, "config", "check", "--config", "inf.toml"], cwd=tmp_path, capture_output=True
        )
        assert checked.returncode == 0, checked.stderr
        command = [COMMAND, "serve", "--config", str(tmp_path / "inf.toml"), "--port", "0"]
        ledger = f"sqlite:///{tmp_path}/inf-ledger.db"
        server = Running(
            [*command, "--ledger", ledger], tmp_path / "out.txt", env={"PYTHONUNBUFFERED": "1"}
        )
        try:
            wait_until(lambda: "Try it" in server.said(), "the proxy's first words", timeout_s=60)
            here = re.findall(r"Listening on (\S+),", server.said())[0]
            ask_as_its_clients_do(here)
        finally:
            server.stop()
    records = records_of(tmp_path / "inf-ledger.db")
    told = [(r["account"], r["input_tokens"], r["output_tokens"], r["basis"]) for r in records]
    assert told[:2] == [("alice", 12, 4, "reported")] * 2
    # What is not forwarded costs nothing.
    assert [record["amount_nano"] for record in records] == [16 * 2_000, 16 * 2_000, 0]


def ask_as_its_clients_do(url: str) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    with ollama.Client(host=url, headers={"Authorization": "Bearer sk-alice"}) as client:
        assert client.chat(model="llama3.2", messages=messages).message.content == "Hello."
        parts = client.chat(model="llama3.2", messages=messages, stream=True)
        assert "".join(part.message.content or "" for part in parts) == "Hello."
        assert client.list().models == []
        # What would change the server is not forwarded, with a key or without one.
        for forbidden in (client.pull, client.delete):
            with pytest.raises(ollama.ResponseError) as refused:
                forbidden("llama3.2")
            assert refused.value.status_code == 404
    assert httpx.delete(f"{url}/api/delete", timeout=60, trust_env=False).status_code == 404
