"""A model server whose callers see their own account, and whose payment backend recharges it.

python examples/account_page.py --port 8000

Open http://127.0.0.1:8000/account in a browser, and give the key that is printed as the password.
"""

import argparse
import asyncio
import secrets

import uvicorn
from fastapi import FastAPI

# The example next to this one; in your project it is the model server you have already.
from model_app import build_app

from inf_middleware import Gate, account_routes, admin_routes, open_ledger

TRY = """
The page of an account: open it, with any user name and the key as the password:
  http://{host}:{port}/account
  key: {key}

The same as JSON:
  curl -s http://{host}:{port}/account -H "Authorization: Bearer {key}"

Use something, and look again:
  curl -s http://{host}:{port}/v1/chat/completions -H "Authorization: Bearer {key}" \\
    -d '{{"model": "inf-chat-v1", "messages": [{{"role": "user", "content": "tea?"}}]}}'

What a payment backend does, once per reference, however often it is sent:
  curl -s http://{host}:{port}/admin/recharges -H "Authorization: Bearer {admin_key}" \\
    -d '{{"account": "acme", "amount": "3000.00", "reference": "alipay:8812"}}'
"""


def build(ledger: str, admin_key: str) -> FastAPI:
    """Put both kinds of routes into an app, and a Gate around it."""
    app = build_app(pace_s=0.01)
    app.router.routes += [*account_routes(), *admin_routes(admin_key=admin_key)]
    # Accounts are kept in the ledger; the admin routes have a key of their own, and no account.
    app.add_middleware(Gate, accounts=ledger, ledger=ledger, mode="prepaid", exempt=["/admin/*"])
    return app


async def first_key(ledger: str) -> str:
    """Make an account with some balance, and a key for it."""
    async with await open_ledger(ledger) as book:
        await book.recharge("acme", "500.00", reference="alipay:8811")
        key = (await book.issue_key("acme", label="example")).key
    assert key is not None
    return key


def main() -> None:
    """Serve until stopped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--ledger", default="sqlite:///inf-ledger.db")
    options = parser.parse_args()

    key, admin_key = asyncio.run(first_key(options.ledger)), secrets.token_hex(32)
    shown = {"host": options.host, "port": options.port, "key": key, "admin_key": admin_key}
    print(TRY.format(**shown), flush=True)
    app = build(options.ledger, admin_key)
    uvicorn.run(app, host=options.host, port=options.port, log_level="warning")


if __name__ == "__main__":
    main()
