"""An upstream that is down, slow, or breaks off; a client that leaves; what is never forwarded."""

import contextlib
import json
import select
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from inf_middleware.proxy import UNMETERED_MAX, Proxy
from inf_middleware.upstream import Upstream as Settings
from tests.driver import Answered, post, scope_of
from tests.kit import CHAT, House
from tests.processes import free_ports
from tests.proxy.upstreams import Broken, connected, parted, raw, request, upstream
from tests.servers import serving

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def proxied(url: str, path: str, http: str = "h11", **settings: Any) -> bytes:
    with serving(Proxy(Settings(url=url, **settings)), http=http) as proxy:
        return raw(proxy, path, b"{}")


@pytest.mark.parametrize(
    ("path", "form"),
    [
        ("/v1/chat/completions", lambda body: body["error"]["code"] == "upstream_unavailable"),
        ("/v1/messages", lambda body: body["error"]["type"] == "api_error"),
        ("/api/chat", lambda body: "cannot be reached" in str(body["error"])),
    ],
)
def test_an_upstream_that_is_down_is_a_502_in_the_dialect(
    path: str, form: Callable[[Any], bool]
) -> None:
    (port,) = free_ports(1)
    status, headers, body = parted(proxied(f"http://127.0.0.1:{port}", path))
    assert status == 502
    assert form(json.loads(body))
    assert dict(headers)[b"x-request-id"]
    assert str(port).encode() not in body  # where it is, is nobody's business


def test_an_upstream_that_does_not_answer_in_time_is_a_504() -> None:
    with upstream() as (app, url):
        status, _, body = parted(proxied(url, "/thinking", first_byte_timeout_s=0.1))
        assert app.stopped.wait(20), "the upstream works on for nobody"
    assert status == 504
    assert json.loads(body)["error"]["code"] == "upstream_timeout"


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200", b"what?\r\n\r\n"])
def test_an_upstream_that_breaks_off_before_its_answer_is_a_502(said: bytes) -> None:
    with Broken(said) as broken:
        status, _, body = parted(proxied(broken.url, "/v1/chat/completions"))
    assert status == 502
    assert json.loads(body)["error"]["code"] == "upstream_error"


@pytest.mark.parametrize("http", ["h11", "httptools"])
@pytest.mark.parametrize(
    ("said", "produced"),
    [
        (HEAD + b"9\r\ndata: 1\n\n\r\n", b"data: 1\n\n"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nsome", b"some"),
    ],
)
def test_an_answer_that_breaks_off_breaks_off_for_the_client_too(
    said: bytes, produced: bytes, http: str
) -> None:
    with Broken(said) as broken:
        answer = proxied(broken.url, "/v1/chat/completions", http)
    assert produced in answer
    assert not answer.endswith(b"0\r\n\r\n"), "it looks whole, and is not"
    assert parted(answer)[2] == produced


def test_a_stream_without_a_next_piece_in_time_breaks_off() -> None:
    with upstream() as (_, url):
        answer = proxied(url, "/held", chunk_timeout_s=0.1)
    assert b"first" in answer
    assert not answer.endswith(b"0\r\n\r\n")


def test_an_upstream_that_does_not_read_a_body_is_a_504() -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:  # accepts, and reads nothing
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        proxy = Proxy(Settings(url=url, write_timeout_s=0.3))
        with serving(proxy) as served, connected(served) as client:
            head = request("/upload", headers=("content-length: 100000000",), method="PUT")
            client.sendall(head)
            with contextlib.suppress(OSError):  # it is answered, and cut off, meanwhile
                while not select.select([client], [], [], 0)[0]:
                    client.send(bytes(65536))
            assert parted(client.recv(65536))[0] == 504


def test_trailers_are_left_out() -> None:
    said = HEAD.replace(b"\r\n\r\n", b"\r\ntrailer: x-sum\r\n\r\n")
    with Broken(said + b"2\r\nhi\r\n0\r\nx-sum: 1\r\n\r\n") as broken:
        status, headers, body = parted(proxied(broken.url, "/v1/chat/completions"))
    assert (status, body) == (200, b"hi")
    assert b"trailer" not in dict(headers)


def test_an_answer_that_ends_with_its_connection_is_whole() -> None:
    with Broken(b"HTTP/1.0 200 OK\r\ncontent-type: text/plain\r\n\r\nall of it") as broken:
        assert parted(proxied(broken.url, "/x"))[2] == b"all of it"


def test_a_protocol_that_nobody_asked_for_is_a_502() -> None:
    said = b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n"
    with Broken(said) as broken:
        assert parted(proxied(broken.url, "/x"))[0] == 502


@pytest.mark.parametrize("http", ["h11", "httptools"])
@pytest.mark.parametrize("path", ["/endless", "/thinking"])
def test_a_client_that_leaves_stops_the_upstream(path: str, http: str) -> None:
    with (
        upstream(http) as (app, url),
        serving(Proxy(Settings(url=url)), http=http) as proxy,
    ):
        with connected(proxy) as client:
            client.sendall(request(path, b"{}"))
            if path == "/endless":
                assert b"200" in client.recv(4096)
            else:
                assert app.begun.wait(20)
        assert app.stopped.wait(20), "the upstream works on for nobody"
        # The proxy itself goes on as before.
        assert parted(raw(proxy, "/v1/chat/completions", b"{}"))[0] == 200


def test_a_client_that_leaves_amid_its_request_stops_the_upstream() -> None:
    with upstream() as (app, url), serving(Proxy(Settings(url=url))) as proxy:
        with connected(proxy) as client:
            client.sendall(request("/echo", b"a" * 1000)[:-10])
            assert app.begun.wait(20)
        assert parted(raw(proxy, "/v1/chat/completions", b"{}"))[0] == 200


class Later:
    """An app that is told later what it is."""

    def __init__(self) -> None:
        self.app: Any = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await self.app.aclose()
            await send({"type": "lifespan.shutdown.complete"})
        else:
            await self.app(scope, receive, send)


def test_a_proxy_before_itself_says_so() -> None:
    later = Later()
    with serving(later) as url:
        later.app = Proxy(Settings(url=url))
        status, _, body = parted(raw(url, "/v1/chat/completions", b"{}"))
    assert status == 502
    assert b"leads back to the proxy itself" in body


def test_only_the_paths_that_are_given_are_forwarded() -> None:
    with upstream() as (app, url):
        proxy = Proxy(Settings(url=url, paths=("/api/chat", "/v1/*")))
        with serving(proxy) as served:
            for path, status in (
                ("/api/chat", 200),
                ("/v1/models", 200),
                ("/api/delete", 404),
                ("/v1/../api/delete", 404),
                ("/v1/%2e%2e/api/delete", 404),
                ("/v1/..%2Fapi/delete", 404),
                ("/api/chat/", 404),
            ):
                assert parted(raw(served, path, b"{}"))[0] == status, path
        assert [seen["target"] for seen in app.seen] == [b"/api/chat", b"/v1/models"]


@pytest.mark.parametrize("http", ["h11", "httptools"])
def test_a_fragment_behind_a_path_is_not_forwarded(http: str) -> None:
    with upstream() as (app, url), serving(Proxy(Settings(url=url)), http=http) as served:
        status = parted(raw(served, "/v1/chat/completions#x", b"{}"))[0]
        # httptools takes it off itself, before anybody sees it.
        assert status == (200 if http == "httptools" else 400)
        assert [seen["target"] for seen in app.seen] == [b"/v1/chat/completions"] * (status == 200)


@pytest.mark.parametrize("target", ["http://other.example/v1/chat/completions", "v1/models"])
def test_a_client_names_no_other_server_and_no_other_place_of_the_upstream(target: str) -> None:
    with upstream() as (app, url):
        proxy = Proxy(Settings(url=f"{url}/llm"))
        with serving(proxy, http="h11") as served:  # httptools takes it off itself, or refuses
            status, _, body = parted(raw(served, target, b"{}"))
    assert (status, json.loads(body)["error"]["code"]) == (400, "invalid_request")
    assert not app.seen


@pytest.mark.anyio
@pytest.mark.parametrize("declared", ["1", "5"])
async def test_a_body_of_another_length_than_its_own_is_a_400(declared: str) -> None:
    """As servers make of a body whose request asks for an upgrade, too."""
    with upstream() as (_, url):
        proxy = Proxy(Settings(url=url))
        scope = scope_of(headers=[("content-length", declared)])
        answered = await post(lambda _, *ways: proxy(scope, *ways), b"{}")
        await proxy.aclose()
    assert (answered.status, answered.json["error"]["code"]) == (400, "invalid_request")


def test_paths_are_compared_without_the_root_that_the_proxy_is_under() -> None:
    with upstream() as (app, url):
        proxy = Proxy(Settings(url=url, paths=("/v1/*",)))
        with serving(proxy, root_path="/llm") as served:
            for path, status in (("/v1/models", 200), ("/api/delete", 404)):
                assert parted(raw(served, path, b"{}"))[0] == status, path
        assert [seen["target"] for seen in app.seen] == [b"/v1/models"]


@pytest.mark.parametrize("http", ["h11", "httptools"])
def test_a_length_that_a_transfer_coding_overrules_is_not_passed_on(http: str) -> None:
    said = HEAD.replace(b"\r\n\r\n", b"\r\ncontent-length: 3\r\n\r\n")
    with Broken(said + b"5\r\nhello\r\n0\r\n\r\n") as broken:
        assert parted(proxied(broken.url, "/x", http))[2] == b"hello"


def test_the_path_of_the_upstream_comes_first_and_its_key_is_sent() -> None:
    with upstream() as (app, url):
        proxy = Proxy(Settings(url=f"{url}/compatible-mode/", key="up-secret"))
        with serving(proxy) as served:
            raw(served, "/v1/chat/completions?a=b", b"{}", headers=("authorization: Bearer sk-1",))
        assert app.seen[-1]["target"] == b"/compatible-mode/v1/chat/completions"
        assert app.header(b"authorization") == b"Bearer up-secret"
        assert "up-secret" not in repr(proxy.upstream)


@pytest.mark.anyio
async def test_a_websocket_is_refused_as_by_the_guard() -> None:
    sent = []

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {**scope_of(), "type": "websocket"}
    await Proxy(Settings(url="http://127.0.0.1:9"))(scope, receive, send)
    assert sent == [{"type": "websocket.close", "code": 1008}]


@pytest.mark.anyio
async def test_tunnels_are_not_opened() -> None:
    answered: Answered = await post(
        Proxy(Settings(url="http://127.0.0.1:9")), b"", method="CONNECT"
    )
    assert answered.status == 405


@pytest.mark.anyio
async def test_requests_that_nobody_pays_for_leave_room_for_those_that_are_paid_for(
    tmp_path: Path,
) -> None:
    async def never(*_: Any) -> Any:
        await anyio.sleep_forever()

    with upstream() as (_, url):
        proxy = Proxy(Settings(url=url))
        house = House(proxy, tmp_path)
        free = {"path": "/v1/models", "method": "GET"}
        async with anyio.create_task_group() as tasks:
            for _ in range(UNMETERED_MAX):
                tasks.start_soon(house.app, scope_of(**free), never, never)
            await anyio.wait_all_tasks_blocked()
            refused = await post(house.app, b"", **free)
            assert (refused.status, refused.json["error"]["code"]) == (503, "server_busy")
            assert (refused.headers["retry-after"], refused.headers["retry-after-ms"]) == (
                "1",
                "1000",
            )
            assert (await post(house.app, CHAT, key="sk-one")).status == 200
            tasks.cancel_scope.cancel()
        assert (await post(house.app, b"", **free)).status == 200
        await proxy.aclose()
        await house.close()


@pytest.mark.anyio
async def test_connections_are_kept_and_closed_at_shutdown() -> None:
    with upstream() as (app, url):
        proxy = Proxy(Settings(url=url))
        for _ in range(3):
            assert (await post(proxy, b"{}")).status == 200
        await proxy.aclose()
        assert (await post(proxy, b"{}")).status == 200, "it opens anew"
        await proxy.aclose()
    first, second, third, fourth = (seen["client"] for seen in app.seen)
    assert first == second == third != fourth
