"""Bodies of which nothing but names and usage is read tell the same as bodies that are read."""

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inf_middleware.domain.usage import TOKENS_MAX, Usage
from inf_middleware.wire.dialect import Dialect
from inf_middleware.wire.dialects import KNOWN
from inf_middleware.wire.dialects.anthropic_messages import MESSAGES
from inf_middleware.wire.dialects.openai_chat import CHAT
from inf_middleware.wire.dialects.openai_responses import RESPONSES
from inf_middleware.wire.dialects.unknown import UNKNOWN
from inf_middleware.wire.form import Answers
from inf_middleware.wire.reader import AnswerReader
from inf_middleware.wire.request import Request
from inf_middleware.wire.told import Told
from inf_middleware.wire.usage import UsageAt

DIALECTS = (*KNOWN, UNKNOWN)

PLAIN: dict[str, Any] = {
    "id": "one",
    "model": "m",
    "choices": [{"index": 0, "message": {"content": "Hi"}, "text": "Hi"}],
    "content": [{"type": "text", "text": "Hi"}],
    "output": [{"content": [{"text": "Hi"}]}],
    "usage": {"prompt_tokens": 30, "completion_tokens": 4, "input_tokens": 30, "output_tokens": 4},
}

# What makes a body another one, each by where it stands.
COUNTS = [None, True, -1, 0, 3, 1_000, 1.0, "7", [], {}, TOKENS_MAX, TOKENS_MAX + 1, 2**70]
WORDS = [None, 0, 5, "", "two", "error", "queued", "in_progress", "completed", [], {"id": "two"}]
REPORT = PLAIN["usage"]
CHANGES: list[tuple[tuple[str, ...], list[Any]]] = [
    *((("usage", name), COUNTS) for name in REPORT),
    (("usage", "cache_read_input_tokens"), COUNTS),
    (("usage", "cache_creation_input_tokens"), COUNTS),
    (("usage", "reasoning_tokens"), COUNTS),
    *(
        (("usage", f"{name}_details", part), COUNTS)
        for name in ("prompt_tokens", "completion_tokens", "input_tokens", "output_tokens")
        for part in ("cached_tokens", "cache_write_tokens", "created_cache_tokens")
    ),
    (("usage", "completion_tokens_details", "reasoning_tokens"), COUNTS),
    (("usage", "output_tokens_details", "reasoning_tokens"), COUNTS),
    *(((name,), WORDS) for name in ("id", "model", "type", "status", "usage")),
    (("error",), [None, False, "", {}, {"message": "no"}, "no"]),
    (("choices",), [None, [], 5]),
    *(
        ((name, *rest), values)
        for name in ("message", "response")
        for rest, values in (
            ((), [*WORDS, REPORT]),
            (("id",), WORDS),
            (("model",), WORDS),
            (("status",), WORDS),
            (("usage",), [None, {}, {"input_tokens": 7, "output_tokens": 8}]),
        )
    ),
]


def changed(changes: list[tuple[tuple[str, ...], Any]]) -> dict[str, Any]:
    body = copy.deepcopy(PLAIN)
    for path, value in changes:
        inner: Any = body
        for name in path[:-1]:
            if not isinstance(inner.get(name), dict):
                inner[name] = {}
            inner = inner[name]
        inner[path[-1]] = value
    return body


CHANGED = st.lists(
    st.sampled_from(CHANGES).flatmap(
        lambda one: st.tuples(st.just(one[0]), st.sampled_from(one[1]))
    ),
    max_size=3,
).map(changed)


def facts(reader: AnswerReader | Told) -> dict[str, Any]:
    told = {
        "usage": (reader.usage, reader.usage_of_all),
        "failed": (reader.failed, reader.deferred),
        "names": (reader.model, reader.response_id),
        "output": (reader.has_output, reader.output_so_far),
    }
    if isinstance(reader, Told):  # nothing need be counted
        return told | {
            "tells": (True, True, True),
            "final": True,
            "unread": (0, 0),
        }
    return told | {
        "tells": (reader.tells_input, reader.tells_output, reader.usage_covers),
        "final": reader.usage_final,
        "unread": (reader.unread_bytes, reader.text_overflow_bytes),
    }


def read(answers: Answers, body: dict[str, Any]) -> AnswerReader | Told:
    return Dialect(name="any", answers=answers).read_whole(Request(), json.dumps(body).encode())


def check(dialect: Dialect, data: bytes, request: Request) -> None:
    first, whole = dialect.read_whole(request, data), dialect.answer(request)
    whole._read_whole(data)
    assert facts(first) == facts(whole), data
    first = dialect.answer(request)
    first.whole(data)
    assert facts(first) == facts(whole), data
    assert first.unfinished == whole.unfinished, data
    assert first.texts() == whole.texts(), data
    assert first.text_characters == whole.text_characters
    assert facts(first) == facts(whole), data


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda one: one.name)
def test_what_is_read_of_a_body_first_is_what_reading_all_of_it_tells(dialect: Dialect) -> None:
    for path, values in CHANGES:
        for value in values:
            check(dialect, json.dumps(changed([(path, value)])).encode(), Request())


@given(
    st.sampled_from(DIALECTS),
    CHANGED,
    st.sampled_from([Request(), Request(choices=2), Request(choices=2, prompts=2)]),
    st.sampled_from([b"", b" ", b","]),
)
def test_so_it_is_of_a_body_that_is_odd_in_several_ways(
    dialect: Dialect, body: dict[str, Any], request: Request, rest: bytes
) -> None:
    check(dialect, json.dumps(body).encode() + rest, request)


@pytest.mark.parametrize(
    ("dialect", "usage"),
    [
        (CHAT, {"prompt_tokens": 3, "completion_tokens": 4}),
        (MESSAGES, {"input_tokens": 3, "output_tokens": 4}),
        (RESPONSES, {"input_tokens": 3, "output_tokens": 4}),
    ],
)
def test_of_a_plain_answer_nothing_but_names_and_usage_is_read(
    dialect: Dialect, usage: dict[str, int]
) -> None:
    body = json.dumps({"id": "one", "model": "m", "usage": usage}).encode()
    reader = dialect.read_whole(Request(), body)
    assert isinstance(reader, Told)
    assert (reader.usage.input_tokens, reader.usage.output_tokens) == (3, 4)
    assert (reader.response_id, reader.model) == ("one", "m")


@pytest.mark.parametrize("name", ["type", "report", "input", "output", "far", "class", "a-b"])
def test_an_api_may_give_its_facts_any_name(name: str) -> None:
    far = UsageAt(at="far.usage", input="i", output="o")
    for usage, id_ in (
        (UsageAt(at=name, input="i", output="o", cached_input="c"), "far.id"),
        (UsageAt(input=name, output="o", cached_input="c"), "far.id"),
        (UsageAt(input="i", output="o", cached_input=name), "far.id"),
        (UsageAt(input="i", output="o"), f"{name}.id"),
    ):
        report = {usage.input: 3, "o": 4, usage.cached_input: 2}
        body: dict[str, Any] = {"text": "Hi", "id": "two", usage.at: report}
        body.setdefault(id_.partition(".")[0], {})["id"] = "one"
        reader = read(Answers(usage=(far, usage), text=("text",), id=(id_, "id")), body)
        assert reader.usage == Usage(3, 4, 2 if usage.cached_input else 0), usage
        assert reader.response_id == "one"


def test_of_parts_told_twice_the_first_holds_also_where_it_is_none() -> None:
    usage = UsageAt(input="i", output="o", reasoning=("first", "second"))
    body = {"text": "Hi", "usage": {"i": 3, "o": 4, "first": 0, "second": 2}}
    reader = read(Answers(usage=(usage,), text=("text",)), body)
    assert reader.usage == Usage(3, 4)


def test_a_report_in_another_place_is_looked_for() -> None:
    near, far = UsageAt(input="i", output="o"), UsageAt(at="far.usage", input="i", output="o")
    for usage, said in (((near, far), Usage(5, 6)), ((far, near), Usage(3, 4))):
        body = {"usage": {"i": 3, "o": 4}, "far": {"usage": {"i": 5, "o": 6}}}
        reader = read(Answers(usage=usage, text=("text",)), body)
        assert reader.usage == said
