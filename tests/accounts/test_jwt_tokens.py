"""Accounts by signed tokens: what is signed for us counts, and nothing else does."""

import asyncio
import base64
import hashlib
import hmac
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given, settings
from hypothesis import strategies as st
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from inf_middleware import Account, ConfigError, Gate
from inf_middleware.accounts.jwks import FRESH_S, RETRY_S, STALE_S, RemoteKeys, fetch_set
from inf_middleware.accounts.jwt import JWTAccounts
from inf_middleware.domain.errors import AccountsUnavailable
from tests.apps import JsonApp
from tests.driver import post
from tests.kit import CHAT, Clock

SECRET = "a secret of more than thirty-two bytes"
RSA_KEY = rsa.generate_private_key(65537, 2048)
OTHER_KEY = rsa.generate_private_key(65537, 2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())

PIN: dict[str, Any] = {"issuer": "https://issuer.example", "audience": "models"}
CLAIMS = {"sub": "acme", "iss": "https://issuer.example", "aud": "models"}


def pem(key: Any) -> str:
    return (
        key.public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        .decode()
    )


def jwk(key: Any, kid: str | None, **more: Any) -> dict[str, Any]:
    algorithm = RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else ECAlgorithm
    row = algorithm.to_jwk(key.public_key(), as_dict=True)
    return {**row, **({} if kid is None else {"kid": kid}), **more}


def token(key: Any = RSA_KEY, alg: str = "RS256", kid: str | None = None, **claims: Any) -> str:
    told = {**CLAIMS, "exp": int(time.time()) + 600, **claims}
    told = {name: value for name, value in told.items() if value is not None}
    return jwt.encode(told, key, alg, headers=None if kid is None else {"kid": kid})


def found(accounts: JWTAccounts, key: str | None) -> Account | None:
    return asyncio.run(accounts(key, None))  # type: ignore[arg-type]


BY_PEM = JWTAccounts(key=pem(RSA_KEY), algorithms=["RS256"], tier_claim="tier", tier="tier1", **PIN)


def test_a_token_names_account_and_level() -> None:
    assert found(BY_PEM, token(tier="tier3")) == Account("acme", tier="tier3")
    assert found(BY_PEM, token()) == Account("acme", tier="tier1")
    assert found(BY_PEM, token(aud=["other", "models"])) == Account("acme", tier="tier1")


def test_a_secret_is_a_key_too_and_claims_may_lie_deeper() -> None:
    accounts = JWTAccounts(
        key=SECRET,
        algorithms=["HS256"],
        issuer=None,
        audience=None,
        account_claim=["org", "id"],
        tier_claim="https://models.example/tier",
    )
    signed = token(SECRET, "HS256", org={"id": "acme"}, **{"https://models.example/tier": "tier2"})
    assert found(accounts, signed) == Account("acme", tier="tier2")
    assert found(accounts, token(SECRET, "HS256", org="acme")) is None


def unsigned(header: dict[str, Any], claims: dict[str, Any]) -> str:
    parts = [json.dumps(part).encode() for part in (header, claims)]
    return ".".join([*(base64.urlsafe_b64encode(p).rstrip(b"=").decode() for p in parts), ""])


LONG = {**CLAIMS, "exp": 4_000_000_000}


def hmac_with_public_key() -> str:
    head = unsigned({"alg": "HS256"}, LONG).rstrip(".")
    mac = hmac.new(pem(RSA_KEY).encode(), head.encode(), hashlib.sha256).digest()
    return f"{head}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"


def tampered() -> str:
    head, _, signature = token().split(".")
    claims = base64.urlsafe_b64encode(json.dumps({**LONG, "sub": "evil"}).encode()).decode()
    return f"{head}.{claims.rstrip('=')}.{signature}"


BAD: dict[str, Callable[[], str | None]] = {
    "none at all": lambda: None,
    "no token": lambda: "sk-demo",
    "dots": lambda: "..",
    "alg none": lambda: unsigned({"alg": "none"}, LONG),
    "alg a list": lambda: unsigned({"alg": ["RS256"]}, LONG),
    "kid a number": lambda: unsigned({"alg": "RS256", "kid": 5}, LONG),
    "not signed": lambda: unsigned({"alg": "RS256"}, LONG),
    "another's signature": lambda: token(OTHER_KEY),
    "another algorithm": lambda: token(alg="RS512"),
    # The classic: the public key as the secret of HMAC.
    "public key as secret": hmac_with_public_key,
    "changed": tampered,
    "expired": lambda: token(exp=int(time.time()) - 5),
    "no end": lambda: token(exp=None),
    "end is no number": lambda: token(exp="soon"),
    "end is infinite": lambda: token(exp=float("inf")),
    "not yet": lambda: token(nbf=int(time.time()) + 600),
    "another issuer": lambda: token(iss="https://evil.example"),
    "no issuer": lambda: token(iss=None),
    "another audience": lambda: token(aud="others"),
    "no audience": lambda: token(aud=None),
    "no account": lambda: token(sub=None),
    "empty account": lambda: token(sub=""),
    "account a number": lambda: token(sub=5),
    "account too long": lambda: token(sub="a" * 257),
    "account no Unicode": lambda: token(sub="\ud800"),
    "level a number": lambda: token(tier=3),
    "too long": lambda: token(more="m" * 8_000),
    "head no JSON": lambda: "bm8." + token().partition(".")[2],
    "head no object": lambda: "W10." + token().partition(".")[2],
    "head nested": lambda: base64.urlsafe_b64encode(b"[" * 4_000).decode() + ".e30.",
    "head no base64": lambda: "é." + token().partition(".")[2],
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_not_signed_for_us_is_nobody(kind: str) -> None:
    assert found(BY_PEM, BAD[kind]()) is None


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200) | st.text("abcXYZ019-_.=", max_size=200))
def test_no_text_is_an_error(text: str) -> None:
    assert found(BY_PEM, text) is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["exp", "nbf", "iat", "aud", "iss", "sub", "tier"]), json_values
    )
)
def test_no_signed_claims_are_an_error(claims: dict[str, Any]) -> None:
    head = jwt.api_jws.encode(json.dumps({**LONG, **claims}).encode(), RSA_KEY, "RS256")
    account = found(BY_PEM, head)
    assert account is None or isinstance(account.id, str)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({}, "one of key and jwks"),
    ({"key": "k", "jwks": {}}, "one of key and jwks"),
    ({"key": SECRET, "algorithms": "HS256"}, "write those the issuer signs with"),
    ({"key": SECRET, "algorithms": []}, "write those the issuer signs with"),
    ({"key": SECRET, "algorithms": ["none"]}, "known are ES256"),
    ({"key": SECRET, "algorithms": ["HS256", "RS256"]}, "mixes HS"),
    ({"key": "short", "algorithms": ["HS256"]}, "too weak for HS256"),
    ({"key": "not a pem", "algorithms": ["RS256"]}, "key is no key for RS256"),
    ({"key": pem(RSA_KEY), "algorithms": ["HS256"]}, "key is no key for HS256"),
    ({"key": pem(EC_KEY), "algorithms": ["RS256"]}, "key is no key for RS256"),
    ({"jwks": "issuer.example"}, "write the URL of a key set"),
    ({"jwks": "file:///etc/passwd"}, "write the URL of a key set"),
    ({"jwks": {"keys": []}}, "no key for RS256"),
    ({"jwks": {"keys": [jwk(EC_KEY, "1")]}}, "no key for RS256"),
    ({"jwks": {"keys": [jwk(RSA_KEY, "1", use="enc")]}}, "no key for RS256"),
    ({"jwks": {}}, 'a key set is {"keys"'),
    ({"key": pem(RSA_KEY), "account_claim": ""}, 'write its name: "sub"'),
]


@pytest.mark.parametrize(("options", "words"), WRONG, ids=[words for _, words in WRONG])
def test_what_would_accept_too_much_is_refused_when_it_is_given(
    options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        JWTAccounts(**{"algorithms": ["RS256"], **PIN, **options})
    assert words in str(caught.value)
    assert SECRET not in str(caught.value)


def test_a_level_that_does_not_exist_is_told_when_the_stack_is_built() -> None:
    accounts = JWTAccounts(key=SECRET, algorithms=["HS256"], tier="gold", **PIN)
    with pytest.raises(ConfigError, match="there is no tier 'gold'"):
        asyncio.run(post(Gate(JsonApp({}), accounts=accounts), CHAT))


def test_of_a_set_the_key_that_the_token_names_verifies_it() -> None:
    rows = [jwk(RSA_KEY, "a"), jwk(OTHER_KEY, "b", alg="RS256"), jwk(EC_KEY, "c"), {"kty": "new"}]
    accounts = JWTAccounts(jwks={"keys": rows}, algorithms=["RS256", "ES256"], **PIN)
    assert found(accounts, token(RSA_KEY, kid="a"))
    assert found(accounts, token(OTHER_KEY, kid="b"))
    assert found(accounts, token(EC_KEY, "ES256", kid="c"))
    assert found(accounts, token(EC_KEY, "ES256"))  # the only one of its kind
    assert found(accounts, token(RSA_KEY)) is None  # one of two: which?
    assert found(accounts, token(RSA_KEY, kid="b")) is None
    assert found(accounts, token(RSA_KEY, kid="d")) is None
    assert found(accounts, token(RSA_KEY, "RS512", kid="a")) is None


@pytest.mark.parametrize("kids", [(None, None), (None, 5), ("a", None)])
def test_a_token_that_names_no_key_is_nobody_where_several_fit(kids: tuple[Any, Any]) -> None:
    rows = [jwk(RSA_KEY, kids[0]), jwk(OTHER_KEY, kids[1]), jwk(EC_KEY, None)]
    accounts = JWTAccounts(jwks={"keys": rows}, algorithms=["RS256", "ES256"], **PIN)
    assert found(accounts, token(RSA_KEY)) is None
    assert found(accounts, token(OTHER_KEY)) is None
    assert found(accounts, token(EC_KEY, "ES256"))


class Issuer:
    """What an issuer's URL answers: a set, or nothing while it is down."""

    def __init__(self, *rows: dict[str, Any]) -> None:
        self.rows = list(rows)
        self.fetches = 0
        self.down = False
        self.threads: set[int] = set()

    def __call__(self, url: str) -> bytes:
        self.fetches += 1
        self.threads.add(threading.get_ident())
        if self.down:
            raise OSError("no route")
        return json.dumps({"keys": self.rows}).encode()


def remote(issuer: Issuer, clock: Clock) -> RemoteKeys:
    return RemoteKeys("https://issuer.example/jwks", ["RS256"], fetch=issuer, clock=clock)


def test_keys_are_fetched_once_off_the_loop_however_many_ask() -> None:
    issuer = Issuer(jwk(RSA_KEY, "a"))

    async def check() -> None:
        keys = remote(issuer, Clock())
        assert issuer.fetches == 0
        assert all(await asyncio.gather(*(keys.find("a", "RS256") for _ in range(20))))
        assert issuer.fetches == 1
        assert threading.get_ident() not in issuer.threads

    asyncio.run(check())


def test_an_unknown_key_id_fetches_anew_but_no_flood_of_them_does() -> None:
    issuer, clock = Issuer(jwk(RSA_KEY, "a")), Clock()

    async def check() -> None:
        keys = remote(issuer, clock)
        assert await keys.find("a", "RS256")
        issuer.rows.append(jwk(OTHER_KEY, "b"))
        clock.now += RETRY_S
        assert await keys.find("b", "RS256")
        for number in range(100):
            assert await keys.find(f"random-{number}", "RS256") is None
        assert issuer.fetches == 2

    asyncio.run(check())


def test_keys_are_refreshed_while_tokens_are_verified_with_the_old_ones() -> None:
    issuer, clock = Issuer(jwk(RSA_KEY, "a"), jwk(OTHER_KEY, "b")), Clock()

    async def check() -> None:
        keys = remote(issuer, clock)
        assert await keys.find("b", "RS256")
        del issuer.rows[1]  # taken back
        clock.now += FRESH_S
        assert await keys.find("b", "RS256")
        assert keys._refresh is not None
        await keys._refresh
        assert await keys.find("b", "RS256") is None
        assert await keys.find("a", "RS256")

    asyncio.run(check())


def test_an_issuer_that_is_down_is_survived_for_an_hour_and_then_nobody_can_be_looked_up(
    caplog: pytest.LogCaptureFixture,
) -> None:
    issuer, clock = Issuer(jwk(RSA_KEY, "a")), Clock()

    async def check() -> None:
        keys = remote(issuer, clock)
        issuer.down = True
        for _ in range(5):
            with pytest.raises(AccountsUnavailable):
                await keys.find("a", "RS256")
        assert issuer.fetches == 1  # one try in ten seconds
        issuer.down = False
        clock.now += RETRY_S
        assert await keys.find("a", "RS256")
        issuer.down = True
        clock.now += STALE_S - 1.0
        assert await keys.find("a", "RS256")
        assert keys._refresh is not None
        await keys._refresh
        with pytest.raises(AccountsUnavailable):  # it may be a new one
            await keys.find("b", "RS256")
        clock.now += 1.0
        with pytest.raises(AccountsUnavailable):
            await keys.find("a", "RS256")

    asyncio.run(check())
    assert len([r for r in caplog.records if "cannot be fetched" in r.getMessage()]) == 2


@pytest.fixture
def server() -> Iterator[Callable[[bytes], str]]:
    bodies: dict[str, bytes] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = bodies[self.path]
            self.send_response(302 if self.path == "/redirect" else 200)
            self.send_header("location", "/0")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True)
    thread.start()

    def serve(body: bytes, path: str | None = None) -> str:
        path = path or f"/{len(bodies)}"
        bodies[path] = body
        return f"http://127.0.0.1:{http.server_address[1]}{path}"

    yield serve
    http.shutdown()
    thread.join()
    http.server_close()


def test_a_set_is_fetched_from_a_real_server(server: Callable[..., str]) -> None:
    url = server(json.dumps({"keys": [jwk(RSA_KEY, "a")]}).encode())
    accounts = JWTAccounts(jwks=url, algorithms=["RS256"], **PIN)
    assert found(accounts, token(kid="a")) == Account("acme")


def test_a_fetch_is_bounded_and_follows_no_redirect(server: Callable[..., str]) -> None:
    with pytest.raises(OSError, match="more than"):
        fetch_set(server(b" " * (1024 * 1024 + 1)))
    with pytest.raises(OSError, match="302"):
        fetch_set(server(b"", "/redirect"))


@pytest.mark.parametrize(
    "body", [b"", b"[]", b'{"keys": 5}', b"\xff", b'{"keys": []}', b"[" * 50_000]
)
def test_a_set_that_is_none_is_an_issuer_that_is_down(
    body: bytes, server: Callable[..., str]
) -> None:
    accounts = JWTAccounts(jwks=server(body), algorithms=["RS256"], **PIN)
    with pytest.raises(AccountsUnavailable):
        found(accounts, token(kid="a"))


def test_without_pyjwt_all_else_works_and_the_error_says_what_to_install() -> None:
    script = (
        "import sys; sys.modules['jwt'] = None\n"
        "import inf_middleware\n"
        "try:\n    import inf_middleware.accounts.jwt\n"
        "except ImportError as error:\n    print(error)\n"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert ran.stdout == "JWTAccounts needs PyJWT: pip install 'inf-middleware[jwt]'\n", ran.stderr
