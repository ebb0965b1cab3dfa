"""Connections to a ledger's server: which of those that a URI names, and how long it is waited for.

Of several servers the one that takes writes is meant, and no standby of it. Each is asked for its
share of the time: one that is gone without a word keeps nobody from the others.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Mapping
from typing import Any
from urllib.parse import parse_qs, urlsplit, urlunsplit

import asyncpg
from asyncpg.connect_utils import SessionAttribute

from inf_middleware.ledgers.postgres_steps import FAILURES, SCHEMA

# A server that does not answer for so long is away: many commits, and half of a caller's patience,
# since a look-up may ask twice.
COMMAND_TIMEOUT_S = 5.0

# Of a connection that writes.
WRITER_SETTINGS = {
    "search_path": SCHEMA,
    # Who waits for a lock is told by the server, a tenth before it would be given up here: what is
    # given up here waits on at the server, one connection more with each try.
    "lock_timeout": f"{COMMAND_TIMEOUT_S * 900:.0f}ms",
    # All others wait for who has the lock of writers: where it says nothing, since its host stands
    # still or is cut off, the server gives it up, as the server is given up here.
    "idle_in_transaction_session_timeout": f"{COMMAND_TIMEOUT_S * 1000:.0f}ms",
}

# Of URIs with several servers the one that was found last: it is asked first.
_found: dict[str, str] = {}


async def connect(uri: str, settings: Mapping[str, str] | None = None) -> "asyncpg.Connection[Any]":
    """Connect to a ledger's server."""
    servers = _servers(uri)
    if len(servers) == 1:
        return await _connect(uri, settings, COMMAND_TIMEOUT_S, None)
    told = "target_session_attrs" in parse_qs(urlsplit(uri).query)
    meant = None if told else SessionAttribute.primary
    servers.sort(key=lambda server: server != _found.get(uri))  # the others stay in their order
    why = []
    for server in servers:
        try:
            connection = await _connect(server, settings, COMMAND_TIMEOUT_S / len(servers), meant)
        except FAILURES as error:
            place = urlsplit(server).netloc.rpartition("@")[2]
            why.append(f"{place}: {error or type(error).__name__}")
        else:
            _found[uri] = server
            return connection
    raise asyncpg.InterfaceError("; ".join(why))


async def closed(closing: Awaitable[None]) -> None:
    """Wait until something is closed, or given up: it lets go of its connections by then."""
    with contextlib.suppress(*FAILURES):
        async with asyncio.timeout(COMMAND_TIMEOUT_S):
            await closing


async def _connect(
    uri: str, settings: Mapping[str, str] | None, timeout_s: float, meant: SessionAttribute | None
) -> "asyncpg.Connection[Any]":
    return await asyncpg.connect(
        uri,
        timeout=timeout_s,
        command_timeout=COMMAND_TIMEOUT_S,
        target_session_attrs=meant,
        server_settings=dict(settings or {}),
    )


def _servers(uri: str) -> list[str]:
    """Return a URI for each server that one names."""
    parts = urlsplit(uri)
    user, at, hosts = parts.netloc.rpartition("@")
    if "," not in hosts:
        return [uri]
    return [
        urlunsplit(parts._replace(netloc=f"{user}{at}{host}")) for host in hosts.split(",") if host
    ]
