"""Whatever fields a client sends, its answer is read in the form that it comes in."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.apps import JsonApp, completion, delta, event, usage_of
from tests.call.test_dialect_calls import Sends, serve
from tests.driver import post, scope_of
from tests.kit import House
from tests.wire.fixtures import EVENTS

MODEL = "inf-chat-v1"
WORDS = 40


def text_chunk(text: str, **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "text": text, "finish_reason": None}
    return {
        "id": "cmpl-1",
        "object": "text_completion",
        "model": MODEL,
        "choices": [choice],
        **more,
    }


def sglang(count: int) -> dict[str, Any]:
    told = {"id": "x", "prompt_tokens": 50, "completion_tokens": count, "cached_tokens": 0}
    return {"text": " word" * count, "meta_info": told}


def llama(text: str, made: int, *, stop: bool = False) -> dict[str, Any]:
    return {"index": 0, "content": text, "stop": stop, "tokens_predicted": made,
            "tokens_evaluated": 5}  # fmt: skip


ASKED = json.dumps({"model": MODEL, "question": "Say it"}).encode()
COMPLETED = {**text_chunk(" word" * WORDS), "usage": usage_of(5, WORDS)}
CHUNKS = [text_chunk(" word") for _ in range(WORDS)]

# Path, what is asked for, and what the server answers: whole, and as events.
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any], list[dict[str, Any]]]] = {
    "OpenAI's completions, with a field of llama.cpp's": (
        "/v1/completions",
        {"prompt": "Say it", "max_tokens": 200, "n_predict": 1},
        COMPLETED,
        [*CHUNKS, {**text_chunk(""), "choices": [], "usage": usage_of(5, WORDS)}],
    ),
    "SGLang's, with a field of TGI's": (
        "/generate",
        {"text": "Say it", "inputs": "", "sampling_params": {"max_new_tokens": 200}},
        sglang(WORDS),
        [sglang(number + 1) for number in range(WORDS)],
    ),
    "completions by SageMaker's path, with the field of chats": (
        "/invocations",
        {"messages": None, "prompt": "Say it", "max_tokens": 200},
        COMPLETED,
        [*CHUNKS, {**text_chunk(""), "choices": [], "usage": usage_of(5, WORDS)}],
    ),
    "llama.cpp's own, on a path of OpenAI's": (
        "/completions",
        {"prompt": "Say it", "max_tokens": 200},
        llama(" word" * WORDS, WORDS, stop=True),
        [*(llama(" word", number + 1) for number in range(WORDS)), llama("", WORDS, stop=True)],
    ),
    "OpenAI's chat by llama.cpp, on a path of Ollama's": (
        "/api/chat",
        {"messages": [{"role": "user", "content": "Say it"}]},
        completion(" word" * WORDS, usage=usage_of(5, WORDS)),
        [*(delta(" word") for _ in range(WORDS)), {**delta(""), "choices": [],
         "usage": usage_of(5, WORDS)}],
    ),
}  # fmt: skip

EACH = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def without_usage(value: dict[str, Any]) -> dict[str, Any]:
    left_out = {"usage", "meta_info", "tokens_predicted", "tokens_evaluated"}
    return {name: one for name, one in value.items() if name not in left_out}


@EACH
@pytest.mark.parametrize("is_told", [True, False], ids=["with usage", "without"])
def test_a_whole_answer_is_billed_in_the_form_it_comes_in(
    case: tuple[str, Any, dict[str, Any], Any], is_told: bool, tmp_path: Path
) -> None:
    path, asked, whole, _ = case
    answer = whole if is_told else without_usage(whole)
    house = House(JsonApp(answer), tmp_path)
    assert serve(house, {"model": MODEL, "stream": False, **asked}, path=path).json == answer
    record = house.record
    assert record["output_tokens"] == WORDS
    assert record["input_tokens"] >= 2
    assert record["basis"] == ("reported" if is_told else "counted")


@EACH
@pytest.mark.parametrize("is_told", [True, False], ids=["with usage", "cut before it"])
def test_a_stream_is_billed_in_the_form_it_comes_in(
    case: tuple[str, Any, Any, list[dict[str, Any]]], is_told: bool, tmp_path: Path
) -> None:
    path, asked, _, values = case
    told = values if is_told else [without_usage(one) for one in values if one.get("choices") != []]
    pieces = [event(one) for one in told]
    house = House(Sends(pieces, EVENTS), tmp_path, include_usage=False)
    body = {"model": MODEL, "stream": True, **asked}
    assert serve(house, body, path=path).body == b"".join(pieces)
    record = house.record
    assert record["output_tokens"] == WORDS
    assert record["input_tokens"] >= 2
    assert record["basis"] == ("reported" if is_told else "counted")


def test_of_two_caps_on_one_path_the_larger_is_reserved(tmp_path: Path) -> None:
    reserved: list[str] = []
    answer = json.dumps(COMPLETED).encode()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await JsonApp(answer)(scope, receive, send)

    for asked in ({"n_predict": 1}, {"n_predict": 1, "max_tokens": 300}, {"max_tokens": 300}):
        folder = tmp_path / str(len(reserved))
        folder.mkdir()
        answered = serve(
            House(app, folder),
            {"model": MODEL, "prompt": "Say it", **asked},
            path="/v1/completions",
        )
        reserved.append(answered.headers["x-ratelimit-remaining-tokens"])
    small, both, large = map(int, reserved)
    assert both == large == small - 299


def test_a_prompt_that_tgi_repeats_before_its_text_is_input_alone(tmp_path: Path) -> None:
    prompt = "Say it." * 10
    bills = []
    for repeats in (False, True):
        folder = tmp_path / str(repeats)
        folder.mkdir()
        house = House(JsonApp({"generated_text": prompt * repeats + " word" * WORDS}), folder)
        parameters = {"return_full_text": repeats}
        asked = {"model": MODEL, "inputs": prompt, "parameters": parameters}
        serve(house, asked, path="/generate")
        bills.append((house.record["input_tokens"], house.record["output_tokens"]))
    plain, repeated = bills
    assert plain == (repeated[0], WORDS)
    assert abs(repeated[1] - WORDS) <= 1  # two texts side by side are not cut as each for itself


@pytest.mark.parametrize("path", ["/invocations", "/completion", "/unheard-of"])
@pytest.mark.parametrize(
    "said",
    [
        [("content-encoding", "gzip")],
        [("content-type", "text/plain")],
        [("content-type", "multipart/form-data; boundary=x")],
    ],
    ids=["compressed", "text", "parts"],
)
def test_json_is_read_whatever_its_headers_say_that_it_is(
    path: str, said: list[tuple[str, str]], tmp_path: Path
) -> None:
    # Most servers read a body as JSON without a look at what it is said to be.
    house = House(JsonApp({"usage": usage_of(5, WORDS)}), tmp_path)
    asked = {"model": MODEL, "prompt": "Say it"}
    assert serve(house, asked, path=path, headers=said).status == 200
    assert house.record["model"] == MODEL
    assert house.record["amount_nano"] > 0


@pytest.mark.parametrize(
    "pieces",
    [
        [b"", b"\n ", ASKED[:5], ASKED[5:]],
        [b" " * 2_000_000, ASKED],
        [ASKED.decode().encode("utf-16")],
        [b"\xef\xbb\xbf", ASKED],
    ],
    ids=["in pieces", "behind spaces", "UTF-16", "marked"],
)
@pytest.mark.parametrize("declared", [True, False], ids=["declared", "undeclared"])
def test_json_is_read_however_long_it_is_and_however_it_comes(
    pieces: list[bytes], declared: bool, tmp_path: Path
) -> None:
    app = JsonApp({"usage": usage_of(5, WORDS)})
    house = House(app, tmp_path)
    serve_unheard_of(house, pieces, declared=declared)
    assert app.bodies == [b"".join(pieces)]
    assert house.record["model"] == MODEL
    assert house.record["amount_nano"] > 0


@pytest.mark.parametrize("pieces", [[b"\0" * 600] * 2, [b"RIFF", b"\0" * 1200]])
def test_what_is_no_json_passes_however_long_it_is(pieces: list[bytes], tmp_path: Path) -> None:
    app = JsonApp({"done": True})
    house = House(app, tmp_path, body_bytes_max=1000)
    serve_unheard_of(house, pieces, declared=True)  # sound that begins with silence, and a file
    assert app.bodies == [b"".join(pieces)]


def serve_unheard_of(house: House, pieces: list[bytes], *, declared: bool) -> None:
    scope = scope_of("/unheard-of", key="sk-five", headers=[("content-type", "text/plain")])
    if declared:
        length = str(len(b"".join(pieces))).encode()
        scope["headers"].append((b"content-length", length))
    scope["headers"].remove((b"content-type", b"application/json"))

    async def go() -> None:
        await post(lambda _, *ways: house.app(scope, *ways), b"", pieces=pieces)
        await house.close()

    asyncio.run(go())


OF_OLLAMA = pytest.mark.parametrize(
    "path",
    [
        "/api/chat",
        "/api/generate",
        "/api/embed",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/responses",
        "/v1/messages",
    ],
)


@OF_OLLAMA
def test_a_model_in_other_letters_is_no_cheaper_one(path: str, tmp_path: Path) -> None:
    # Ollama's server takes a name in any letters, and of two the last.
    house = House(JsonApp({"response": "Hi"}), tmp_path)
    refused = serve(house, {"model": MODEL, "MODEL": "inf-med-chat-v1", "prompt": "p"}, path=path)
    assert refused.status == 400
    assert "'MODEL' is `model` in other letters" in str(refused.json["error"])
    # As Go folds letters: the long s is one.
    refused = serve(house, {"model": MODEL, "\u017ftream": True}, path=path)
    assert refused.status == 400
    assert house.records == []


@pytest.mark.parametrize("name", ["content", "Content", "CONTENT"])
def test_a_message_is_counted_in_whatever_letters_its_fields_are(name: str, tmp_path: Path) -> None:
    house = House(JsonApp({"message": {"content": "Hi"}, "done": True}), tmp_path)
    message = {"role": "user", name: " word" * WORDS}
    serve(house, {"model": MODEL, "stream": False, "messages": [message]}, path="/api/chat")
    assert WORDS < house.record["input_tokens"] < 2 * WORDS


def test_a_feature_is_asked_for_whichever_variant_a_field_points_to(tmp_path: Path) -> None:
    house = House(JsonApp(COMPLETED), tmp_path, enforce_features=True)
    asked = {"model": MODEL, "prompt": "Say it", "response_format": {"type": "json_object"}}
    for more in ({}, {"n_predict": 1}):
        assert serve(house, {**asked, **more}, path="/v1/completions").status == 400
