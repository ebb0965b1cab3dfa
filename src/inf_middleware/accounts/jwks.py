"""The public keys of an issuer: a JSON Web Key Set (RFC 7517), given, or fetched and refreshed."""

import asyncio
import json
import logging
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from jwt import PyJWK, PyJWTError

from inf_middleware.domain.errors import AccountsUnavailable, ConfigError

_log = logging.getLogger("inf_middleware.accounts")

# An issuer that rotates its keys publishes the new one well before it signs with it.
FRESH_S = 300.0

# Keys that cannot be fetched anew are believed for so long: an outage of the issuer is survived,
# and a key that was taken back does not live on behind a blocked network.
STALE_S = 3_600.0

# Fetches are no closer than this, whatever key ids tokens name and however often a fetch fails.
RETRY_S = 10.0

FETCH_TIMEOUT_S = 5.0

# A set of 100 RSA keys of 4096 bits has 80 KiB.
SET_BYTES_MAX = 1024 * 1024
SET_KEYS_MAX = 100


class KeySet:
    """The keys of a set that verify one of the algorithms, by key id and algorithm.

    Raises:
        ValueError: It is no key set, or has no key for these algorithms.
    """

    def __init__(self, table: object, algorithms: Sequence[str]) -> None:
        rows = table.get("keys") if isinstance(table, Mapping) else None
        if not isinstance(rows, list) or len(rows) > SET_KEYS_MAX:
            raise ValueError(f'a key set is {{"keys": […]}} with at most {SET_KEYS_MAX} keys')
        # Those without an id go by their place in the set: none of them hides another.
        self._keys: dict[tuple[str | int, str], PyJWK] = {}
        for place, row in enumerate(rows):
            if isinstance(row, dict) and row.get("use", "sig") == "sig":
                kid = row.get("kid")
                self._add(kid if isinstance(kid, str) else place, row, algorithms)
        if not self._keys:
            raise ValueError(f"the key set has no key for {', '.join(algorithms)}")

    def find(self, kid: str | None, algorithm: str) -> PyJWK | None:
        """Return the key of an id; without one, the only key there is for the algorithm."""
        if kid is not None:
            return self._keys.get((kid, algorithm))
        fitting = [key for (_, known), key in self._keys.items() if known == algorithm]
        return fitting[0] if len(fitting) == 1 else None

    def _add(self, kid: str | int, row: dict[str, Any], algorithms: Sequence[str]) -> None:
        for algorithm in algorithms:
            if row.get("alg", algorithm) != algorithm:
                continue
            try:
                key = PyJWK(row, algorithm)
            except (PyJWTError, ValueError, TypeError):
                continue  # of another kind than the algorithm's
            if key.Algorithm.check_key_length(key.key) is None:  # weak ones verify nothing
                self._keys[kid, algorithm] = key


class RemoteKeys:
    """A key set at a URL: fetched off the event loop at first use, refreshed as it is used.

    Raises:
        ConfigError: It is no http or https URL.
    """

    def __init__(
        self,
        url: str,
        algorithms: Sequence[str],
        *,
        fetch: Callable[[str], bytes] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(
                f'jwks is {url!r}; write the URL of a key set: "https://issuer.example/jwks.json"'
            )
        self._url = url
        self._algorithms = algorithms
        self._fetch = fetch or fetch_set
        self._clock = clock
        self._keys: KeySet | None = None
        self._fetched_at = 0.0
        self._tried_at: float | None = None
        self._failing = False
        self._refresh: asyncio.Task[None] | None = None

    async def find(self, kid: str | None, algorithm: str) -> PyJWK | None:
        """Return the key of an id, None where the issuer has none.

        Raises:
            AccountsUnavailable: The keys, or a key that is not among them, could not be fetched.
        """
        age_s = self._clock() - self._fetched_at
        if self._keys is None or age_s >= STALE_S:
            self._keys = None
            await self._refreshed()
        elif age_s >= FRESH_S:
            self._start()  # this token does not wait for it
        found = self._keys.find(kid, algorithm) if self._keys else None
        if found is None:
            await self._refreshed()  # the issuer may have a new key
            found = self._keys.find(kid, algorithm) if self._keys else None
            if found is None and self._failing:
                raise AccountsUnavailable("the issuer's keys cannot be fetched")
        return found

    async def _refreshed(self) -> None:
        task = self._start()
        if task is not None:
            await asyncio.shield(task)

    def _start(self) -> asyncio.Task[None] | None:
        """Return the fetch that runs, or a new one; None where the last is too short ago."""
        if self._refresh is not None and not self._refresh.done():
            return self._refresh
        now = self._clock()
        if self._tried_at is not None and now < self._tried_at + RETRY_S:
            return None
        self._tried_at = now
        self._refresh = asyncio.get_running_loop().create_task(self._load())
        return self._refresh

    async def _load(self) -> None:
        asked_at = self._clock()
        try:
            raw = await asyncio.to_thread(self._fetch, self._url)
            keys = KeySet(json.loads(raw), self._algorithms)
        except Exception as error:
            if not self._failing:
                self._failing = True
                _log.warning("the keys at %s cannot be fetched: %s", self._url, error)
            return
        if self._failing:
            self._failing = False
            _log.info("the keys at %s can be fetched again", self._url)
        self._keys, self._fetched_at = keys, asked_at


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect could lead from https to http, or to a host that nobody named."""

    def redirect_request(self, *_: Any) -> None:
        return None


def fetch_set(url: str) -> bytes:
    """Fetch a key set; blocks, so it is called in a thread.

    Raises:
        OSError: It cannot be reached, redirects, is too slow or too large.
    """
    deadline = time.monotonic() + FETCH_TIMEOUT_S
    opener = urllib.request.build_opener(_NoRedirect())
    request = urllib.request.Request(url, headers={"accept": "application/json"})  # noqa: S310 - http(s) only
    body = b""
    with opener.open(request, timeout=FETCH_TIMEOUT_S) as response:
        while piece := response.read1(64 * 1024):
            body += piece
            if len(body) > SET_BYTES_MAX:
                raise OSError(f"it has more than {SET_BYTES_MAX:,} bytes")
            if time.monotonic() > deadline:
                raise TimeoutError(f"it took longer than {FETCH_TIMEOUT_S:g} s")
    return body
