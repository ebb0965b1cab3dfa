"""FastAPI with two workers whose accounts share their limits on one Redis.

redis-server --port 6379 &
STORAGE=redis://localhost:6379 uvicorn --app-dir examples fastapi_redis:app --workers 2

Whichever worker answers, a Free account gets 4 requests a minute, and not 8.
"""

import os
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request

from inf_middleware import Account, CostLedger, TierLimiter, TokenMeter, current_call

app = FastAPI()


@app.post("/v1/chat/completions")
async def chat(request: Request) -> dict[str, Any]:
    """Answer; your model server is here."""
    asked = await request.json()
    call = current_call(request)
    account, tier = call.account, call.tier
    assert account is not None
    assert tier is not None
    text = f"Hello {account.id}, on level {tier.name}: served by process {os.getpid()}."
    return {
        "id": call.id,
        "object": "chat.completion",
        "created": 0,
        "model": asked["model"],
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text},
                "finish_reason": "stop",
            }
        ],
    }


ACCOUNTS = {
    "sk-trial": Account("newcomer"),
    "sk-team": Account("acme", recharged="1000"),
}

app.add_middleware(TokenMeter)
app.add_middleware(
    TierLimiter,
    accounts=ACCOUNTS,
    tiers=Path(__file__).with_name("tiers.toml"),
    storage=os.environ.get("STORAGE", "redis://localhost:6379"),
    on_storage_error="local",  # without Redis each worker goes on alone, with its share
)
app.add_middleware(CostLedger, ledger=os.environ.get("LEDGER", "sqlite:///inf-ledger.db"))
