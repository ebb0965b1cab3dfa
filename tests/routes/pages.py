"""Accounts and ledgers for the account's page: an empty one, a full one, one with an evil name."""

import asyncio
import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from inf_middleware import Account, Gate, Prices, Tier, Usage, account_routes
from inf_middleware.domain.events import priced
from inf_middleware.domain.ids import uuid7
from inf_middleware.domain.moments import written
from inf_middleware.domain.money import decimal_string
from inf_middleware.ledgers.book import LedgerBook
from inf_middleware.ledgers.sqlite import SqliteLedger
from tests.events import event_of

PRICES = Prices.default()

EVIL = "<script>alert(1)</script>"

ACCOUNTS = {
    "sk-acme": Account("acme", recharged="500"),
    "sk-other": Account("umbrella", recharged="100000"),
    "sk-empty": Account("newcomer"),
    "sk-evil": Account(EVIL, tier=Tier('<b onmouseover="alert(2)">', 2, 10, 1_000)),
    "sk-gone": Account("gone", suspended=True),
    "sk-long": Account("a-very-long-name-without-a-place-to-break-it" * 4, recharged="3000"),
}


async def chat(request: Request) -> JSONResponse:
    asked = await request.json()
    usage = {"prompt_tokens": 1200, "completion_tokens": 300, "total_tokens": 1500}
    return JSONResponse(
        {"id": "c", "model": asked["model"], "choices": [], "usage": usage},
    )


def build(path: Path, **options: Any) -> Starlette:
    """An app whose routes find the Gate around them."""
    app = Starlette(
        routes=[Route("/v1/chat/completions", chat, methods=["POST"]), *account_routes()]
    )
    options = {"accounts": ACCOUNTS, "ledger": f"sqlite:///{path}", **options}
    app.add_middleware(Gate, **options)
    return app


MODELS = ("inf-chat-v1", "inf-chat-fin-v1", "inf-med-chat-v1", "inf-chat-int-v1")


def fill(
    path: Path,
    account: str,
    *,
    models: Sequence[str] = MODELS,
    days: int = 30,
    now: datetime | None = None,
) -> None:
    """Write a month of calls, a recharge and a grant."""
    now = now or datetime.now(UTC)
    random = Random(7)
    events = []
    for back in range(days):
        for number, model in enumerate(models):
            for _ in range(random.randrange(1, 4)):
                at = now - timedelta(days=back, seconds=random.randrange(60))
                weekend = 0.3 if at.weekday() > 4 else 1.0
                tokens = int(random.lognormvariate(11, 0.6) * weekend / (number + 1))
                usage = Usage(tokens, tokens // random.randrange(2, 5))
                found = PRICES.find(model, at)
                lines, nano = priced(found.price, usage) if found else ((), 0)
                moment = written(at)
                number_ns = int(at.timestamp()) * 1_000_000_000
                events.append(
                    event_of(
                        usage=usage,
                        request_id=uuid7(number_ns),
                        account=account,
                        model=model,
                        lines=lines,
                        amount_nano=str(nano),
                        amount=decimal_string(nano),
                        started_at=moment,
                        settled_at=moment,
                    )
                )

    async def go() -> None:
        ledger = SqliteLedger(path)
        async with LedgerBook(ledger) as book:
            await book.recharge(account, "500.00", reference=f"pay-{account}")
            await book.grant(account, "12.50", reference=f"welcome-{account}")
            await asyncio.gather(*[ledger.settle(event) for event in events])

    asyncio.run(go())


def shown(text: str | bytes) -> Any:
    """What the JSON says."""
    return json.loads(text)
