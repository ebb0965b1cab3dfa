"""Accounts by signed tokens: an issuer's token is the key, and its claims name account and level.

python examples/jwt_accounts.py --port 8000

Needs no network: the issuer is played by this file, with keys made at start. In production it is
your identity provider, and `jwks=` the URL of its key set.
"""

import argparse
import time

import jwt
import uvicorn
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

# The example next to this one; in your project it is the model server you have already.
from model_app import build_app

from inf_middleware import CostLedger, TierLimiter, TokenMeter
from inf_middleware.accounts.jwt import JWTAccounts

ISSUER = "https://issuer.example"
AUDIENCE = "models"
KEY_ID = "2026-11"
TOKEN_SECONDS = 3600

TRY = """
Tokens of one hour, as the issuer signs them:
  export FREE={free}
  export ACME={acme}

Try it:
  curl -i http://{host}:{port}/v1/chat/completions -H "Authorization: Bearer $ACME" \\
    -d '{{"model": "inf-chat-v1", "messages": [{{"role": "user", "content": "tea?"}}]}}'
"""


class Issuer:
    """What an identity provider does: publishes its public keys, and signs tokens."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())

    def key_set(self) -> dict[str, list[dict[str, str]]]:
        """Return the public keys, as they would be at its `jwks_uri`."""
        public = ECAlgorithm.to_jwk(self._key.public_key(), as_dict=True)
        return {"keys": [{**public, "kid": KEY_ID, "alg": "ES256", "use": "sig"}]}

    def token(self, account: str, plan: str | None = None, seconds: int = TOKEN_SECONDS) -> str:
        """Sign a token for an account; without a plan it is on the level Free."""
        claims = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": account,
            "exp": int(time.time()) + seconds,
            **({"plan": plan} if plan else {}),
        }
        return jwt.encode(claims, self._key, "ES256", headers={"kid": KEY_ID})


def accounts_of(key_set: dict[str, list[dict[str, str]]]) -> JWTAccounts:
    """Make the look-up: who signs, for whom, how, and which claims name account and level."""
    return JWTAccounts(
        jwks=key_set,  # or "https://issuer.example/.well-known/jwks.json"
        algorithms=["ES256"],
        issuer=ISSUER,
        audience=AUDIENCE,
        account_claim="sub",
        tier_claim="plan",
    )


def main() -> None:
    """Serve until stopped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--ledger", default="sqlite:///inf-ledger.db")
    options = parser.parse_args()

    issuer = Issuer()
    app = build_app(pace_s=0.01)
    app.add_middleware(TokenMeter)
    app.add_middleware(TierLimiter, accounts=accounts_of(issuer.key_set()))
    app.add_middleware(CostLedger, ledger=options.ledger)

    free, acme = issuer.token("free-riders"), issuer.token("acme", "Tier1")
    print(TRY.format(host=options.host, port=options.port, free=free, acme=acme), flush=True)
    uvicorn.run(app, host=options.host, port=options.port, log_level="warning")


if __name__ == "__main__":
    main()
