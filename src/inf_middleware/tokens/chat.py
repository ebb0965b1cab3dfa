"""What of a chat request is counted: its texts, and a flat number for the rest.

Pictures and sound count flat, never as the base64 text they are sent in; the truth about them is
in the server's own usage.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from keyword import iskeyword
from struct import Struct
from typing import Any, NamedTuple

import msgspec

# OpenAI's tile rule for 1024 x 1024 at high detail: 85 + 4 tiles x 170.
IMAGE_TOKENS = 765

# Half a minute of speech. Source: OpenAI, "Managing costs" of the Realtime API: audio in user
# messages is 1 token per 100 ms.
AUDIO_TOKENS = 300

# No flat number is documented for these: four frames, and one page as a picture.
VIDEO_TOKENS = 4 * IMAGE_TOKENS
FILE_TOKENS = IMAGE_TOKENS


class Profile(NamedTuple):
    """What one model's input has beside the tokens of its texts.

    What the chat template adds per message, per `name` and once for the reply; and what a picture
    or the like counts flat.
    """

    per_message: int = 3
    per_name: int = 1
    per_reply: int = 3
    image: int = IMAGE_TOKENS
    audio: int = AUDIO_TOKENS
    video: int = VIDEO_TOKENS
    file: int = FILE_TOKENS


# Source: OpenAI cookbook, "How to count tokens with tiktoken" (models since 2023-06).
OPENAI_PROFILE = Profile()

# ChatML, measured with Qwen's own template: five per message with its role, three for the reply.
CHATML_PROFILE = Profile(per_message=4, per_name=0, per_reply=3)

# Deep lists of prompts are no prompts.
_LISTS_MAX = 3

# By a word of the part's type, such as image_url, input_image, image_embeds.
_FLAT = ("image", "audio", "video", "file")

# What a body has where something counts flat; an escape could hide any of them.
_FLAT_SIGNS = tuple(word.encode() for word in (*_FLAT, "document", "\\u"))

# More than a template may add for what a message and its name take in JSON beside their texts:
# {"role":""} and ,"name":"".
_ADDED_MAX = 8

_MESSAGE_TEXTS = (
    "role",
    "name",
    "refusal",
    "reasoning",
    "reasoning_content",
    "thinking",
    "tool_call_id",
)
_PART_TEXTS = ("text", "refusal", "thinking")
_ITEM_TEXTS = ("summary", "arguments", "input", "output")
_CALL_TEXTS = ("name", "arguments", "input")


def model_input(
    messages: Sequence[object] = (),
    texts: Sequence[object] = (),
    schemas: Sequence[object] = (),
    profile: Profile = OPENAI_PROFILE,
) -> tuple[list[str], int]:
    """Return the texts to be counted and the tokens that are no text, from decoded JSON.

    `messages` are lists of them (or a text), `texts` are texts, content parts, token ids or lists
    of these, `schemas` are counted as JSON. Never raises: what has an unknown shape is left out.
    """
    taken: list[str] = []
    flat = profile.per_reply if messages else 0
    for given in messages:
        for item in given if isinstance(given, list) else [given]:
            if isinstance(item, str):
                taken.append(item)
            if not isinstance(item, dict):
                continue
            message = _in_small_letters(item)
            flat += profile.per_message + _take_message(message, taken, profile)
            if isinstance(message.get("name"), str):
                flat += profile.per_name
    flat += sum(_take_texts(given, taken, profile) for given in texts)
    taken.extend(_compact(schema) for schema in schemas if schema)
    return [text for text in taken if text], flat


def bytes_bound(
    body: bytes, profile: Profile, messages: tuple[str, ...] = (), texts: tuple[str, ...] = ()
) -> int | None:
    """Return what input a body has at the most, in bytes, one for a token that is no text.

    `messages` and `texts` name the fields that hold all of it. None where it cannot be told without
    reading them: pictures and the like may be in it.
    """
    if profile.per_message > _ADDED_MAX or profile.per_name > _ADDED_MAX:
        return None
    if not _is_plain(body, messages, texts):
        for sign in _FLAT_SIGNS:
            if sign in body:
                return None
    return len(body) + profile.per_reply


_NONE = msgspec.Raw(b"null")


class _Message(msgspec.Struct, gc=False):
    """What of a message may count flat, where it has a role (see `_take_message`)."""

    role: msgspec.Raw
    content: msgspec.Raw = _NONE
    images: msgspec.Raw = _NONE


def _is_plain(body: bytes, messages: tuple[str, ...], texts: tuple[str, ...]) -> bool:
    """Tell whether a body is seen to hold no parts, but text as it stands: as nearly all do.

    To skip over the text takes a sixth of looking for signs in it.
    """
    decode = _inputs_reader(messages, texts)
    if decode is None:
        return False
    try:
        value = decode(body)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return False
    for name in texts:
        text = getattr(value, name)
        if text is not _NONE and _first_byte(text)[0] != _QUOTE:
            return False
    for name in messages:
        for message in getattr(value, name):
            text = message.content
            if message.images is not _NONE or (
                text is not _NONE and _first_byte(text)[0] != _QUOTE
            ):
                return False
    return True


_QUOTE = ord('"')
_first_byte = Struct("B").unpack_from  # of anything that holds bytes, in half of memoryview's time


@lru_cache(maxsize=64)  # dialects are few
def _inputs_reader(
    messages: tuple[str, ...], texts: tuple[str, ...]
) -> Callable[[bytes], Any] | None:
    names = (*messages, *texts)
    if not names or len(set(names)) < len(names):
        return None
    if not all(name.isidentifier() and not iskeyword(name) for name in names):
        return None
    fields: list[tuple[str, Any, Any]] = [(name, list[_Message], []) for name in messages]
    fields += [(name, msgspec.Raw, _NONE) for name in texts]
    return msgspec.json.Decoder(msgspec.defstruct("Inputs", fields, gc=False)).decode


def _take_texts(given: object, texts: list[str], profile: Profile) -> int:
    """Take prompts, and return how many token ids and flat tokens they have."""
    flat = 0
    waiting = [(given, 0)]
    while waiting:
        value, depth = waiting.pop()
        if type(value) is int:
            flat += 1
        elif isinstance(value, list) and depth < _LISTS_MAX:
            if all(type(item) is int for item in value):
                flat += len(value)
            else:
                waiting.extend((item, depth + 1) for item in reversed(value))
        else:
            flat += _take_content(value, texts, profile)
    return flat


def _in_small_letters(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message with names as APIs write them: some servers take them in any letters.

    So does Go's JSON, and of two that are alike then it takes the last.
    """
    for name in message:
        if not (name.islower() and name.isascii()):
            return {name.casefold(): value for name, value in message.items()}
    return message


def _take_message(message: dict[str, Any], texts: list[str], profile: Profile) -> int:
    for name in _MESSAGE_TEXTS:
        _take_value(message.get(name), texts)
    called = [message.get("function_call")]
    for call in _dicts(message.get("tool_calls")):
        called += [call.get("function"), call.get("custom")]
    for function in _dicts(called):
        for name in _CALL_TEXTS:
            _take_value(function.get(name), texts)
    flat = _take_content(message.get("content"), texts, profile)
    if isinstance(message.get("images"), list):  # Ollama's, beside the content
        flat += profile.image * len(message["images"])
    if "role" not in message:  # an item of OpenAI's responses
        flat += sum(_take_content(message.get(name), texts, profile) for name in _ITEM_TEXTS)
    return flat


def _take_content(content: object, texts: list[str], profile: Profile) -> int:
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
            tokens = _flat_tokens(part, profile)
            flat += tokens
            if not tokens:
                waiting.append(part.get("content"))
                _take_value(part.get("input"), texts)
            waiting.extend(part.get(name) for name in reversed(_PART_TEXTS))
    return flat


def _flat_tokens(part: dict[str, Any], profile: Profile) -> int:
    # Some servers read a part without a type by the field it has: {"image_url": {...}}.
    kind = part.get("type")
    for name in [kind] if isinstance(kind, str) else part:
        for word in name.split("_"):
            if word == "document":
                return profile.file
            if word in _FLAT:
                return int(getattr(profile, word))
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
