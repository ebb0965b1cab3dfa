"""An upstream behind TLS with an authority of its own: believed by `ca_file` alone, by its name."""

import json
import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from inf_middleware.proxy import Proxy
from inf_middleware.upstream import Upstream as Settings
from tests.proxy.upstreams import ANSWER, Upstream, parted, raw
from tests.servers import serving


class Tls:
    """An upstream whose certificate is for `localhost` alone, and the names it was asked by."""

    def __init__(self, folder: Path) -> None:
        self.app = Upstream()
        self.names: list[str | None] = []
        self.ca = folder / "ca.pem"
        self._key = folder / "key.pem"
        command = ["openssl", "req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
        command += ["-newkey", "rsa:2048", "-addext", "subjectAltName=DNS:localhost"]
        command += ["-keyout", str(self._key), "-out", str(self.ca)]
        subprocess.run(command, check=True, capture_output=True)

    def context(self, _: Any, make: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.ca, self._key)
        context.sni_callback = lambda _socket, name, _context: self.names.append(name)
        return context


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Tls, str]]:
    server = Tls(tmp_path_factory.mktemp("tls"))
    with serving(
        server.app, lifespan="off", proxy_headers=False, ssl_context_factory=server.context
    ) as url:
        yield server, url.rpartition(":")[2]


def asked(url: str, ca: Path | None) -> tuple[int, bytes]:
    settings = Settings(url=url, ca_file=None if ca is None else str(ca))
    with serving(Proxy(settings)) as proxy:
        status, _, body = parted(raw(proxy, "/v1/chat/completions", b"{}"))
    return status, body


def test_its_authority_is_believed_and_it_is_asked_by_its_name(tls: tuple[Tls, str]) -> None:
    server, port = tls
    assert asked(f"https://localhost:{port}", server.ca) == (200, ANSWER)
    assert server.names[-1] == "localhost"
    assert server.app.header(b"host") == f"localhost:{port}".encode()


def test_a_scheme_is_https_in_any_letters_and_no_authority_is_read_for_another(
    tls: tuple[Tls, str],
) -> None:
    server, port = tls
    assert asked(f"HTTPS://localhost:{port}", server.ca) == (200, ANSWER)
    assert asked(f"HTTPS://localhost:{port}", None)[0] == 502
    assert Settings(url=f"HTTPS://localhost:{port}").verification() is True
    assert Settings(url=f"http://localhost:{port}").verification() is False


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_an_unknown_authority_or_another_name_is_not_asked_at_all(
    host: str, tls: tuple[Tls, str]
) -> None:
    server, port = tls
    seen = len(server.app.seen)
    ca = None if host == "localhost" else server.ca  # whose certificate has no such address
    status, body = asked(f"https://{host}:{port}", ca)
    assert (status, json.loads(body)["error"]["code"]) == (502, "upstream_unavailable")
    assert len(server.app.seen) == seen
