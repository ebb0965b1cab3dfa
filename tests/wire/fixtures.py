"""One request, answer and stream of each API, as its documents and servers have them."""

import json
from dataclasses import dataclass
from typing import Any

from inf_middleware import Usage

EVENTS, LINES = "text/event-stream", "application/x-ndjson"


@dataclass(frozen=True)
class Exchange:
    """What is asked on a path, and what comes back, whole and streamed."""

    name: str
    path: str
    request: dict[str, Any]
    answer: Any
    usage: Usage
    text: tuple[str, ...] = ()
    stream: bytes = b""
    media: str = EVENTS
    cap: int | None = None
    inputs: tuple[str, ...] = ()  # texts that are counted
    tokens: int = 0  # counted flat

    def __str__(self) -> str:
        return self.name


def sse(*events: Any, names: bool = False, done: bool = False) -> bytes:
    pieces = []
    for event in events:
        name = f"event: {event['type']}\n".encode() if names else b""
        pieces.append(name + b"data: " + json.dumps(event).encode() + b"\n\n")
    return b"".join([*pieces, b"data: [DONE]\n\n" if done else b""])


def lines(*values: Any) -> bytes:
    return b"".join(json.dumps(value).encode() + b"\n" for value in values)


EXCHANGES = [
    Exchange(
        "chat",
        "/v1/chat/completions",
        {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 9},
        {
            "id": "c-1",
            "model": "m",
            "choices": [{"index": 0, "message": {"content": "Hello"}, "finish_reason": "stop"}],
            "usage": {
                "prompt_tokens": 9,
                "completion_tokens": 3,
                "prompt_tokens_details": {"cached_tokens": 4, "audio_tokens": 2},
            },
        },
        Usage(9, 3, 4),
        ("Hello",),
        sse(
            {"id": "c-1", "model": "m", "choices": [{"index": 0, "delta": {"content": "Hel"}}]},
            {"choices": [{"index": 0, "delta": {"content": "lo"}, "finish_reason": "stop"}]},
            {
                "choices": [],
                "usage": {
                    "prompt_tokens": 9,
                    "completion_tokens": 3,
                    "prompt_tokens_details": {"cached_tokens": 4},
                },
            },
            done=True,
        ),
        cap=9,
        inputs=("user", "Hi"),
        tokens=6,
    ),
    Exchange(
        "completions",
        "/v1/completions",
        {"model": "m", "prompt": ["Once", "Twice"], "max_tokens": 5, "n": 2, "best_of": 3},
        {
            "id": "c-1",
            "model": "m",
            "choices": [{"index": i, "text": f"t{i}", "finish_reason": "stop"} for i in range(4)],
            "usage": {"prompt_tokens": 4, "completion_tokens": 20, "total_tokens": 24},
        },
        Usage(4, 20),
        ("t0", "t1", "t2", "t3"),
        sse(
            *(
                {
                    "id": "c-1",
                    "model": "m",
                    "choices": [{"index": i, "text": f"t{i}", "finish_reason": "stop"}],
                }
                for i in range(4)
            ),
            {"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": 20}},
            done=True,
        ),
        cap=5,
        inputs=("Once", "Twice"),
    ),
    Exchange(
        "embeddings",
        "/v1/embeddings",
        {"model": "m", "input": [[1, 2, 3], [4, 5]]},
        {"model": "m", "data": [{"embedding": [0.1, 0.2]}], "usage": {"prompt_tokens": 5}},
        Usage(5, 0),
        tokens=5,
    ),
    Exchange(
        "responses",
        "/v1/responses",
        {"model": "m", "input": "Hi", "instructions": "Be brief.", "max_output_tokens": 40},
        {
            "id": "resp_1",
            "model": "m",
            "status": "completed",
            "error": None,
            "output": [
                {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm."}]},
                {"type": "message", "content": [{"type": "output_text", "text": "Hello"}]},
                {"type": "function_call", "name": "f", "arguments": "{}"},
            ],
            "usage": {
                "input_tokens": 15,
                "output_tokens": 12,
                "input_tokens_details": {"cached_tokens": 3, "cache_write_tokens": 2},
                "output_tokens_details": {"reasoning_tokens": 7},
            },
        },
        Usage(15, 12, 3, 2, 7),
        ("Hm.Hellof{}",),
        sse(
            {"type": "response.created", "response": {"id": "resp_1", "model": "m", "usage": None}},
            {"type": "response.output_text.delta", "output_index": 0, "delta": "Hel"},
            {"type": "response.function_call_arguments.delta", "output_index": 1, "delta": "{}"},
            {"type": "response.output_text.delta", "output_index": 0, "delta": "lo"},
            {"type": "response.output_audio.delta", "output_index": 0, "delta": "QUJD"},
            {"type": "response.output_text.done", "output_index": 0, "text": "Hello"},
            {
                "type": "response.incomplete",
                "response": {
                    "id": "resp_1",
                    "output": [{"content": [{"text": "Hello"}]}],
                    "usage": {
                        "input_tokens": 15,
                        "output_tokens": 12,
                        "input_tokens_details": {"cached_tokens": 3, "cache_write_tokens": 2},
                        "output_tokens_details": {"reasoning_tokens": 7},
                    },
                },
            },
            names=True,
        ),
        cap=40,
        inputs=("Hi", "Be brief."),
        tokens=3,
    ),
    Exchange(
        "messages",
        "/v1/messages",
        {
            "model": "m",
            "system": [{"type": "text", "text": "Be brief."}],
            "messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
            "max_tokens": 40,
        },
        {
            "id": "msg_1",
            "type": "message",
            "model": "m",
            "content": [
                {"type": "thinking", "thinking": "Hm."},
                {"type": "text", "text": "Hello"},
                {"type": "tool_use", "name": "f", "input": {"a": 1}},
            ],
            "usage": {
                "input_tokens": 10,
                "output_tokens": 42,
                "cache_read_input_tokens": 5,
                "cache_creation_input_tokens": 2,
            },
        },
        Usage(17, 42, 5, 2),
        ('Hm.Hellof{"a":1}',),
        sse(
            {
                "type": "message_start",
                "message": {
                    "id": "msg_1",
                    "model": "m",
                    "content": [],
                    "usage": {
                        "input_tokens": 10,
                        "output_tokens": 1,
                        "cache_read_input_tokens": 5,
                        "cache_creation_input_tokens": 2,
                    },
                },
            },
            {"type": "ping"},
            {
                "type": "content_block_delta",
                "index": 0,
                "delta": {"type": "thinking_delta", "thinking": "Hm."},
            },
            {
                "type": "content_block_delta",
                "index": 1,
                "delta": {"type": "text_delta", "text": "Hel"},
            },
            {
                "type": "content_block_delta",
                "index": 1,
                "delta": {"type": "text_delta", "text": "lo"},
            },
            {
                "type": "content_block_delta",
                "index": 2,
                "delta": {"type": "input_json_delta", "partial_json": "{}"},
            },
            {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 42}},
            {"type": "message_stop"},
            names=True,
        ),
        cap=40,
        inputs=("user", "Hi", "Be brief."),
        tokens=6,
    ),
    Exchange(
        "score",
        "/score",
        {"model": "m", "queries": "one", "documents": ["two", "three"]},
        {"id": "s-1", "model": "m", "data": [{"score": 1}], "usage": {"prompt_tokens": 8}},
        Usage(8, 0),
        inputs=("one", "two", "three"),
    ),
    Exchange(
        "rerank",
        "/v2/rerank",
        {"model": "m", "query": "one", "documents": ["two", {"text": "three"}]},
        {"id": "r-1", "model": "m", "usage": {"prompt_tokens": 8, "total_tokens": 8}},
        Usage(8, 0),
        inputs=("one", "two", "three"),
    ),
    Exchange(
        "classify",
        "/classify",
        {"model": "m", "input": ["one", "two"]},
        {"id": "k-1", "model": "m", "usage": {"prompt_tokens": 6, "completion_tokens": 0}},
        Usage(6, 0),
        inputs=("one", "two"),
    ),
    Exchange(
        "pooling",
        "/pooling",
        {"model": "m", "input": "one"},
        {"id": "p-1", "model": "m", "data": [], "usage": {"prompt_tokens": 3}},
        Usage(3, 0),
        inputs=("one",),
    ),
    Exchange(
        "invocations",
        "/invocations",
        {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 9},
        {
            "id": "c-1",
            "model": "m",
            "choices": [{"index": 0, "message": {"content": "Hello"}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 9, "completion_tokens": 3},
        },
        Usage(9, 3),
        ("Hello",),
        cap=9,
        inputs=("user", "Hi"),
        tokens=6,
    ),
    Exchange(
        "ollama-chat",
        "/api/chat",
        {
            "model": "m",
            "messages": [{"role": "user", "content": "Hi", "images": ["QUJD"]}],
            "options": {"num_predict": 30},
        },
        {
            "model": "m",
            "message": {
                "role": "assistant",
                "content": "Hello",
                "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}],
            },
            "done": True,
            "prompt_eval_count": 12,
            "prompt_eval_cached_count": 4,
            "eval_count": 7,
        },
        Usage(12, 7, 4),
        ('Hellof{"a":1}',),
        lines(
            {
                "model": "m",
                "message": {"role": "assistant", "content": "Hel"},
                "done": False,
            },
            {
                "model": "m",
                "message": {"role": "assistant", "content": "lo"},
                "done": False,
            },
            {
                "model": "m",
                "message": {"role": "assistant", "content": ""},
                "done": True,
                "prompt_eval_count": 12,
                "prompt_eval_cached_count": 4,
                "eval_count": 7,
            },
        ),
        LINES,
        cap=30,
        inputs=("user", "Hi"),
        tokens=6 + 765,
    ),
    Exchange(
        "ollama-generate",
        "/api/generate",
        {"model": "m", "prompt": "Hi", "system": "Be brief.", "options": {"num_predict": -1}},
        {"model": "m", "response": "Hello", "done": True, "prompt_eval_count": 5, "eval_count": 3},
        Usage(5, 3),
        ("Hello",),
        lines(
            {"model": "m", "response": "Hel", "done": False},
            {"model": "m", "response": "lo", "done": False},
            {"model": "m", "response": "", "done": True, "prompt_eval_count": 5, "eval_count": 3},
        ),
        LINES,
        inputs=("Hi", "Be brief."),
    ),
    Exchange(
        "ollama-embed",
        "/api/embed",
        {"model": "m", "input": ["one", "two"]},
        {"model": "m", "embeddings": [[0.1]], "prompt_eval_count": 4},
        Usage(4, 0),
        inputs=("one", "two"),
    ),
    Exchange(
        "llama-cpp",
        "/completion",
        {"prompt": [12, "and", 13], "n_predict": 8},
        {
            "content": "Hello",
            "stop": True,
            "tokens_evaluated": 4,
            "tokens_predicted": 3,
            "timings": {"cache_n": 2},
        },
        Usage(4, 3, 2),
        ("Hello",),
        sse(
            {"content": "Hel", "stop": False},
            {"content": "lo", "stop": False},
            {
                "content": "",
                "stop": True,
                "tokens_evaluated": 4,
                "tokens_predicted": 3,
                "timings": {"cache_n": 2},
            },
        ),
        cap=8,
        inputs=("and",),
        tokens=2,
    ),
    Exchange(
        "sglang",
        "/generate",
        {"text": "Hi", "sampling_params": {"max_new_tokens": 8}},
        {
            "text": "Hello",
            "meta_info": {"prompt_tokens": 4, "completion_tokens": 3, "cached_tokens": 1},
        },
        Usage(4, 3, 1),
        ("Hello",),
        sse(
            {"text": "Hel", "meta_info": {"prompt_tokens": 4, "completion_tokens": 1}},
            {
                "text": "Hello",
                "meta_info": {"prompt_tokens": 4, "completion_tokens": 3, "cached_tokens": 1},
            },
            done=True,
        ),
        cap=8,
        inputs=("Hi",),
    ),
    Exchange(
        "sglang-batch",
        "/generate",
        {"text": ["Hi", "Ho"], "sampling_params": {"n": 2}},
        [
            {"text": f"t{i}", "meta_info": {"prompt_tokens": 4 + i // 2, "completion_tokens": i}}
            for i in range(4)
        ],
        Usage(9, 6),
        ("t0", "t1", "t2", "t3"),
        sse(
            *(
                {
                    "index": i,
                    "text": "t" + str(i)[:end],
                    "meta_info": {"prompt_tokens": 4 + i // 2, "completion_tokens": i * end},
                }
                for end in (0, 1)
                for i in range(4)
            ),
            done=True,
        ),
        inputs=("Hi", "Ho"),
    ),
    Exchange(
        "tgi",
        "/generate",
        {"inputs": "Hi", "parameters": {"max_new_tokens": 8, "details": True}},
        {"generated_text": "Hello", "details": {"generated_tokens": 3, "input_length": 4}},
        Usage(4, 3),
        ("Hello",),
        cap=8,
        inputs=("Hi",),
    ),
    Exchange(
        "tgi-stream",
        "/generate_stream",
        {"inputs": "Hi", "parameters": {"max_new_tokens": 8}},
        None,
        Usage(4, 3),
        ("Hello",),
        sse(
            {"index": 1, "token": {"text": "Hel"}, "generated_text": None},
            {
                "index": 2,
                "token": {"text": "lo"},
                "generated_text": "Hello",
                "details": {"generated_tokens": 3, "input_length": 4},
            },
        ).replace(b"data: ", b"data:"),
        cap=8,
        inputs=("Hi",),
    ),
    Exchange(
        "cohere-chat",
        "/cohere/v2/chat",
        {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8},
        {
            "id": "h-1",
            "message": {"content": [{"type": "text", "text": "Hello"}]},
            "usage": {
                "billed_units": {"input_tokens": 1, "output_tokens": 3},
                "tokens": {"input_tokens": 70, "output_tokens": 4},
            },
        },
        Usage(70, 4),
        ("Hello",),
        sse(
            {"type": "message-start", "id": "h-1"},
            {
                "type": "content-delta",
                "index": 0,
                "delta": {"message": {"content": {"text": "Hel"}}},
            },
            {
                "type": "content-delta",
                "index": 0,
                "delta": {"message": {"content": {"text": "lo"}}},
            },
            {
                "type": "message-end",
                "delta": {
                    "finish_reason": "COMPLETE",
                    "usage": {
                        "billed_units": {"input_tokens": 1, "output_tokens": 3},
                        "tokens": {"input_tokens": 70, "output_tokens": 4},
                    },
                },
            },
            names=True,
        ),
        cap=8,
        inputs=("user", "Hi"),
        tokens=6,
    ),
    Exchange(
        "cohere-embed",
        "/v2/embed",
        {"model": "m", "texts": ["one", "two"]},
        {"id": "e-1", "meta": {"billed_units": {"input_tokens": 4}}},
        Usage(4, 0),
        inputs=("one", "two"),
    ),
]
STREAMED = [exchange for exchange in EXCHANGES if exchange.stream]
