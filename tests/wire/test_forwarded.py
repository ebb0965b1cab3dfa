"""The client's address: the peer's, or what trusted proxies wrote; never what clients write."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inf_middleware import ConfigError
from inf_middleware.wire.forwarded import HOPS_MAX, TrustedProxies, network_of

PROXIES = TrustedProxies.of(["10.0.0.0/8", "2001:db8:ffff::/48", "unix"])


def caller(peer: str | None, *headers: tuple[str, str]) -> tuple[str, bool]:
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    found = PROXIES.caller(peer, raw)
    return found.host, found.unbelieved


def xff(value: str) -> tuple[str, str]:
    return ("x-forwarded-for", value)


def forwarded(value: str) -> tuple[str, str]:
    return ("forwarded", value)


@pytest.mark.parametrize(
    ("peer", "headers", "expected"),
    [
        ("192.0.2.1", [], ("192.0.2.1", False)),
        (None, [], ("unix", False)),
        # Nobody who is not trusted is believed.
        ("192.0.2.1", [xff("198.51.100.7")], ("192.0.2.1", True)),
        ("192.0.2.1", [forwarded("for=198.51.100.7")], ("192.0.2.1", True)),
        ("10.0.0.1", [("x-real-ip", "198.51.100.7")], ("10.0.0.1", True)),
        # From the right, as far as trusted proxies wrote.
        ("10.0.0.1", [xff("198.51.100.7")], ("198.51.100.7", False)),
        ("10.0.0.1", [xff("1.1.1.1, 198.51.100.7")], ("198.51.100.7", False)),
        ("10.0.0.1", [xff("1.1.1.1, 198.51.100.7,10.2.3.4")], ("198.51.100.7", False)),
        ("10.0.0.1", [xff("10.9.9.9")], ("10.9.9.9", False)),
        ("10.0.0.1", [xff("1.1.1.1"), xff("198.51.100.7")], ("198.51.100.7", False)),
        (None, [xff("1.1.1.1, 198.51.100.7")], ("198.51.100.7", False)),
        # What is no address ends the chain at the last hop that is known.
        ("10.0.0.1", [xff("198.51.100.7, nonsense")], ("10.0.0.1", False)),
        ("10.0.0.1", [xff("198.51.100.7, unknown, 10.0.0.2")], ("10.0.0.2", False)),
        ("10.0.0.1", [xff("")], ("10.0.0.1", False)),
        ("10.0.0.1", [xff("\xff\x00")], ("10.0.0.1", False)),
        # Ports, brackets, IPv6, IPv4 in IPv6.
        ("10.0.0.1", [xff("198.51.100.7:4711")], ("198.51.100.7", False)),
        ("10.0.0.1", [xff("[2001:db8::7]:4711")], ("2001:db8::7", False)),
        ("10.0.0.1", [xff("2001:db8::7")], ("2001:db8::7", False)),
        ("2001:db8:ffff::1", [xff("2001:db8::7, 2001:db8:ffff::9")], ("2001:db8::7", False)),
        ("::ffff:10.0.0.1", [xff("::ffff:198.51.100.7")], ("198.51.100.7", False)),
        # Forwarded, as RFC 7239 has it.
        (
            "10.0.0.1",
            [forwarded("for=192.0.2.60;proto=http;by=203.0.113.43")],
            ("192.0.2.60", False),
        ),
        ("10.0.0.1", [forwarded('For="[2001:db8:cafe::17]:4711"')], ("2001:db8:cafe::17", False)),
        ("10.0.0.1", [forwarded("for=1.1.1.1, for=192.0.2.60")], ("192.0.2.60", False)),
        ("10.0.0.1", [forwarded("for=_hidden")], ("10.0.0.1", False)),
        ("10.0.0.1", [forwarded("proto=https")], ("10.0.0.1", False)),
        ("10.0.0.1", [forwarded("for=1.1.1.1;for=2.2.2.2")], ("10.0.0.1", False)),
        # A client's open quote does not swallow what the proxy appended.
        ("10.0.0.1", [forwarded('for=", for=192.0.2.60')], ("192.0.2.60", False)),
        # Both headers: believed where they agree; else one of them is the client's own.
        ("10.0.0.1", [forwarded("for=192.0.2.60"), xff("192.0.2.60")], ("192.0.2.60", False)),
        ("10.0.0.1", [forwarded("for=1.1.1.1"), xff("192.0.2.60")], ("10.0.0.1", True)),
    ],
)
def test_the_client_is_whom_trusted_proxies_saw(
    peer: str | None, headers: list[tuple[str, str]], expected: tuple[str, bool]
) -> None:
    assert caller(peer, *headers) == expected


def test_a_chain_is_read_only_so_far() -> None:
    chain = ", ".join(["1.1.1.1", *(f"10.0.0.{n}" for n in range(1, HOPS_MAX + 10))])
    assert caller("10.0.0.1", xff(chain)) == (f"10.0.0.{10}", False)


written = st.text(st.sampled_from('0123456789abcdef.:,;="[] for_%\\'), max_size=60)


@settings(deadline=None)
@given(client=written, name=st.sampled_from(["forwarded", "x-forwarded-for"]))
def test_whatever_a_client_writes_the_proxy_behind_it_tells_who_it_is(
    client: str, name: str
) -> None:
    appended = "192.0.2.60" if name == "x-forwarded-for" else "for=192.0.2.60"
    assert caller("10.0.0.1", (name, f"{client}, {appended}")) == ("192.0.2.60", False)
    assert caller("10.0.0.1", (name, client), (name, appended)) == ("192.0.2.60", False)
    assert caller("192.0.2.1", (name, client))[0] == "192.0.2.1"


@settings(deadline=None)
@given(peer=written, value=written)
def test_no_header_and_no_peer_is_an_error(peer: str, value: str) -> None:
    caller(peer, ("forwarded", value), ("x-forwarded-for", value))
    network_of(peer)


@pytest.mark.parametrize(
    ("host", "network"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("testclient", "testclient"),
    ],
)
def test_ipv6_counts_by_64(host: str, network: str) -> None:
    assert network_of(host) == network


@pytest.mark.parametrize("wrong", ["10.0.0.0/8", ["10.0.0.1/8"], ["proxy.example"], [""], [None]])
def test_what_is_no_address_is_told_with_what_would_be_right(wrong: object) -> None:
    with pytest.raises(ConfigError, match=r"10\.0\.0\.0/8"):
        TrustedProxies.of(wrong)  # type: ignore[arg-type]
