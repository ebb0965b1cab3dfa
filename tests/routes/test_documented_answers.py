"""The pages of documentation show answers as they are: each field, and no other."""

import asyncio
import json
import re
from pathlib import Path
from typing import Any

from starlette.applications import Starlette

from inf_middleware import admin_routes
from tests.driver import post
from tests.routes.pages import build

DOCS = Path(__file__).parents[2] / "docs"
KEY = "change-me-to-what-openssl-rand-prints"


def documented(page: str) -> Any:
    (block,) = re.findall(r"```json\n(.*?)```", (DOCS / page).read_text("utf-8"), re.DOTALL)
    return json.loads(block)


def form_of(value: Any) -> Any:
    """What a value is made of; of a list its first."""
    if isinstance(value, dict):
        return {name: form_of(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [form_of(inner) for inner in value[:1]]
    return "number" if isinstance(value, int | float) and value is not True else type(value)


def test_the_account_is_told_as_documented(tmp_path: Path) -> None:
    app = build(tmp_path / "l.db")

    async def go() -> Any:
        await post(app, {"model": "inf-chat-v1", "messages": []}, key="sk-acme")
        return await post(app, b"", method="GET", path="/account", key="sk-acme")

    assert form_of(asyncio.run(go()).json) == form_of(documented("account-page.md"))


def test_a_recharge_is_told_as_documented(tmp_path: Path) -> None:
    app = Starlette(routes=admin_routes(admin_key=KEY, ledger=f"sqlite:///{tmp_path}/l.db"))
    body = {"account": "acme", "amount": "500.00", "reference": "alipay:8812"}
    told = asyncio.run(post(app, body, path="/admin/recharges", key=KEY)).json
    assert form_of(told) == form_of(documented("admin.md"))
