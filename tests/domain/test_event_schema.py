"""The shipped schema is what events are, and it bites."""

import asyncio
import copy
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from cloudevents.core.bindings.http import HTTPMessage, from_http_event
from cloudevents.core.formats.json import JSONFormat
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from inf_middleware import BillingEvent, Usage
from tests.apps import JsonApp, StreamApp, completion, delta, event, usage_chunk, usage_of
from tests.domain.test_events import FIELDS
from tests.driver import post
from tests.events import event_of
from tests.kit import CHAT, STREAM, House

SCHEMA = json.loads((files("inf_middleware") / "domain" / "event.schema.json").read_text("utf-8"))
VALIDATOR = Draft202012Validator(SCHEMA, format_checker=Draft202012Validator.FORMAT_CHECKER)


def faults(body: bytes | dict[str, Any]) -> list[str]:
    told = json.loads(body) if isinstance(body, bytes) else body
    return [error.message for error in VALIDATOR.iter_errors(told)]


def test_it_is_a_schema_and_names_the_fields_of_the_design_in_order() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    data = SCHEMA["$defs"]["data"]
    assert list(data["properties"]) == data["required"] == FIELDS
    assert SCHEMA["required"] == list(SCHEMA["properties"]) == list(event_of().to_cloudevent())


@given(
    st.builds(
        event_of,
        st.integers(0, 10**6),
        usage=st.builds(Usage, st.integers(0, 10**9), st.integers(0, 10**9)),
        kind=st.sampled_from(["usage", "correction", "recharge", "grant", "withdrawal"]),
        outcome=st.sampled_from(SCHEMA["$defs"]["data"]["properties"]["outcome"]["enum"]),
        model=st.none() | st.text(st.characters(exclude_categories=["Cs"])),
        metadata=st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), st.integers()),
    )
)
def test_every_event_conforms(made: BillingEvent) -> None:
    assert faults(made.encode()) == []


WRONG: list[tuple[str, Any]] = [
    ("id", "ord-1"),
    ("time", "2026-11-24T00:00:00+08:00"),
    ("source", "urn:other"),
    ("data.input_tokens", "5"),
    ("data.input_tokens", -1),
    ("data.input_tokens", 1.5),
    ("data.amount_nano", 10_000),
    ("data.amount_nano", "1e4"),
    ("data.amount", "1.0000000001"),
    ("data.basis", "guessed"),
    ("data.kind", "refund"),
    ("data.unpriced", 0),
    ("data.metadata", None),
    ("data.lines", [{"meter": "input_tokens"}]),
]


@pytest.mark.parametrize(("field", "value"), WRONG, ids=[f"{f}={v}" for f, v in WRONG])
def test_what_is_no_event_does_not(field: str, value: Any) -> None:
    told = copy.deepcopy(event_of().to_cloudevent())
    *within, name = field.split(".")
    holder = told[within[0]] if within else told
    holder[name] = value
    assert faults(told)
    del holder[name]
    assert faults(told)


PROMPT, REPLY, KEY = "pr0mpt-of-the-caller", "r3ply-of-the-model", "sk-five"
STREAMED = [event(delta(REPLY)), event(delta("", finish="stop")), event(usage_chunk(5, 6))]


class Raising:
    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        raise ValueError(PROMPT)


CALLS: list[tuple[str, Any, dict[str, Any]]] = [
    ("json", JsonApp(completion(REPLY, usage=usage_of(5, 6))), CHAT),
    ("counted", JsonApp(completion(REPLY)), CHAT),
    ("stream", StreamApp([*STREAMED, event("[DONE]")]), STREAM),
    ("torn stream", StreamApp(STREAMED[:1], closes=False), STREAM),
    ("refused by the app", JsonApp({"error": {"message": PROMPT}}, status=500), CHAT),
    ("raised", Raising(), CHAT),
    ("unpriced", JsonApp(completion(REPLY, model="x")), {**CHAT, "model": "x"}),
]


@pytest.mark.parametrize(("app", "body"), [call[1:] for call in CALLS], ids=[c[0] for c in CALLS])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_event_of_a_call_conforms_and_holds_no_prompt_no_reply_and_no_key(
    tmp_path: Path, app: Any, body: dict[str, Any]
) -> None:
    house = House(app, tmp_path)
    asked = {
        **body,
        "messages": [{"role": "user", "content": PROMPT}],
        "user": PROMPT,
        "metadata": {"x": PROMPT},
    }

    async def go() -> None:
        try:
            await post(house.app, asked, key=KEY)
        except ValueError:
            assert isinstance(app, Raising)
        await house.close()

    asyncio.run(go())
    (made,) = house.events
    told = made.encode()
    assert faults(told) == []
    for secret in (PROMPT, REPLY, KEY):
        assert secret.encode() not in told
    headers = {"content-type": "application/cloudevents+json"}
    read = from_http_event(HTTPMessage(headers=headers, body=told), JSONFormat())
    assert read.get_id() == made.id
