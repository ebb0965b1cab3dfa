"""What goes through the proxy: the very bytes, each at once, and the headers of one hop only."""

import json
from collections.abc import Iterator

import pytest

from inf_middleware.proxy import Proxy
from inf_middleware.upstream import Upstream as Settings
from tests.apps import event
from tests.proxy.upstreams import (
    ANSWER,
    MEGABYTE,
    SSE,
    Upstream,
    connected,
    parted,
    raw,
    request,
    upstream,
)
from tests.servers import serving

# Set by servers, or ours to set: not compared.
HOP = {b"date", b"server", b"connection", b"transfer-encoding"}


class Pair:
    def __init__(self, app: Upstream, direct: str, proxied: str) -> None:
        self.app = app
        self.direct = direct
        self.proxied = proxied


@pytest.fixture(scope="module", params=["h11", "httptools"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    with upstream(request.param) as (app, url):
        proxy = Proxy(Settings(url=url))
        with serving(proxy, http=request.param, proxy_headers=False) as proxied:
            yield Pair(app, url, proxied)


def same_both_ways(pair: Pair, path: str, body: bytes = b"", **how: object) -> bytes:
    direct = parted(raw(pair.direct, path, body, **how))  # type: ignore[arg-type]
    proxied = parted(raw(pair.proxied, path, body, **how))  # type: ignore[arg-type]
    assert proxied[0] == direct[0]
    assert proxied[2] == direct[2]
    assert [h for h in proxied[1] if h[0] not in HOP] == [h for h in direct[1] if h[0] not in HOP]
    return proxied[2]


def test_json_is_the_same_with_and_without_the_proxy(pair: Pair) -> None:
    assert same_both_ways(pair, "/v1/chat/completions", b"{}") == ANSWER


@pytest.mark.parametrize("cut", [1, 2, 7, 64, 10_000])
def test_sse_is_the_same_in_any_cut(pair: Pair, cut: int) -> None:
    assert same_both_ways(pair, "/cuts", json.dumps({"cut": cut}).encode()) == SSE


def test_a_compressed_answer_stays_as_it_is(pair: Pair) -> None:
    body = same_both_ways(pair, "/gzip", b"{}", headers=("accept-encoding: gzip",))
    assert body.startswith(b"\x1f\x8b")
    assert pair.app.header(b"accept-encoding") == b"gzip"


def test_no_coding_is_asked_for_that_the_client_did_not_ask_for(pair: Pair) -> None:
    raw(pair.proxied, "/echo", b"x")
    names = {name for name, _ in pair.app.seen[-1]["headers"]}
    assert not names & {b"accept-encoding", b"accept", b"user-agent", b"cookie"}


@pytest.mark.parametrize("chunks", [0, 1, 50])
def test_a_megabyte_goes_there_and_back(pair: Pair, chunks: int) -> None:
    binary = ("content-type: application/octet-stream",)
    assert same_both_ways(pair, "/echo", MEGABYTE, headers=binary, chunks=chunks) == MEGABYTE
    assert same_both_ways(pair, "/large", b"") == MEGABYTE


def test_other_methods_pass(pair: Pair) -> None:
    for method in ("GET", "OPTIONS", "DELETE", "PATCH"):
        same_both_ways(pair, "/v1/models", method=method)
        assert pair.app.seen[-1]["method"] == method
    assert same_both_ways(pair, "/v1/models", method="HEAD") == b""


def test_answers_without_a_body_and_redirects_are_not_touched(pair: Pair) -> None:
    same_both_ways(pair, "/unchanged", method="GET")
    same_both_ways(pair, "/redirect", b"{}")
    assert pair.app.seen[-1]["target"] == b"/redirect"


def test_the_path_and_query_arrive_as_they_were_written(pair: Pair) -> None:
    raw(pair.proxied, "/a%2Fb/../c%20d/echo?x=%26&y=1+2&z", b"")
    seen = pair.app.seen[-1]
    assert seen["target"] == b"/a%2Fb/../c%20d/echo"
    assert seen["query"] == b"x=%26&y=1+2&z"


def test_headers_of_a_hop_stay_on_it(pair: Pair) -> None:
    status, headers, _ = parted(
        raw(
            pair.proxied,
            "/hops",
            b"{}",
            headers=(
                "connection: close, X-Mine",
                "x-mine: 1",
                "te: trailers",
                "keep-alive: 1",
                "proxy-authorization: secret",
                "upgrade: h2c",
                "expect: 100-continue",
                "x-own: kept",
            ),
        ).split(b"HTTP/1.1 100 Continue\r\n\r\n")[-1]
    )
    assert status == 200
    there = dict(pair.app.seen[-1]["headers"])
    gone = {b"x-mine", b"te", b"keep-alive", b"proxy-authorization", b"upgrade", b"expect"}
    assert not gone & there.keys()
    assert there[b"x-own"] == b"kept"
    names = [name for name, _ in headers]
    assert b"x-of-this-hop" not in names
    assert b"keep-alive" not in names
    assert [value for name, value in headers if name == b"set-cookie"] == [b"a=1", b"b=2"]
    assert names.count(b"date") == names.count(b"server") == 1


def test_spaces_around_a_header_are_none_of_it(pair: Pair) -> None:
    status = parted(raw(pair.proxied, "/echo", headers=("x-own: kept \t", "x-none:  ")))[0]
    assert status == 200
    assert (pair.app.header(b"x-own"), pair.app.header(b"x-none")) == (b"kept", b"")


def test_cookies_of_one_client_are_not_sent_for_another(pair: Pair) -> None:
    raw(pair.proxied, "/hops", b"{}")
    raw(pair.proxied, "/echo", b"")
    assert pair.app.header(b"cookie") is None


def test_the_upstream_hears_who_asked_and_by_what_name(pair: Pair) -> None:
    raw(pair.proxied, "/echo", b"", headers=("x-forwarded-for: 203.0.113.9", "via: 1.0 edge"))
    assert pair.app.header(b"host") == pair.direct.removeprefix("http://").encode()
    assert pair.app.header(b"x-forwarded-host") == b"public.example"
    assert pair.app.header(b"x-forwarded-for") == b"203.0.113.9, 127.0.0.1"
    assert pair.app.header(b"x-forwarded-proto") == b"http"
    assert (pair.app.header(b"via") or b"").startswith(b"1.0 edge, 1.1 inf-middleware-")


def test_the_first_piece_arrives_before_the_last_is_made(pair: Pair) -> None:
    pair.app.go_on.clear()
    with connected(pair.proxied) as client:
        client.sendall(request("/held", b"{}"))
        got = b""
        while b"first" not in got:
            got += client.recv(4096)
        assert b"last" not in got
        pair.app.go_on.set()  # only now is the rest made
        while piece := client.recv(4096):
            got += piece
    assert parted(got)[2].endswith(event("[DONE]"))


def test_a_request_is_sent_on_before_it_is_whole(pair: Pair) -> None:
    whole = request("/echo", b"a" * 1000, headers=("content-type: text/plain",))
    pair.app.begun.clear()
    with connected(pair.proxied) as client:
        client.sendall(whole[:-10])
        assert pair.app.begun.wait(20), "the upstream heard nothing of the request"
        client.sendall(whole[-10:])  # only now is it whole
        got = b""
        while piece := client.recv(4096):
            got += piece
    assert parted(got)[2] == b"a" * 1000
