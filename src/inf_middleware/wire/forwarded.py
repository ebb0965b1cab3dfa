"""Who a request comes from: the peer, or what a trusted proxy says of it.

Sources: RFC 7239 (Forwarded); X-Forwarded-For has no standard, each proxy appends the peer that it
saw. So both are read from the right, and only as far as trusted proxies have written.
"""

import ipaddress
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from inf_middleware.domain.errors import ConfigError

IPAddress: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
Headers: TypeAlias = Iterable[tuple[bytes, bytes]]

# What callers without an address are called: those on a unix socket.
UNIX = "unix"

# Longer than any chain of proxies; what lies further left was written by nobody we know.
HOPS_MAX = 16

_FORWARDED = b"forwarded"
_FORWARDED_FOR = b"x-forwarded-for"
_HEADERS = (_FORWARDED, _FORWARDED_FOR, b"x-real-ip")


@dataclass(frozen=True, slots=True)
class Caller:
    """Where a request comes from; `unbelieved` where forwarded headers were left aside."""

    host: str
    unbelieved: bool


@dataclass(frozen=True, slots=True)
class TrustedProxies:
    """The peers whose word on the client's address is taken.

    `unix` means peers on a unix socket, which have no address.
    """

    networks: tuple[IPNetwork, ...] = ()
    unix: bool = False

    @classmethod
    def of(cls, names: Iterable[str], option: str = "trusted_proxies") -> "TrustedProxies":
        """Read addresses and networks.

        Raises:
            ConfigError: One is neither, or the host bits of a network are set.
        """
        networks: list[IPNetwork] = []
        if isinstance(names, str):
            raise ConfigError(f'{option} is {names!r}; write a list: ["10.0.0.0/8"]')
        names = tuple(str(name) for name in names)  # objects of `ipaddress` are welcome
        for name in names:
            if name == UNIX:
                continue
            try:
                networks.append(ipaddress.ip_network(name))
            except ValueError as error:
                raise ConfigError(
                    f"{option} has {name!r} ({error}); write addresses and networks, such as"
                    ' "10.0.0.7", "10.0.0.0/8" or "2001:db8::/32", or "unix" for a unix socket'
                ) from None
        return cls(tuple(networks), UNIX in names)

    def trusts(self, host: str | None) -> bool:
        """Return whether a peer is one of these; None is a peer on a unix socket."""
        if host is None:
            return self.unix
        address = address_of(host)
        return address is not None and self._has(address)

    def caller(self, peer: str | None, headers: Headers) -> Caller:
        """Return who a request comes from, by its peer and its headers (names in lower case)."""
        host = UNIX if peer is None else peer
        told = [(name, value) for name, value in headers if name in _HEADERS]
        if not told:
            return Caller(host, unbelieved=False)
        if not self.trusts(peer):
            return Caller(host, unbelieved=True)
        said = {
            self._first_untrusted(host, _hops(told, name))
            for name in (_FORWARDED, _FORWARDED_FOR)
            if any(name == given for given, _ in told)
        }
        # A proxy writes one of the two and may pass on what a client wrote into the other: where
        # they differ neither can be believed.
        if len(said) != 1:
            return Caller(host, unbelieved=True)
        return Caller(said.pop(), unbelieved=False)

    def _first_untrusted(self, host: str, hops: Iterator[IPAddress | None]) -> str:
        for _, hop in zip(range(HOPS_MAX), hops, strict=False):
            if hop is None:
                break  # "unknown", or what is no address: the last one who is known it is
            host = str(hop)
            if not self._has(hop):
                break
        return host

    def _has(self, address: IPAddress) -> bool:
        return any(address in network for network in self.networks)


def address_of(host: str) -> IPAddress | None:
    """Return an address without zone, one of IPv4 as such; None where a text is none."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def network_of(host: str) -> str:
    """Return what counts as one caller: an IPv4 address, an IPv6 /64, or the text itself.

    A /64 is what one subscriber is given.
    """
    address = address_of(host)
    if address is None:
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    return str(ipaddress.ip_network((int(address), 64), strict=False))


def _hops(told: list[tuple[bytes, bytes]], wanted: bytes) -> Iterator[IPAddress | None]:
    read = _forwarded_node if wanted == _FORWARDED else _node
    for name, value in reversed(told):
        if name == wanted:
            rest = value.decode("latin-1")
            while rest:
                # Commas are cut without regard to quotes: no address has one, and a quote that a
                # client left open must not swallow what the proxy appended.
                rest, _, element = rest.rpartition(",")
                yield read(element.strip())


def _forwarded_node(element: str) -> IPAddress | None:
    nodes = []
    for pair in element.split(";"):
        name, _, value = pair.partition("=")
        if name.strip().lower() == "for":
            nodes.append(value.strip())
    if len(nodes) != 1:
        return None
    node = nodes[0]
    if len(node) >= 2 and node[0] == node[-1] == '"':
        node = node[1:-1]
    return _node(node)


def _node(text: str) -> IPAddress | None:
    """Read an address with or without port: 192.0.2.1:80, [2001:db8::1]:80, 2001:db8::1."""
    if text.startswith("["):
        return address_of(text[1:].partition("]")[0])
    if text.count(":") == 1:
        text = text.partition(":")[0]
    return address_of(text)
