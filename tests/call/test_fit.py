"""What can never work is refused before the model server works."""

import asyncio
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from inf_middleware import Account, CostLedger, Price, Prices, Tier, TierLimiter, TokenMeter
from tests.apps import JsonApp, completion, usage_of
from tests.driver import Answered, post
from tests.kit import ACCOUNTS, CHAT, Closing, House, Opaque

PRICES = Prices(
    [
        Price("plain", Decimal(10), Decimal(10), context=100),
        Price(
            "able",
            Decimal(10),
            Decimal(10),
            context=100,
            features=["function calls", "structured output"],
        ),
        Price("vast", Decimal(10), Decimal(10)),
    ]
)
TOOLS = [{"type": "function", "function": {"name": "f"}}]


def ask(tmp_path: Path, body: dict[str, Any], **more: Any) -> tuple[Answered, JsonApp]:
    app = JsonApp(completion(usage=usage_of(9, 2)))
    path = more.pop("path", "/v1/chat/completions")
    house = House(app, tmp_path, prices=PRICES, **more)

    async def go() -> Answered:
        answered = await post(house.app, body, key="sk-five", path=path)
        await house.close()
        return answered

    return asyncio.run(go()), app


def chat(model: str = "plain", words: int = 1, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "word " * words}]
    return {"model": model, "messages": messages, **more}


def of_words(text: str) -> int:
    return len(text.split())


@pytest.mark.parametrize(
    ("body", "fits"),
    [
        (chat(max_tokens=98), True),
        (chat(max_tokens=99), False),
        (chat(max_tokens=10**18), False),
        (chat(words=99), True),
        (chat(words=100), False),
        (chat(words=49, max_tokens=50), True),
        (chat(words=50, max_tokens=50), False),
        (chat(words=5000, max_tokens=50), False),
        (chat("vast", words=5000, max_tokens=10**6), True),
        (chat("of no list", words=5000, max_tokens=10**6), True),
        (chat(words=5000, truncate_prompt_tokens=10), True),
    ],
)
def test_what_certainly_exceeds_the_context_is_a_400(
    body: dict[str, Any], fits: bool, tmp_path: Path
) -> None:
    # The role is a word of the input, too.
    answered, app = ask(tmp_path, body, counter=of_words)
    assert len(app.bodies) == fits
    assert answered.status == (200 if fits else 400)
    if not fits:
        error = answered.json["error"]
        assert (error["code"], error["param"]) == ("context_length_exceeded", "messages")
        assert "context of 100 tokens" in error["message"]
        assert answered.headers["x-should-retry"] == "false"


@pytest.mark.parametrize(("words", "fits"), [(110, True), (130, False)])
def test_an_encoding_that_is_not_the_models_own_is_not_certain(
    words: int, fits: bool, tmp_path: Path
) -> None:
    assert (ask(tmp_path, chat(words=words))[0].status == 200) is fits


@pytest.mark.parametrize("order", [[CostLedger], [TokenMeter]])
def test_the_context_holds_whoever_stands_there(order: Any, tmp_path: Path) -> None:
    app = JsonApp(completion(usage=usage_of(9, 2)))
    house = House(app, tmp_path, order=order)

    async def go() -> int:
        body = {**CHAT, "max_tokens": 40_000}
        return (await post(house.app, body, key="sk-five")).status

    assert asyncio.run(go()) == 400
    assert app.bodies == []


def test_several_prompts_have_a_context_each(tmp_path: Path) -> None:
    body = {"model": "plain", "prompt": ["word " * 60] * 3, "max_tokens": 9}
    assert ask(tmp_path, body, path="/v1/completions", counter=of_words)[0].status == 200
    body["prompt"] = "word " * 180
    refused = ask(tmp_path, body, path="/v1/completions", counter=of_words)[0]
    assert refused.json["error"]["param"] == "prompt"


def test_an_input_over_level_and_context_is_said_of_the_level(tmp_path: Path) -> None:
    accounts = {"sk-five": Account("small", tier=Tier("Small", 1, 10, 50))}
    refused = ask(tmp_path, chat(words=200), accounts=accounts)[0]
    assert refused.json["error"]["code"] == "tokens_exceed_tier_limit"


@pytest.mark.parametrize(
    ("path", "asked", "param"),
    [
        ("/v1/chat/completions", {"tools": TOOLS}, "tools"),
        ("/v1/chat/completions", {"response_format": {"type": "json_object"}}, "response_format"),
        ("/v1/chat/completions", {"guided_regex": "a+"}, "guided_regex"),
        ("/v1/chat/completions", {"tools": [], "response_format": {"type": "text"}}, None),
        ("/v1/responses", {"text": {"format": {"type": "json_schema"}}}, "text.format"),
        ("/v1/responses", {"text": {"format": {"type": "text"}}}, None),
        ("/v1/messages", {"tools": TOOLS}, "tools"),
        ("/api/chat", {"format": "json"}, "format"),
    ],
)
def test_features_that_a_model_lacks_are_refused_where_they_are_enforced(
    path: str, asked: dict[str, Any], param: str | None, tmp_path: Path
) -> None:
    lacks = param is not None
    for model, enforce, refused in (
        ("plain", True, lacks),
        ("able", True, False),
        ("plain", False, False),
        ("of no list", True, False),
    ):
        house = {"enforce_features": enforce, "path": path}
        answered, app = ask(tmp_path, {**chat(model), **asked}, **house)
        assert answered.status == (400 if refused else 200)
        assert len(app.bodies) == (not refused)
        if refused and path != "/v1/messages":
            error = answered.json["error"]
            assert (error["code"], error["param"]) == ("unsupported_parameter", param)


@pytest.mark.parametrize("between", [lambda app: app, Opaque], ids=["adjacent", "opaque"])
def test_features_are_enforced_behind_those_who_have_counted_the_input(
    between: Any, tmp_path: Path
) -> None:
    app = JsonApp(completion(usage=usage_of(9, 2)))
    uri = f"sqlite:///{tmp_path / 'ledger.db'}"
    inner: Any = CostLedger(Closing(app), ledger=uri, prices=PRICES, enforce_features=True)
    stack = TokenMeter(TierLimiter(between(inner), accounts=ACCOUNTS))
    answered = asyncio.run(post(stack, {**chat(), "tools": TOOLS}, key="sk-five"))
    assert (answered.status, app.bodies) == (400, [])
