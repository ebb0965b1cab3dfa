"""The public API as a user would write it: never run, checked by mypy and pyright."""

from collections.abc import Sequence
from pathlib import Path

import tiktoken
from fastapi import FastAPI, Request
from starlette.applications import Starlette
from starlette.requests import HTTPConnection

from inf_middleware import (
    Account,
    BillingEvent,
    CostLedger,
    Gate,
    Price,
    Prices,
    Tier,
    TierLimiter,
    Tiers,
    TokenMeter,
    Usage,
    account_routes,
    admin_routes,
    current_call,
    open_ledger,
)
from inf_middleware.accounts.header import HeaderAccounts
from inf_middleware.accounts.jwt import JWTAccounts
from inf_middleware.accounts.scope import ScopeAccounts
from inf_middleware.ports import AccountLookup, Rejected, Sink, TokenCounter


async def send(events: Sequence[BillingEvent]) -> None:
    for event in events:
        total: int = event.input_tokens + event.output_tokens
        if total > 10:
            raise Rejected({event.id: f"{event.account} {event.amount}"})


async def lookup(key: str | None, connection: HTTPConnection) -> Account | None:
    return Account(connection.headers["x-team"]) if key else None


class CountingSink:
    async def __call__(self, events: Sequence[BillingEvent], /) -> None: ...


def words(text: str) -> int:
    return len(text.split())


sink: Sink = send
other_sink: Sink = CountingSink()
accounts: AccountLookup = lookup
counter: TokenCounter = words

app = FastAPI()
app.add_middleware(TokenMeter)
app.add_middleware(TierLimiter, accounts={"sk-demo": "free"}, storage="memory://")
app.add_middleware(CostLedger, sinks={"mine": send, "file": "jsonl:events.jsonl"})

starlette = Starlette()
starlette.add_middleware(
    TokenMeter, counter=words, include_usage=False, assumed_output_tokens=512, deployment="eu"
)
starlette.add_middleware(TokenMeter, counter=tiktoken.get_encoding("o200k_base"))
starlette.add_middleware(TierLimiter, accounts=lookup, tiers="tiers.toml", anonymous=None)
starlette.add_middleware(
    CostLedger,
    prices=Prices([Price("m", input="1", output="2", cached_input="0.5")]),
    serves=["m"],
    unpriced=Price("*", "1", "1"),
    ledger="sqlite:///x.db",
    sinks={"mine": CountingSink()},
)
starlette.add_middleware(Gate, accounts={"sk-demo": Account("acme", recharged="500.00")})
starlette.add_middleware(Gate, accounts="accounts.toml", trusted_proxies=["10.0.0.0/8", "unix"])
starlette.add_middleware(Gate, accounts=Path("accounts.toml"), accounts_ttl_s=30)
tokens: AccountLookup = JWTAccounts(
    jwks="https://issuer.example/jwks.json",
    algorithms=["RS256"],
    issuer="https://issuer.example",
    audience="models",
    tier_claim=["org", "plan"],
)
users: AccountLookup = ScopeAccounts(account=lambda user: Account(user.identity, suspended=True))
gateway: AccountLookup = HeaderAccounts("x-account", trusted=["10.0.0.7"], tier="tier1")
starlette.add_middleware(Gate, accounts=tokens)
wrapped = Gate(starlette, tiers=Tiers([Tier("only", 1, 10, 1000, requests=["1000/day"])]))


@app.post("/v1/chat/completions")
async def chat(request: Request) -> dict[str, str]:
    call = current_call(request)
    usage: Usage | None = call.usage
    call.report(input_tokens=1, output_tokens=usage.output_tokens if usage else 0)
    return {"account": call.account.id if call.account else ""}


async def top_up() -> str:
    async with await open_ledger("sqlite:///x.db") as ledger:
        await ledger.create_account("acme", tier="Tier2", credit_limit="10")
        receipt = await ledger.recharge("acme", "500.00", reference="alipay:8812")
        key: str | None = (await ledger.issue_key("acme")).key
        return f"{receipt.account.tier} {key}"


app.router.routes += account_routes()
app.router.routes += admin_routes(admin_key="x" * 32, ledger="sqlite:///x.db")
level: str = Tiers.default().for_recharge("500").name
