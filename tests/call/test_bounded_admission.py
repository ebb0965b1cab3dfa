import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inf_middleware import Account, Tier, TierLimiter
from inf_middleware.tokens.chat import OPENAI_PROFILE, bytes_bound, model_input
from inf_middleware.tokens.encodings import load_encoding
from tests.apps import JsonApp, completion, usage_of
from tests.driver import post

# Some 70 tokens in 900 characters: the body's bound is many times the truth.
WORDS = "international " * 64


def asked(text: str = WORDS, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    return {"model": "inf-chat-v1", "messages": messages, "max_tokens": 10, **more}


def limited(tokens: int, used: int = 100) -> Any:
    tier = Tier("Level", 1, 100, tokens)
    app = JsonApp(completion(usage=usage_of(used - 10, 10)))
    return TierLimiter(app, accounts={"sk": Account("acme", tier=tier)})


@pytest.mark.anyio
async def test_a_larger_request_is_admitted_by_the_bound_of_its_body() -> None:
    body = json.dumps(asked()).encode()
    answered = await post(limited(100_000), body, key="sk")
    assert answered.status == 200
    remaining = int(answered.headers["x-ratelimit-remaining-tokens"])
    assert remaining == 100_000 - (len(body) + OPENAI_PROFILE.per_reply + 10)


@pytest.mark.anyio
async def test_nobody_is_refused_for_a_bound_that_fits_by_its_true_number() -> None:
    app = limited(3_000, used=2_800)
    assert (await post(app, asked("hello"), key="sk")).status == 200
    answered = await post(app, asked(), key="sk")
    assert answered.status == 200  # some 80 of the 200 that are left; the bound is above 900


@pytest.mark.anyio
async def test_a_refusal_tells_the_true_number_and_not_the_bound() -> None:
    app = limited(3_000, used=2_950)
    assert (await post(app, asked("hello"), key="sk")).status == 200
    answered = await post(app, asked(), key="sk")
    assert answered.status == 429
    true = len(load_encoding("o200k_base").encode_ordinary(WORDS)) + 1 + 3 + 3 + 10
    assert f"{true:,}" in answered.json["error"]["message"]


PARTS = st.one_of(
    st.text(max_size=40),
    st.fixed_dictionaries({"type": st.just("text"), "text": st.text(max_size=40)}),
    st.fixed_dictionaries(
        {"type": st.sampled_from(["image_url", "input_audio", "document"]), "text": st.just("")}
    ),
)


@given(
    st.lists(
        st.fixed_dictionaries(
            {"role": st.sampled_from(["user", "assistant"]), "content": st.lists(PARTS)},
            optional={"name": st.text(min_size=1, max_size=8)},
        )
    ),
    st.booleans(),
)
def test_no_request_has_more_input_than_its_bound(
    messages: list[dict[str, Any]], ascii_only: bool
) -> None:
    value = {"messages": messages}
    body = json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    bound = bytes_bound(body, OPENAI_PROFILE)
    texts, flat = model_input([messages])
    if bound is not None:
        size = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
        assert size + flat <= bound
