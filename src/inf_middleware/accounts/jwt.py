"""Accounts named by signed tokens (JSON Web Tokens, RFC 7519): nothing is looked up per request."""

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.requests import HTTPConnection

from inf_middleware.domain.errors import ConfigError
from inf_middleware.domain.tiers import Account, Tier, Tiers

try:
    import jwt
    from jwt.algorithms import get_default_algorithms

    from inf_middleware.accounts.jwks import KeySet, RemoteKeys
except ImportError as error:
    raise ImportError("JWTAccounts needs PyJWT: pip install 'inf-middleware[jwt]'") from error

# Common servers take no longer line in a request's head; and PyJWT needs half a millisecond of the
# event loop for so much, however wrong it is.
TOKEN_CHARACTERS_MAX = 8 * 1024

# Longer than any account's id; ids go into records, keys of stores and logs.
_ID_CHARACTERS_MAX = 256


class JWTAccounts:
    """Takes a key for a token, and its claims for account and level.

    One of `key` (a PEM public key, or the secret of HS256) and `jwks` (a key set as an object, or
    its URL). `algorithms` are the only ones that are accepted. A token must have `exp`, `issuer`
    as `iss`, and `audience` among `aud`; None for one of the two means that it is not looked at.
    A claim is named by its name, or by a sequence of names where it lies deeper. `tier` is the
    level of tokens that name none.

    Raises:
        ConfigError: An option that cannot hold, or that would accept what it should not.
    """

    cacheable = False  # a token's end is looked at each time, and verifying it asks nobody

    def __init__(
        self,
        *,
        key: str | bytes | None = None,
        jwks: str | Mapping[str, Any] | None = None,
        algorithms: Sequence[str],
        issuer: str | None,
        audience: str | Sequence[str] | None,
        account_claim: str | Sequence[str] = "sub",
        tier_claim: str | Sequence[str] | None = None,
        tier: str | Tier | None = None,
        leeway_s: float = 0.0,
    ) -> None:
        self._algorithms = _checked_algorithms(algorithms)
        self._key: Any = None
        self._keys: KeySet | RemoteKeys | None = None
        if (key is None) == (jwks is None):
            raise ConfigError("JWTAccounts needs one of key and jwks")
        if key is not None:
            self._key = _checked_key(key, self._algorithms)
        elif isinstance(jwks, str):
            self._keys = RemoteKeys(jwks, self._algorithms)
        else:
            try:
                self._keys = KeySet(jwks, self._algorithms)
            except ValueError as error:
                raise ConfigError(f"jwks cannot be used: {error}") from error
        self._issuer = issuer
        self._audience = audience
        self._account_claim = _path_of(account_claim)
        self._tier_claim = None if tier_claim is None else _path_of(tier_claim)
        self._tier = tier
        self._leeway_s = leeway_s

    def check_levels(self, tiers: Tiers) -> None:
        """See that the level of tokens that name none exists.

        Raises:
            ConfigError: It does not.
        """
        if isinstance(self._tier, str):
            tiers.named(self._tier)

    async def __call__(self, key: str | None, connection: HTTPConnection) -> Account | None:
        """Return the account of a token; None where it is none, or not a valid one.

        Raises:
            AccountsUnavailable: The issuer's keys cannot be fetched.
        """
        header = None if key is None else _header_of(key)
        if key is None or header is None:
            return None
        algorithm, kid = header.get("alg"), header.get("kid")
        if algorithm not in self._algorithms or not isinstance(kid, str | None):
            return None
        verifier = self._key
        if isinstance(self._keys, RemoteKeys):
            verifier = await self._keys.find(kid, algorithm)
        elif self._keys is not None:
            verifier = self._keys.find(kid, algorithm)
        claims = None if verifier is None else self._claims_of(key, verifier)
        return None if claims is None else self._account_of(claims)

    def _claims_of(self, token: str, verifier: Any) -> dict[str, Any] | None:
        try:
            return jwt.decode(
                token,
                verifier,
                algorithms=self._algorithms,
                issuer=self._issuer,
                audience=self._audience,
                leeway=self._leeway_s,
                options={
                    "require": ["exp"],
                    "verify_iss": self._issuer is not None,
                    "verify_aud": self._audience is not None,
                },
            )
        except Exception:  # the key was checked when it was given: the token is what is wrong
            return None

    def _account_of(self, claims: dict[str, Any]) -> Account | None:
        name = _claim(claims, self._account_claim)
        tier: Any = None if self._tier_claim is None else _claim(claims, self._tier_claim)
        if not isinstance(name, str) or len(name) > _ID_CHARACTERS_MAX:
            return None
        if tier is not None and not isinstance(tier, str):
            return None
        try:
            return Account(name, tier=self._tier if tier is None else tier)
        except ConfigError:  # an empty id, or one that is no Unicode
            return None


def _header_of(token: str) -> dict[str, Any] | None:
    """Read what names the key, and no more: PyJWT reads all again, strictly, with the key."""
    head, _, rest = token.partition(".")
    if len(token) > TOKEN_CHARACTERS_MAX or rest.count(".") != 1:
        return None
    try:
        header = json.loads(base64.urlsafe_b64decode(head + "=" * (-len(head) % 4)))
    except (ValueError, RecursionError):
        return None
    return header if isinstance(header, dict) else None


def _checked_algorithms(algorithms: Sequence[str]) -> list[str]:
    known = sorted(set(get_default_algorithms()) - {"none"})
    if isinstance(algorithms, str) or not algorithms or not set(algorithms) <= set(known):
        raise ConfigError(
            f'algorithms is {algorithms!r}; write those the issuer signs with: ["RS256"]; known'
            f" are {', '.join(known)}"
        )
    if len({name.startswith("HS") for name in algorithms}) > 1:
        raise ConfigError(
            "algorithms mixes HS… with others: a public key would then be good as a secret; pin"
            " one kind"
        )
    return list(algorithms)


def _checked_key(key: str | bytes, algorithms: Sequence[str]) -> Any:
    prepared: Any = None
    for name in algorithms:
        algorithm = get_default_algorithms()[name]
        try:
            prepared = algorithm.prepare_key(key)
        except (jwt.PyJWTError, ValueError, TypeError) as error:
            raise ConfigError(
                f"key is no key for {name}: {type(error).__name__}; give a public key as PEM, or"
                " the secret of HS256"
            ) from None
        weakness = algorithm.check_key_length(prepared)
        if weakness is not None:
            raise ConfigError(f"key is too weak for {name}: {weakness}")
    return prepared


def _path_of(claim: str | Sequence[str]) -> tuple[str, ...]:
    path = (claim,) if isinstance(claim, str) else tuple(claim)
    if not path or not all(isinstance(name, str) and name for name in path):
        raise ConfigError(f'a claim is named {claim!r}; write its name: "sub"')
    return path


def _claim(claims: Mapping[str, Any], path: tuple[str, ...]) -> object:
    value: object = claims
    for name in path:
        if not isinstance(value, Mapping):
            return None
        value = value.get(name)
    return value
