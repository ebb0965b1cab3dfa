"""Where the balance ends in a stream, the official clients read an answer that reached its cap."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import huggingface_hub
import ollama
import openai
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from inf_middleware import Account, CostLedger, Price, open_ledger
from tests.kit import records_of
from tests.servers import serving

MODEL = "inf-chat-v1"
WORDS = 2000  # far beyond what the balance covers
BALANCE_TOKENS = 400
MESSAGES: Any = [{"role": "user", "content": "Hi"}]


def sse(events: Iterator[dict[str, Any]]) -> Iterator[str]:
    for event in events:
        yield f"event: {event['type']}\ndata: {json.dumps(event)}\n\n"


def data(events: Iterator[dict[str, Any]]) -> Iterator[str]:
    for event in events:
        yield f"data: {json.dumps(event)}\n\n"


def lines(events: Iterator[dict[str, Any]]) -> Iterator[str]:
    for event in events:
        yield json.dumps(event) + "\n"


def words() -> Iterator[str]:
    yield "One"
    for _ in range(WORDS):
        yield " one"


def of_messages() -> Iterator[dict[str, Any]]:
    usage = {"input_tokens": 8, "output_tokens": 1}  # as we count them
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": MODEL}
    message |= {"content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}
    yield {"type": "message_start", "message": message}
    thought = {"type": "thinking", "thinking": "", "signature": ""}
    yield {"type": "content_block_start", "index": 0, "content_block": thought}
    delta: dict[str, Any] = {"type": "thinking_delta", "thinking": "Well"}
    yield {"type": "content_block_delta", "index": 0, "delta": delta}
    yield {"type": "content_block_stop", "index": 0}
    text = {"type": "text", "text": ""}
    yield {"type": "content_block_start", "index": 1, "content_block": text}
    for word in words():
        delta = {"type": "text_delta", "text": word}
        yield {"type": "content_block_delta", "index": 1, "delta": delta}


def of_response(kind: str) -> Iterator[dict[str, Any]]:
    number = 0

    def event(type_: str, **fields: Any) -> dict[str, Any]:
        nonlocal number
        number += 1
        return {"type": f"response.{type_}", "sequence_number": number - 1, **fields}

    response = {"id": "resp_1", "object": "response", "created_at": 1, "model": MODEL}
    response |= {"status": "in_progress", "output": [], "tools": [], "usage": None}
    yield event("created", response=response)
    thought: dict[str, Any] = {"id": "rs_1", "type": "reasoning", "summary": [], "content": []}
    yield event("output_item.added", output_index=0, item=thought)
    at = {"item_id": "rs_1", "output_index": 0, "content_index": 0}
    yield event("reasoning_text.delta", **at, delta="Well")
    thought = {**thought, "content": [{"type": "reasoning_text", "text": "Well"}]}
    yield event("output_item.done", output_index=0, item=thought)
    item: dict[str, Any] = {"id": "it_1", "type": kind, "status": "in_progress"}
    if kind == "message":
        item |= {"role": "assistant", "content": []}
    else:
        item |= {"name": "look_up", "call_id": "call_1", "arguments": ""}
    yield event("output_item.added", output_index=1, item=item)
    at = {"item_id": "it_1", "output_index": 1}
    if kind == "message":
        part = {"type": "output_text", "text": "", "annotations": []}
        yield event("content_part.added", **at, content_index=0, part=part)
        for word in words():
            yield event("output_text.delta", **at, content_index=0, delta=word, logprobs=[])
    else:
        for word in words():
            yield event("function_call_arguments.delta", **at, delta=word)


def of_cohere() -> Iterator[dict[str, Any]]:
    yield {"type": "message-start", "id": "msg_1", "delta": {"message": {"role": "assistant"}}}
    call = {"id": "call_1", "type": "function", "function": {"name": "look_up", "arguments": ""}}
    yield {"type": "tool-call-start", "index": 0, "delta": {"message": {"tool_calls": call}}}
    yield {"type": "tool-call-end", "index": 0}
    for index, kind in enumerate(("thinking", "text")):
        content = {"type": kind, kind: ""}
        yield {"type": "content-start", "index": index, "delta": {"message": {"content": content}}}
        for word in words() if kind == "text" else ["Well"]:
            content = {"message": {"content": {kind: word}}}
            yield {"type": "content-delta", "index": index, "delta": content}
        yield {"type": "content-end", "index": index}


def of_sglang() -> Iterator[dict[str, Any]]:
    text = ""
    for number, word in enumerate(words(), 1):
        text += word
        counts = {"prompt_tokens": 1, "completion_tokens": number}
        yield {"text": text, "meta_info": {"id": "gen_1", "finish_reason": None, **counts}}


def of_tgi() -> Iterator[dict[str, Any]]:
    for number, word in enumerate(words(), 1):
        token = {"id": 1, "text": word, "logprob": -0.5, "special": False}
        yield {"index": number, "token": token, "generated_text": None, "details": None}


async def answer(request: Request) -> Response:
    body = await request.json()
    match request.url.path:
        case "/v1/messages":
            pieces = sse(of_messages())
        case "/v1/responses":
            pieces = sse(of_response("function_call" if body.get("tools") else "message"))
        case "/v1/completions":
            chunk = {"id": "c", "object": "text_completion", "created": 1, "model": MODEL}
            each = (
                {**chunk, "choices": [{"index": 0, "text": word, "finish_reason": None}]}
                for word in words()
            )
            pieces = (f"data: {json.dumps(one)}\n\n" for one in each)
        case "/v2/chat":
            pieces = sse(of_cohere())
        case "/completion":
            pieces = data({"index": 0, "content": word, "stop": False} for word in words())
        case "/generate":
            pieces = data(of_sglang())
        case "/generate_stream":
            pieces = (one.replace("data: ", "data:", 1) for one in data(of_tgi()))
        case "/api/chat":
            pieces = lines(
                {"model": MODEL, "message": {"role": "assistant", "content": word}, "done": False}
                for word in words()
            )
        case _:
            pieces = lines({"model": MODEL, "response": word, "done": False} for word in words())
    media = "application/x-ndjson" if "/api/" in request.url.path else "text/event-stream"
    return StreamingResponse(pieces, media_type=media)


class Service:
    def __init__(self, tmp_path: Path) -> None:
        self.path = tmp_path / "ledger.db"
        uri = f"sqlite:///{self.path}"
        self.app = Starlette(routes=[Route("/{path:path}", answer, methods=["POST"])])
        accounts = {"sk-one": Account("acme", tier="Tier5")}
        self.app.add_middleware(
            CostLedger,
            ledger=uri,
            mode="prepaid",
            accounts=accounts,
            unpriced=Price("*", "10", "10"),  # some of these APIs name no model
        )
        self.url = ""

        async def recharge() -> None:
            async with await open_ledger(uri) as book:
                nano = BALANCE_TOKENS * 10_000
                await book.recharge("acme", f"0.{nano:09d}", reference="start")

        asyncio.run(recharge())

    @property
    def openai(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="sk-one", max_retries=0)

    @property
    def ollama(self) -> ollama.Client:
        return ollama.Client(host=self.url, headers={"Authorization": "Bearer sk-one"})

    @property
    def tgi(self) -> huggingface_hub.InferenceClient:
        url = f"{self.url}/generate_stream"
        return huggingface_hub.InferenceClient(url, api_key="sk-one")

    def ask(self, path: str, **body: Any) -> list[str]:
        """Return the data of all events of a stream, for APIs that have no client here."""
        headers = {"authorization": "Bearer sk-one"}
        answered = httpx.post(
            f"{self.url}{path}",
            json={"stream": True, **body},
            headers=headers,
            timeout=60,
            trust_env=False,
        )
        assert answered.status_code == 200
        *events, rest = answered.text.split("\n\n")
        assert rest == ""
        return [event.rpartition("data: ")[2] for event in events]

    def produced(self) -> int:
        """How many tokens were made and paid; the balance then is at its end."""
        (_, call) = records_of(self.path)
        assert (call["outcome"], call["overdrawn_nano"]) == ("balance_exhausted", 0)
        assert call["input_tokens"] + call["output_tokens"] == BALANCE_TOKENS
        output: int = call["output_tokens"]
        return output


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    service = Service(tmp_path)
    with serving(service.app) as url:
        service.url = url
        yield service


def test_anthropic_messages_ends_as_at_its_cap_and_is_billed_for_what_was_made(
    service: Service,
) -> None:
    with (
        anthropic.Anthropic(base_url=service.url, api_key="sk-one", max_retries=0) as client,
        client.messages.stream(model=MODEL, max_tokens=5000, messages=MESSAGES) as stream,
    ):
        kinds = [event.type for event in stream]
        message = stream.get_final_message()
    assert kinds.count("content_block_start") == kinds.count("content_block_stop") == 2
    assert kinds[-1] == "message_stop"
    assert message.stop_reason == "max_tokens"
    assert message.usage.output_tokens == service.produced()
    assert message.content[1].type == "text"
    assert len(message.content[1].text.split()) == message.usage.output_tokens - 1


def test_openai_completions_ends_as_at_its_cap_and_is_billed_for_what_was_made(
    service: Service,
) -> None:
    with service.openai as client:
        stream = client.completions.create(
            model=MODEL,
            prompt="Hi",
            max_tokens=5000,
            stream=True,
            stream_options={"include_usage": True},
        )
        *chunks, finish, usage = stream
    assert finish.choices[0].finish_reason == "length"
    assert usage.usage is not None
    assert usage.usage.completion_tokens == len(chunks) == service.produced()


def test_openai_responses_ends_as_at_its_cap_and_is_billed_for_what_was_made(
    service: Service,
) -> None:
    with (
        service.openai as client,
        client.responses.stream(model=MODEL, input="Hi", max_output_tokens=5000) as stream,
    ):
        events = list(stream)
    last = events[-1]
    assert last.type == "response.incomplete"
    assert [event.sequence_number for event in events] == list(range(len(events)))
    response = last.response
    assert (response.id, response.status) == ("resp_1", "incomplete")
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    thought, message = response.output
    assert (thought.type, thought.id, message.type) == ("reasoning", "rs_1", "message")
    assert message.type == "message"
    assert message.status == "incomplete"
    assert response.usage is not None
    assert response.usage.output_tokens == service.produced()
    assert len(response.output_text.split()) == response.usage.output_tokens - 1
    closed = [event for event in events if event.type == "response.output_item.done"]
    assert [event.item.id for event in closed] == ["rs_1", "it_1"]


def test_openai_responses_in_a_function_call_ends_as_at_its_cap_and_is_billed_for_what_was_made(
    service: Service,
) -> None:
    tool: Any = {"type": "function", "name": "look_up", "parameters": {}, "strict": False}
    with service.openai as client:
        *_, last = client.responses.create(
            model=MODEL, input="Hi", max_output_tokens=5000, tools=[tool], stream=True
        )
    assert last.type == "response.incomplete"
    call = last.response.output[1]
    assert call.type == "function_call"
    assert (call.name, call.call_id, call.status) == ("look_up", "call_1", "incomplete")
    assert len(call.arguments.split()) == service.produced() - 1


def test_ollama_chat_ends_as_at_its_cap_and_is_billed_for_what_was_made(service: Service) -> None:
    options = {"num_predict": 5000}
    with service.ollama as client:
        *parts, last = client.chat(MODEL, messages=MESSAGES, options=options, stream=True)
    assert (last.done, last.done_reason, last.message.content) == (True, "length", "")
    assert last.eval_count == len(parts) == service.produced()
    assert last.prompt_eval_count == BALANCE_TOKENS - len(parts)


def test_ollama_generate_ends_as_at_its_cap_and_is_billed_for_what_was_made(
    service: Service,
) -> None:
    options = {"num_predict": 5000}
    with service.ollama as client:
        *parts, last = client.generate(MODEL, "Hi", options=options, stream=True)
    assert (last.done, last.done_reason, last.response) == (True, "length", "")
    assert last.eval_count == len(parts) == service.produced()


@pytest.mark.parametrize("details", [True, False])
def test_tgi_ends_as_at_its_cap_and_is_billed_for_what_was_made(
    details: bool, service: Service
) -> None:
    with service.tgi as client:
        *parts, last = (
            client.text_generation(
                "Hi", max_new_tokens=5000, stream=True, details=True, decoder_input_details=False
            )
            if details
            else client.text_generation("Hi", max_new_tokens=5000, stream=True)
        )
    produced = service.produced()
    assert len(parts) == produced
    if not details:
        assert last == ""
        return
    assert (last.token.text, last.token.special) == ("", True)
    assert last.generated_text == "One" + " one" * (produced - 1)
    assert last.details is not None
    assert last.details.finish_reason == "length"
    assert last.details.generated_tokens == produced
    assert last.details.input_length == BALANCE_TOKENS - produced


def test_cohere_chat_ends_as_at_its_cap_and_is_billed_for_what_was_made(service: Service) -> None:
    *events, done = service.ask("/v2/chat", model=MODEL, messages=MESSAGES, max_tokens=5000)
    assert done == "[DONE]"
    *_, closed, last = map(json.loads, events)
    kinds = [json.loads(event)["type"] for event in events]
    for kind in ("content", "tool-call"):
        assert kinds.count(f"{kind}-start") == kinds.count(f"{kind}-end") > 0
    assert closed == {"type": "content-end", "index": 1}
    assert (last["type"], last["delta"]["finish_reason"]) == ("message-end", "MAX_TOKENS")
    produced = service.produced()
    for tokens in last["delta"]["usage"].values():
        assert tokens == {
            "input_tokens": BALANCE_TOKENS - produced,
            "output_tokens": produced,
        }


def test_llama_cpp_completion_ends_as_at_its_cap_and_is_billed_for_what_was_made(
    service: Service,
) -> None:
    *parts, last = map(json.loads, service.ask("/completion", prompt="Hi", n_predict=5000))
    assert [part["stop"] for part in parts] == [False] * len(parts)
    assert (last["stop"], last["stop_type"], last["content"]) == (True, "limit", "")
    assert last["tokens_predicted"] == len(parts) == service.produced()
    assert last["tokens_evaluated"] == BALANCE_TOKENS - len(parts)


def test_sglang_generate_ends_as_at_its_cap_and_is_billed_for_what_was_made(
    service: Service,
) -> None:
    asked = {"text": "Hi", "sampling_params": {"max_new_tokens": 5000}}
    *events, done = service.ask("/generate", **asked)
    assert done == "[DONE]"
    *parts, last = map(json.loads, events)
    assert last["text"] == parts[-1]["text"]
    told = last["meta_info"]
    assert (told["id"], told["finish_reason"]["type"]) == ("gen_1", "length")
    assert told["completion_tokens"] == len(parts) == service.produced()
