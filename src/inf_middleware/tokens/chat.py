"""What of a chat request is counted: its texts, and a flat number for the rest.

Pictures and sound count flat, never as the base64 text they are sent in; the truth about them is
in the server's own usage.
"""

from typing import Any, NamedTuple

import msgspec


class ChatOverhead(NamedTuple):
    """Tokens that a chat template adds: per message, per `name`, and once for the reply."""

    per_message: int = 3
    per_name: int = 1
    per_reply: int = 3


# Source: OpenAI cookbook, "How to count tokens with tiktoken" (models since 2023-06).
OPENAI_OVERHEAD = ChatOverhead()

# OpenAI's tile rule for 1024 x 1024 at high detail: 85 + 4 tiles x 170.
IMAGE_TOKENS = 765

# Half a minute of speech at about 10 tokens a second (OpenAI audio input).
AUDIO_TOKENS = 300

# A document of one page, as a picture.
FILE_TOKENS = IMAGE_TOKENS

_FLAT = {
    "image_url": IMAGE_TOKENS,
    "input_image": IMAGE_TOKENS,
    "image": IMAGE_TOKENS,
    "input_audio": AUDIO_TOKENS,
    "audio_url": AUDIO_TOKENS,
    "video_url": 4 * IMAGE_TOKENS,
    "file": FILE_TOKENS,
    "input_file": FILE_TOKENS,
}

_MESSAGE_TEXTS = ("role", "name", "refusal", "reasoning", "reasoning_content", "tool_call_id")
_PART_TEXTS = ("text", "refusal", "thinking")


def chat_input(
    messages: object = None,
    tools: object = None,
    functions: object = None,
    response_format: object = None,
    overhead: ChatOverhead = OPENAI_OVERHEAD,
) -> tuple[list[str], int]:
    """Return the texts to be counted and the tokens that are no text, from decoded JSON.

    Never raises: what has an unknown shape is left out.
    """
    texts: list[str] = []
    flat = overhead.per_reply
    for message in messages if isinstance(messages, list) else [messages]:
        if isinstance(message, str):
            texts.append(message)
        if not isinstance(message, dict):
            continue
        flat += overhead.per_message + _take_message(message, texts)
        if isinstance(message.get("name"), str):
            flat += overhead.per_name
    texts.extend(_compact(schema) for schema in (tools, functions, response_format) if schema)
    return [text for text in texts if text], flat


def _take_message(message: dict[str, Any], texts: list[str]) -> int:
    for name in _MESSAGE_TEXTS:
        _take_text(message.get(name), texts)
    calls = message.get("tool_calls")
    called = [call.get("function") for call in _dicts(calls)] + [message.get("function_call")]
    for function in _dicts(called):
        _take_text(function.get("name"), texts)
        _take_text(function.get("arguments"), texts)
    content = message.get("content")
    _take_text(content, texts)
    flat = 0
    for part in content if isinstance(content, list) else ():
        _take_text(part, texts)
        if isinstance(part, dict):
            for name in _PART_TEXTS:
                _take_text(part.get(name), texts)
            kind = part.get("type")
            flat += _FLAT.get(kind, 0) if isinstance(kind, str) else 0
    return flat


def _take_text(value: object, texts: list[str]) -> None:
    if isinstance(value, str):
        texts.append(value)


def _dicts(values: object) -> list[dict[str, Any]]:
    if not isinstance(values, list):
        return []
    return [value for value in values if isinstance(value, dict)]


def _compact(schema: object) -> str:
    try:
        return msgspec.json.encode(schema).decode("utf-8", "replace")
    except (msgspec.MsgspecError, UnicodeError, RecursionError, OverflowError):
        return ""
