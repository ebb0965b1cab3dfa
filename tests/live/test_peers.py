"""Who connects, as a real server tells it: by TCP, by unix socket, with any bytes for a key."""

import contextlib
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from inf_middleware import Account, Gate
from inf_middleware.accounts.header import HeaderAccounts
from tests.apps import JsonApp, completion, usage_of
from tests.kit import CHAT, Closing, records_of
from tests.servers import serving

ACCOUNTS = {"sk-good": Account("good", recharged="100000")}


def app_of(tmp_path: Path, **options: Any) -> Any:
    model = Closing(JsonApp(completion(usage=usage_of(1, 1))))
    return Gate(model, ledger=f"sqlite:///{tmp_path}/ledger.db", **options)


@contextlib.contextmanager
def serving_unix(app: Any) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:  # a path of a unix socket has 107 bytes at most
        path = f"{folder}/s"
        server = uvicorn.Server(uvicorn.Config(app, uds=path, log_level="warning"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        try:
            deadline = time.monotonic() + 20.0
            while not server.started:
                assert time.monotonic() < deadline, "the server did not start in time"
                time.sleep(0.01)
            yield path
        finally:
            server.should_exit = True
            thread.join(20.0)


def test_a_gateway_on_a_unix_socket_is_trusted_by_name(tmp_path: Path) -> None:
    accounts = HeaderAccounts("x-account", trusted=["unix"], tier="tier5")
    app = app_of(tmp_path, accounts=accounts, trusted_proxies=["unix"])
    headers = {"x-account": "acme", "x-forwarded-for": "198.51.100.7"}
    with serving_unix(app) as path, httpx.Client(transport=httpx.HTTPTransport(uds=path)) as client:
        answered = client.post("http://x/v1/chat/completions", json=CHAT, headers=headers)
        assert answered.status_code == 200, answered.text
        assert client.post("http://x/v1/chat/completions", json=CHAT).status_code == 401
    with serving(app) as url:
        answered = httpx.post(f"{url}/v1/chat/completions", json=CHAT, headers=headers)
        assert answered.status_code == 401
    assert [record["account"] for record in records_of(tmp_path / "ledger.db")] == ["acme"]


RAW = [
    b"\xff\xfe",
    b"sk-\xed\xa0\x80",
    b"k" * 60_000,
    "schlüssel".encode(),
    b"sk-\x00good",
    b"\x07",
]


@pytest.mark.parametrize("http", ["h11", "httptools"])
def test_no_bytes_of_a_key_are_more_than_a_4xx(http: str, tmp_path: Path) -> None:
    app = app_of(tmp_path, accounts=ACCOUNTS)
    with serving(app, http=http) as url:
        host, port = url.removeprefix("http://").split(":")
        for raw in RAW:
            for name in (b"authorization: Bearer ", b"x-api-key: "):
                with socket.create_connection((host, int(port)), 10.0) as client:
                    client.sendall(
                        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n"
                        + name
                        + raw
                        + b"\r\n\r\n{}"
                    )
                    status = client.recv(64).split(b" ")[1]
                # 400 is the server's own, where it refuses the header before we see it.
                assert status in (b"400", b"401"), (raw, status)
        good = httpx.post(
            f"{url}/v1/chat/completions", json=CHAT, headers={"authorization": "Bearer sk-good"}
        )
        assert good.status_code == 200
