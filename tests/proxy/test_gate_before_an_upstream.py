"""Limits and bills before an upstream, as they are inside the app; real clients through it."""

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ollama
import openai
import pytest

import inf_middleware.proxy
from inf_middleware import Account, ConfigError, Gate, Tier
from inf_middleware.proxy import Proxy, app_from
from inf_middleware.upstream import Upstream as Settings
from tests.apps import Asking, JsonApp, completion, usage_of
from tests.kit import CHAT, STREAM, records_of
from tests.proxy.ollama_app import OllamaApp
from tests.proxy.upstreams import Broken, connected, parted, raw, request, upstream
from tests.servers import serving

ACCOUNTS = {
    "sk-one": Account("acme", tier="Tier5"),
    "sk-two": Account("two", tier=Tier("Two", 2, 100, 100_000)),
    "sk-three": Account("three", tier=Tier("Three", 10, 3, 100_000)),
}
SAME = (
    "account",
    "tier",
    "key_id",
    "endpoint",
    "model",
    "response_model",
    "response_id",
    "input_tokens",
    "output_tokens",
    "basis",
    "lines",
    "amount_nano",
    "outcome",
)
MESSAGES: Any = [{"role": "user", "content": "Hi"}]


def key(name: str) -> tuple[str, ...]:
    return (f"authorization: Bearer {name}",)


def gate(app: Any, ledger: Path) -> Gate:
    return Gate(app, accounts=ACCOUNTS, ledger=f"sqlite:///{ledger}")


class Served:
    """The same upstream twice: with the gate inside of it, and behind the proxy."""

    def __init__(self, tmp_path: Path, app: Any) -> None:
        self.inside = tmp_path / "inside.db"
        self.before = tmp_path / "before.db"
        self.app = app
        self.urls: list[str] = []

    def ask(self, body: bytes, path: str = "/v1/chat/completions") -> list[Any]:
        """Ask both; return what came back, status and body."""
        answered = []
        with serving(gate(self.app, self.inside), lifespan="off") as url:
            answered.append(parted(raw(url, path, body, headers=key("sk-one"))))
        with serving(self.app, lifespan="off") as url:
            proxy = gate(Proxy(Settings(url=url)), self.before)
            with serving(proxy) as proxied:
                answered.append(parted(raw(proxied, path, body, headers=key("sk-one"))))
        return [(status, body) for status, _, body in answered]

    def bills(self) -> list[dict[str, Any]]:
        return [
            {name: record[name] for name in SAME if name in record}
            for path in (self.inside, self.before)
            for record in records_of(path)
        ]


@pytest.mark.parametrize(
    ("app", "asked"),
    [
        (JsonApp(completion("Hello there.", usage=usage_of(7, 3))), CHAT),
        (JsonApp(completion("Hello there.")), CHAT),
        (JsonApp({"error": {"message": "no"}}, status=500), CHAT),
        (Asking(["Hel", "lo", "."]), STREAM),
    ],
    ids=["reported", "counted", "failed", "stream"],
)
def test_bytes_and_bills_are_those_of_the_gate_inside_the_app(
    app: Any, asked: dict[str, Any], tmp_path: Path
) -> None:
    served = Served(tmp_path, app)
    inside, before = served.ask(json.dumps(asked).encode())
    assert inside == before
    one, other = served.bills()
    assert one == other
    assert one["account"] == "acme"


def test_a_client_that_leaves_is_billed_what_was_produced(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.db"
    with upstream() as (app, url), serving(gate(Proxy(Settings(url=url)), ledger)) as proxied:
        body = json.dumps(STREAM).encode()
        with connected(proxied) as client:
            client.sendall(request("/endless", body, headers=key("sk-one")))
            got = b""
            while got.count(b"word") < 5:
                got += client.recv(4096)
        assert app.stopped.wait(20)
        deadline = time.monotonic() + 20
        while not (ledger.exists() and records_of(ledger)):
            assert time.monotonic() < deadline, "no record was made"
            time.sleep(0.02)
    (left,) = records_of(ledger)
    assert left["outcome"] == "client_disconnect"


def test_an_upstream_that_is_down_costs_nothing(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.db"
    with serving(gate(Proxy(Settings(url="http://127.0.0.1:9")), ledger)) as proxied:
        answer = raw(
            proxied, "/v1/chat/completions", json.dumps(CHAT).encode(), headers=key("sk-one")
        )
    status, headers, body = parted(answer)
    assert status == 502
    assert json.loads(body)["error"]["code"] == "upstream_unavailable"
    names = [name for name, _ in headers]
    assert names.count(b"request-id") == names.count(b"x-request-id") == 1
    (record,) = records_of(ledger)
    assert (record["amount_nano"], record["outcome"]) == (0, "upstream_error")
    assert record["request_id"].encode() == dict(headers)[b"request-id"]


def test_an_upstream_that_dies_in_a_stream_is_billed_what_was_produced(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.db"
    event = b'data: {"choices":[{"index":0,"delta":{"content":"Hello"}}]}\n\n'
    said = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 999\r\n\r\n"
    with (
        Broken(said + event) as broken,
        serving(gate(Proxy(Settings(url=broken.url)), ledger)) as proxied,
    ):
        body = json.dumps(STREAM).encode()
        answer = raw(proxied, "/v1/chat/completions", body, headers=key("sk-one"))
    assert event in answer
    assert not answer.endswith(b"0\r\n\r\n")
    (record,) = records_of(ledger)
    assert (record["outcome"], record["basis"]) == ("upstream_error", "counted")
    assert record["output_tokens"] == 1


def test_concurrency_and_requests_are_limited_before_the_upstream(tmp_path: Path) -> None:
    body = json.dumps(STREAM).encode()
    with (
        upstream() as (app, url),
        serving(gate(Proxy(Settings(url=url)), tmp_path / "ledger.db")) as proxied,
    ):

        def held(_: int) -> tuple[int, Any, bytes]:
            return parted(raw(proxied, "/held", body, headers=key("sk-two")))

        with ThreadPoolExecutor(6) as pool:
            answers = [pool.submit(held, number) for number in range(6)]
            deadline = time.monotonic() + 20
            while sum(answer.done() for answer in answers) < 4:
                assert time.monotonic() < deadline, "nobody was refused"
                time.sleep(0.01)
            app.go_on.set()
            told = sorted(answer.result()[0] for answer in answers)
        assert told == [200] * 2 + [429] * 4
        chat = json.dumps(CHAT).encode()
        told = [
            parted(raw(proxied, "/v1/chat/completions", chat, headers=key("sk-three")))[0]
            for _ in range(5)
        ]
        assert told == [200] * 3 + [429] * 2
        assert len(app.seen) == 5, "what is refused is not forwarded"


@pytest.mark.parametrize("method", ["post", "Post", "POST"])
def test_a_method_is_metered_however_it_is_written(method: str, tmp_path: Path) -> None:
    app = JsonApp(completion("Hi", usage=usage_of(5, 2)))
    with serving(app, lifespan="off") as url:
        proxy = gate(Proxy(Settings(url=url)), tmp_path / "ledger.db")
        with serving(proxy, http="h11") as served:
            body = json.dumps(CHAT).encode()
            length = f"content-length: {len(body)}"
            for keys, status in (((), 401), (key("sk-one"), 200)):
                headers = (length, *keys) if method != "POST" else keys
                answer = raw(served, "/v1/chat/completions", body, method=method, headers=headers)
                assert parted(answer)[0] == status
    assert [record["output_tokens"] for record in records_of(tmp_path / "ledger.db")] == [2]


def test_openai_through_the_proxy(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.db"
    with (
        serving(Asking(["Hel", "lo", "."]), lifespan="off") as url,
        serving(gate(Proxy(Settings(url=url)), ledger)) as proxied,
        openai.OpenAI(base_url=f"{proxied}/v1", api_key="sk-one", max_retries=0) as client,
    ):
        stream = client.chat.completions.create(model="inf-chat-v1", messages=MESSAGES, stream=True)
        texts = [chunk.choices[0].delta.content for chunk in stream]
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key="sk-none").chat.completions.create(
                model="inf-chat-v1", messages=MESSAGES
            )
    assert "".join(text or "" for text in texts) == "Hello."
    (record,) = records_of(ledger)
    assert (record["input_tokens"], record["output_tokens"], record["basis"]) == (7, 3, "reported")


@pytest.fixture
def ollama_app() -> Iterator[str]:
    with serving(OllamaApp(), lifespan="off") as url:
        yield url


def test_ollamas_client_through_the_proxy(ollama_app: str, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.db"
    with serving(gate(Proxy(Settings(url=ollama_app)), ledger)) as proxied:
        with ollama.Client(host=proxied, headers={"authorization": "Bearer sk-one"}) as client:
            at_once = client.chat(model="llama3", messages=MESSAGES)
            parts = list(client.chat(model="llama3", messages=MESSAGES, stream=True))
            assert client.list().models == []
        with (
            ollama.Client(host=proxied) as unknown,
            pytest.raises(ollama.ResponseError) as refused,
        ):
            unknown.chat(model="llama3", messages=MESSAGES)
    assert refused.value.status_code == 401
    assert at_once.message.content == "Hello."
    assert "".join(part.message.content or "" for part in parts) == "Hello."
    told = [(r["input_tokens"], r["output_tokens"], r["basis"]) for r in records_of(ledger)]
    assert told == [(12, 4, "reported")] * 2


def test_the_app_is_built_from_the_environment(
    ollama_app: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INF_MIDDLEWARE_UPSTREAM", ollama_app)
    app = inf_middleware.proxy.app
    assert inf_middleware.proxy.app is app
    with serving(app) as proxied:
        body = json.dumps({"model": "llama3", "messages": MESSAGES}).encode()
        assert parted(raw(proxied, "/api/chat", body))[0] == 200
    (record,) = records_of(tmp_path / "inf-ledger.db")
    assert record["tier"] == "Free"


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("", "there is no upstream"),
        ("[upstream]\n", "[upstream] lacks url"),
        ('upstream = "http://x"', "upstream is no section: write [upstream]"),
        ('[upstream]\nurl = "localhost:8000"', "must be a URL such as http://localhost:8000"),
        ('[upstream]\nurl = "ftp://x"', "must be a URL"),
        ('[upstream]\nurl = "http://u:p@x"', "…@x"),
        ('[upstream]\nurl = "http://x:99999"', "must be a URL"),
        ('[upstream]\nurl = "http://x/?q"', "without user, query"),
        ('[upstream]\nurl = "http://x?"', "without user, query"),
        ("[upstream]\nurl = 5", "must be a URL"),
        ('[upstream]\nurl = "http://x"\nports = 1', "unknown ports"),
        ('[upstream]\nurl = "http://x"\npaths = "/v1/*"', "write a list"),
        ('[upstream]\nurl = "http://x"\npaths = 5', "write a list"),
        ('[upstream]\nurl = "http://x"\npaths = ["v1"]', 'write "/v1"'),
        ('[upstream]\nurl = "http://x"\nfirst_byte_timeout_s = 0', "a number of seconds above 0"),
        ('[upstream]\nurl = "http://x"\nchunk_timeout_s = "1"', "a number of seconds above 0"),
        ('[upstream]\nurl = "http://x"\nkey_file = "none.txt"', "cannot be read"),
        ("[upstream", "inf.toml"),
        ('acounts = "x.toml"\n[upstream]\nurl = "http://x"', "did you mean accounts?"),
    ],
)
def test_what_cannot_hold_is_said_at_once(
    written: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "inf.toml"
    config.write_text(written)
    monkeypatch.setenv("INF_MIDDLEWARE_CONFIG", str(config))
    with pytest.raises(ConfigError) as refused:
        app_from()
    assert told in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1
    assert "u:p" not in str(refused.value)


def test_no_thread_is_started_and_nothing_opened_at_construction(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("INF_MIDDLEWARE_UPSTREAM", "http://127.0.0.1:9")
    before = threading.active_count()
    app_from()
    assert threading.active_count() == before
