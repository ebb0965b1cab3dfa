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

# Half a minute of speech. Source: OpenAI, "Managing costs" of the Realtime API: audio in user
# messages is 1 token per 100 ms.
AUDIO_TOKENS = 300

# No flat number is documented for these: four frames, and one page as a picture.
VIDEO_TOKENS = 4 * IMAGE_TOKENS
FILE_TOKENS = IMAGE_TOKENS

# By a word of the part's type, such as image_url, input_image, image_embeds.
_FLAT = {
    "image": IMAGE_TOKENS,
    "audio": AUDIO_TOKENS,
    "video": VIDEO_TOKENS,
    "file": FILE_TOKENS,
    "document": FILE_TOKENS,
}

_MESSAGE_TEXTS = ("role", "name", "refusal", "reasoning", "reasoning_content", "tool_call_id")
_PART_TEXTS = ("text", "refusal", "thinking")
_CALL_TEXTS = ("name", "arguments", "input")


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
        _take_value(message.get(name), texts)
    called = [message.get("function_call")]
    for call in _dicts(message.get("tool_calls")):
        called += [call.get("function"), call.get("custom")]
    for function in _dicts(called):
        for name in _CALL_TEXTS:
            _take_value(function.get(name), texts)
    return _take_content(message.get("content"), texts)


def _take_content(content: object, texts: list[str]) -> int:
    """Take the texts of a message's content, and return what its other parts count flat."""
    flat = 0
    waiting = [content]  # no recursion: callers choose how deep results of tools are nested
    while waiting:
        part = waiting.pop()
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, list):
            waiting.extend(reversed(part))
        elif isinstance(part, dict):
            tokens = _flat_tokens(part)
            flat += tokens
            if not tokens:
                waiting.append(part.get("content"))
                _take_value(part.get("input"), texts)
            waiting.extend(part.get(name) for name in reversed(_PART_TEXTS))
    return flat


def _flat_tokens(part: dict[str, Any]) -> int:
    # Some servers read a part without a type by the field it has: {"image_url": {...}}.
    kind = part.get("type")
    for name in [kind] if isinstance(kind, str) else part:
        for word in name.split("_"):
            if word in _FLAT:
                return _FLAT[word]
    return 0


def _take_value(value: object, texts: list[str]) -> None:
    if isinstance(value, str):
        texts.append(value)
    elif isinstance(value, dict | list):
        texts.append(_compact(value))


def _dicts(values: object) -> list[dict[str, Any]]:
    if not isinstance(values, list):
        return []
    return [value for value in values if isinstance(value, dict)]


def _compact(value: object) -> str:
    try:
        return msgspec.json.encode(value).decode("utf-8")
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        # Lone surrogates and deep nesting, which json.loads lets through: they count, too.
        return " ".join(_leaves(value))


def _leaves(value: object) -> list[str]:
    leaves: list[str] = []
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting.extend(value)
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)
        else:
            leaves.append(value if isinstance(value, str) else repr(value))
    return leaves
