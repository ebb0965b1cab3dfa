"""However many choices an answer has, and however they are told, all of them are billed."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.apps import JsonApp, completion, delta, event, usage_chunk, usage_of
from tests.call.test_dialect_calls import Sends, serve
from tests.kit import CHAT, STREAM, House
from tests.wire.fixtures import EVENTS

MADE = (5, 20, 20)  # tokens of each choice, which grow side by side
ALL = sum(MADE)
DONE = event("[DONE]")


def chunk(index: int, text: str, finish: str | None, made: int) -> list[dict[str, Any]]:
    """An event of OpenAI's completions, as vLLM with running totals."""
    choice = {"index": index, "text": text, "finish_reason": finish}
    return [{"id": "cmpl-1", "model": "m", "choices": [choice], "usage": usage_of(7, made)}]


def alone(index: int, text: str, finish: str | None, made: int) -> list[dict[str, Any]]:
    """What llama.cpp says of a choice in a chat: its usage as soon as it is finished."""
    told = [delta(text, index=index, finish=finish)]
    return [*told, usage_chunk(7, made)] if finish else told


def llama(index: int, text: str, finish: str | None, made: int) -> list[dict[str, Any]]:
    """An event of llama.cpp's own."""
    told = {"tokens_predicted": made, "tokens_evaluated": 7}
    return [{"index": index, "content": text, "stop": finish is not None, **told}]


def grown(form: Any) -> list[dict[str, Any]]:
    return [
        one
        for step in range(max(MADE))
        for index, made in enumerate(MADE)
        if step < made
        for one in form(index, " word", "stop" if step + 1 == made else None, step + 1)
    ]


@pytest.mark.parametrize("asks", [True, False], ids=["its client asks", "we ask"])
def test_choices_that_tell_their_usage_each_for_itself_are_billed_together(
    asks: bool, tmp_path: Path
) -> None:
    told = grown(alone)
    house = House(Sends([*map(event, told), DONE], EVENTS), tmp_path)
    options = {"stream_options": {"include_usage": True}} if asks else {}
    answered = serve(house, {**STREAM, "n": len(MADE), **options})
    shown = told if asks else [one for one in told if one["choices"]]
    assert answered.body == b"".join([*map(event, shown), DONE])
    record = house.record
    assert (record["input_tokens"], record["output_tokens"]) == (7, ALL)
    assert record["basis"] == "reported"


def test_who_leaves_when_the_first_of_several_choices_is_told_pays_for_all_of_them(
    tmp_path: Path,
) -> None:
    told = grown(alone)
    first = next(place for place, one in enumerate(told) if not one["choices"])
    pieces = [event(one) for one in told[: first + 7]]
    house = House(Sends(pieces, EVENTS), tmp_path)
    serve(house, {**STREAM, "n": len(MADE)}, leave_after=first + 6)
    made = sum("finish_reason" in one["choices"][0] for one in told[: first + 7] if one["choices"])
    assert house.record["output_tokens"] == made > MADE[0]


@pytest.mark.parametrize(
    ("path", "form", "asked", "inputs"),
    [
        ("/completions", llama, {"n_cmpl": 3}, 7),
        ("/v1/completions", chunk, {"n": 3, "n_predict": 1, "n_cmpl": 1}, 7),
        # As of `prompt_embeds`: each has a prompt of its own.
        ("/completions", llama, {}, 21),
        ("/v1/completions", chunk, {}, 21),
    ],
    ids=["by another name", "by two names", "unasked, llama.cpp", "unasked, vLLM"],
)
def test_no_choice_goes_on_unmetered_when_another_has_ended(
    path: str, form: Any, asked: dict[str, Any], inputs: int, tmp_path: Path
) -> None:
    pieces = [event(one) for one in grown(form)]
    house = House(Sends(pieces, EVENTS), tmp_path)
    options = {"stream_options": {"continuous_usage_stats": True}}
    body = {"model": "inf-chat-v1", "prompt": "Say it", "stream": True, **options, **asked}
    assert serve(house, body, path=path).body == b"".join(pieces)
    record = house.record
    assert (record["input_tokens"], record["output_tokens"]) == (inputs, ALL)
    assert record["basis"] == "reported"


@pytest.mark.parametrize(
    ("told", "outputs", "basis"),
    [
        ({"timings": {"prompt_n": 7, "predicted_n": MADE[0]}}, ALL, "counted"),
        ({}, MADE[0], "reported"),  # by any other server it is of the whole
    ],
    ids=["llama.cpp", "others"],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize("asked", [{"n": 3}, {"n_cmpl": 3}])
def test_of_a_whole_answer_that_tells_the_usage_of_its_first_choice_all_are_billed(
    asked: dict[str, Any],
    path: str,
    told: dict[str, Any],
    outputs: int,
    basis: str,
    tmp_path: Path,
) -> None:
    texts = [" word" * made for made in MADE]
    choices = [
        {"index": index, "text": text, "message": {"role": "assistant", "content": text}}
        for index, text in enumerate(texts)
    ]
    answer = {"id": "c", "model": "m", "choices": choices, "usage": usage_of(7, MADE[0]), **told}
    house = House(JsonApp(answer), tmp_path)
    serve(house, {**CHAT, "prompt": "Say it", **asked}, path=path)
    record = house.record
    assert (record["input_tokens"], record["output_tokens"]) == (7, outputs)
    assert record["basis"] == basis


def test_a_report_before_the_text_is_not_the_end(tmp_path: Path) -> None:
    pieces = [usage_chunk(7, 0), *(delta(" word") for _ in range(9)), delta("", finish="stop")]
    house = House(Sends([*map(event, pieces), DONE], EVENTS), tmp_path)
    serve(house, {**STREAM, "stream_options": {}})
    assert (house.record["input_tokens"], house.record["output_tokens"]) == (7, 9)


def reserved(asked: dict[str, Any], path: str, tmp_path: Path) -> int:
    folder = tmp_path / str(len(list(tmp_path.iterdir())))
    folder.mkdir()
    house = House(JsonApp(json.dumps(completion(usage=usage_of(5, 5))).encode()), folder)
    answered = serve(house, {**CHAT, "prompt": "Say it", **asked}, path=path)
    return 768_000 - int(answered.headers["x-ratelimit-remaining-tokens"])


PATHS = pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/completion"])


@PATHS
def test_choices_and_caps_are_reserved_by_the_names_that_llama_cpp_gives_them(
    path: str, tmp_path: Path
) -> None:
    one = reserved({"max_tokens": 300}, path, tmp_path)
    for by_name in ({"n": 3}, {"n_cmpl": 3}, {"n": 3, "n_cmpl": 1}, {"n": 1, "n_cmpl": 3}):
        assert reserved({"max_tokens": 300, **by_name}, path, tmp_path) == one + 600
    assert reserved({"max_tokens": 1, "n_predict": 300}, path, tmp_path) == one


@PATHS
def test_who_asks_for_no_end_by_one_cap_has_no_cap_by_another(path: str, tmp_path: Path) -> None:
    without = reserved({}, path, tmp_path)
    assert reserved({"max_tokens": 1, "n_predict": -1}, path, tmp_path) == without
