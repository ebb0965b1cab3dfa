"""Keys under attack: nobody guesses fast, nobody breaks anything, and no key is shown in clear."""

import asyncio
import hashlib
import itertools
import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inf_middleware import Account, ConfigError, Gate, TierLimiter
from inf_middleware.call.failed_keys import FAILED_KEYS_PER_MINUTE
from inf_middleware.call.who import CALLERS_MAX
from tests.apps import JsonApp, completion, usage_of
from tests.driver import Answered, post, scope_of
from tests.kit import CHAT, House

ACCOUNTS = {
    "sk-good": Account("good", recharged="100000"),
    "sk-suspended": Account("gone", suspended=True),
    "schlüssel-🔑": Account("umlaut", recharged="100000"),
}


class Guarded(House):
    """A house whose model app tells what has reached it."""

    def __init__(self, tmp_path: Path, **options: Any) -> None:
        self.model = JsonApp(completion(usage=usage_of(10, 5)))
        super().__init__(self.model, tmp_path, accounts=ACCOUNTS, **options)

    @property
    def reached(self) -> int:
        """How many requests the model server has seen; each has one record."""
        assert len(self.records) == len(self.model.bodies)
        return len(self.model.bodies)


def run(house: House, calls: Any) -> Any:
    async def go() -> Any:
        try:
            return await calls()
        finally:
            await house.close()

    return asyncio.run(go())


def code_of(answered: Answered) -> str:
    return str(answered.json["error"]["code"])


async def raw_post(app: Any, headers: list[tuple[bytes, bytes]]) -> Answered:
    """Send a request whose headers are bytes that no client library would send."""
    answered = Answered()
    scope = scope_of()
    scope["headers"] = [*scope["headers"], *headers]
    sent = False

    async def receive() -> dict[str, Any]:
        nonlocal sent
        if sent:
            return {"type": "http.disconnect"}
        sent = True
        return {"type": "http.request", "body": b'{"model": "m", "messages": []}'}

    async def send(message: dict[str, Any]) -> None:
        answered.messages.append(message)

    await app(scope, receive, send)
    return answered


MALFORMED = {
    "64 KB": b"k" * 65_536,
    "NUL": b"sk-\0good",
    "control": b"sk-\x07good",
    "non-UTF-8": b"sk-\xff\xfegood",
    "Latin-1": "schlüssel".encode("latin-1"),
    "lone surrogate": b"sk-\xed\xa0\x80",
    "overlong": b"sk-\xc0\xaf",
    "invisible": "sk-good\u200b".encode(),
    "replacement": b"\xef\xbf\xbd",
    "known key and more": b"sk-good sk-good",
}


@pytest.mark.parametrize("name", ["authorization", "x-api-key", "api-key"])
@pytest.mark.parametrize("kind", MALFORMED)
def test_a_malformed_key_is_a_401_and_no_record(kind: str, name: str, tmp_path: Path) -> None:
    house = Guarded(tmp_path)
    prefix = b"Bearer " if name == "authorization" else b""
    header = (name.encode(), prefix + MALFORMED[kind])

    async def calls() -> Answered:
        return await raw_post(house.app, [header])

    refused = run(house, calls)
    assert (refused.status, code_of(refused)) == (401, "invalid_api_key")
    assert house.reached == 0


@pytest.mark.parametrize("kind", ["NUL", "invisible", "64 KB"])
def test_a_malformed_key_is_a_401_though_its_digest_is_configured(kind: str) -> None:
    digest = hashlib.sha256(MALFORMED[kind]).hexdigest()
    limiter = TierLimiter(JsonApp(completion()), accounts={f"sha256:{digest}": "free"})
    header = (b"authorization", b"Bearer " + MALFORMED[kind])
    refused = asyncio.run(raw_post(limiter, [header]))
    assert (refused.status, code_of(refused)) == (401, "invalid_api_key")


def test_beyond_the_callers_that_are_kept_ready_each_is_who_it_is() -> None:
    levels = {"free": "4", "tier1": "20", "tier2": "80", "tier3": "240"}
    names = [f"sk-{number}" for number in range(CALLERS_MAX + 8)]
    limits = dict(zip(names, itertools.cycle(levels), strict=False))
    limiter = TierLimiter(JsonApp(completion(usage=usage_of(1, 1))), accounts=limits)

    async def calls() -> None:
        for key in (*names, *names[:8], *names[-8:]):
            answered = await post(limiter, CHAT, key=key)
            assert answered.headers["x-ratelimit-limit-requests"] == levels[limits[key]]

    asyncio.run(calls())


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(raw=st.binary(max_size=80))
def test_no_bytes_of_a_key_make_a_500(raw: bytes, tmp_path: Path) -> None:
    gate = Gate(JsonApp({}), accounts=ACCOUNTS, ledger=f"sqlite:///{tmp_path}/l.db")
    for header in ((b"authorization", b"Bearer " + raw), (b"x-api-key", raw)):
        assert asyncio.run(raw_post(gate, [header])).status in (401, 429)


def test_a_key_of_any_printable_unicode_works(tmp_path: Path) -> None:
    house = Guarded(tmp_path)

    async def calls() -> int:
        return (await post(house.app, CHAT, headers=[("x-api-key", "schlüssel-🔑")])).status

    assert run(house, calls) == 200


@pytest.mark.parametrize("key", ["sk-\ud800", "sk-\0", " sk-space", "k" * 20_000, ""])
def test_a_key_that_no_caller_can_send_is_refused_when_configured(key: str) -> None:
    with pytest.raises(ConfigError, match="accounts has a key") as caught:
        asyncio.run(post(Gate(JsonApp({}), accounts={key: "free"}), CHAT))
    assert len(str(caught.value)) < 200


def test_too_many_failed_keys_are_refused_and_a_valid_one_never_is(tmp_path: Path) -> None:
    house = Guarded(tmp_path, help_url="https://example.org/keys")

    async def calls() -> None:
        for number in range(FAILED_KEYS_PER_MINUTE):
            refused = await post(house.app, CHAT, key=f"guess-{number}")
            assert (refused.status, code_of(refused)) == (401, "invalid_api_key")
        for number in range(3):
            refused = await post(house.app, CHAT, key=f"more-{number}")
            assert (refused.status, code_of(refused)) == (429, "too_many_failed_keys")
            assert 0 < int(refused.headers["retry-after-ms"]) <= 60_000
            assert 0 < int(refused.headers["retry-after"]) <= 60
            assert refused.json["error"]["type"] == "rate_limit_error"
            assert "https://example.org/keys" in refused.json["error"]["message"]
        malformed = await raw_post(house.app, [(b"x-api-key", b"\xff")])
        assert malformed.status == 429
        assert (await post(house.app, CHAT, key="sk-good")).status == 200
        # No key is no guess, and other networks are other networks.
        assert (await post(house.app, CHAT)).status == 401
        assert (await post(house.app, CHAT, key="guess", client=("192.0.2.9", 1))).status == 401

    run(house, calls)
    assert house.reached == 1


def test_failed_keys_count_by_the_64_of_ipv6(tmp_path: Path) -> None:
    house = Guarded(tmp_path)

    async def calls() -> list[int]:
        statuses = []
        for number in range(FAILED_KEYS_PER_MINUTE + 1):
            client = (f"2001:db8::{number + 1:x}", 1)
            statuses.append((await post(house.app, CHAT, key=f"g{number}", client=client)).status)
        other = await post(house.app, CHAT, key="g", client=("2001:db8:0:1::1", 1))
        return [*statuses, other.status]

    assert run(house, calls) == [401] * FAILED_KEYS_PER_MINUTE + [429, 401]


def test_behind_a_trusted_proxy_failed_keys_count_by_the_clients_address(tmp_path: Path) -> None:
    house = Guarded(tmp_path, trusted_proxies=["10.0.0.0/8"])

    async def fail(client: str, peer: str = "10.0.0.1") -> int:
        headers = [("x-forwarded-for", client)]
        answered = await post(house.app, CHAT, key="guess", headers=headers, client=(peer, 1))
        return answered.status

    async def calls() -> None:
        for _ in range(FAILED_KEYS_PER_MINUTE):
            assert await fail("198.51.100.7") == 401
        assert await fail("198.51.100.7") == 429
        assert await fail("1.1.1.1, 198.51.100.7") == 429
        assert await fail("198.51.100.8") == 401
        # From a peer that is nobody's proxy the header changes nothing.
        statuses = [await fail(f"203.0.113.{number}", "192.0.2.1") for number in range(21)]
        assert statuses == [401] * 20 + [429]

    run(house, calls)


def test_without_accounts_callers_behind_a_trusted_proxy_are_told_apart(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate(
        JsonApp(completion(usage=usage_of(1, 1))),
        trusted_proxies=["10.0.0.1", "unix"],
        ledger=f"sqlite:///{tmp_path}/l.db",
    )

    async def ask(client: str, peer: tuple[str, int] | None) -> str:
        headers = [("x-forwarded-for", client)]
        answered = await post(gate, CHAT, headers=headers, client=peer)
        return answered.headers["x-ratelimit-remaining-requests"]

    async def calls() -> list[str]:
        return [
            await ask("198.51.100.7", ("10.0.0.1", 1)),
            await ask("198.51.100.7", None),
            await ask("198.51.100.8", ("10.0.0.1", 1)),
            await ask("198.51.100.7", ("10.0.0.2", 1)),
            await ask("198.51.100.8", ("10.0.0.2", 1)),
        ]

    assert asyncio.run(calls()) == ["3", "2", "3", "3", "2"]
    warned = [r.getMessage() for r in caplog.records if "forwarded" in r.getMessage()]
    assert len(warned) == 1
    assert "10.0.0.2" in warned[0]
    assert "trusted_proxies" in warned[0]


def test_a_suspended_account_is_a_403_that_is_not_retried(tmp_path: Path) -> None:
    house = Guarded(tmp_path)

    async def calls() -> Answered:
        for _ in range(30):
            refused = await post(house.app, CHAT, key="sk-suspended")
        return refused

    refused = run(house, calls)
    assert (refused.status, code_of(refused)) == (403, "account_suspended")
    assert refused.headers["x-should-retry"] == "false"
    assert refused.json["error"]["type"] == "permission_error"
    assert house.reached == 0


def test_no_key_is_logged_stored_or_answered(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    secret = "sk-5ecret'quote"

    async def lookup(key: str | None, connection: Any) -> Account | None:
        if key == secret + "-down":
            raise LookupError(key)
        if key == secret + "-headers":
            raise ValueError(f"{key} {connection.headers['authorization']}")
        return Account("acme") if key == secret else None

    gate = Gate(
        JsonApp(completion(usage=usage_of(1, 1))),
        accounts=lookup,
        ledger=f"sqlite:///{tmp_path}/ledger.db",
        sinks={"file": f"jsonl:{tmp_path}/events.jsonl"},
    )

    async def calls() -> list[int]:
        keys = [secret, secret + "-unknown", secret + "-down", secret + "-headers"]
        answers = [await post(gate, CHAT, key=key) for key in keys]
        for answer in answers:
            assert "5ecret" not in answer.body.decode() + str(answer.headers)
        return [answer.status for answer in answers]

    assert asyncio.run(calls()) == [200, 401, 503, 503]
    assert "look-up fails" in caplog.text
    assert "5ecret" not in caplog.text
    for file in tmp_path.iterdir():
        assert b"5ecret" not in file.read_bytes(), file
    digest = hashlib.sha256(secret.encode()).hexdigest()
    assert any(digest[:12].encode() in file.read_bytes() for file in tmp_path.iterdir())


def test_a_look_up_that_fails_is_a_503_once_logged_and_serves_what_is_fresh(tmp_path: Path) -> None:
    down = False
    asked = 0

    async def lookup(key: str | None, connection: Any) -> Account | None:
        nonlocal asked
        asked += 1
        if down:
            raise OSError("the database is away")
        return Account("acme", recharged="100000")

    house = House(
        JsonApp(completion(usage=usage_of(1, 1))), tmp_path, accounts=lookup, accounts_ttl_s=3600
    )

    async def calls() -> None:
        nonlocal down
        assert (await post(house.app, CHAT, key="sk-a")).status == 200
        down = True
        assert (await post(house.app, CHAT, key="sk-a")).status == 200
        assert asked == 1
        refused = await post(house.app, CHAT, key="sk-b")
        assert (refused.status, code_of(refused)) == (503, "accounts_unavailable")
        assert refused.headers["retry-after"] == "1"
        assert refused.headers["retry-after-ms"] == "1000"

    run(house, calls)
