"""The dialects that are known, one module each, and which of them a path speaks."""

import posixpath
from collections.abc import Iterable

from inf_middleware.wire.dialect import Dialect
from inf_middleware.wire.dialects import (
    anthropic_messages,
    cohere,
    llama_cpp,
    ollama,
    openai_chat,
    openai_completions,
    openai_embeddings,
    openai_responses,
    sglang,
    tgi,
    vllm,
)
from inf_middleware.wire.dialects.unknown import UNKNOWN

KNOWN: tuple[Dialect, ...] = (
    openai_chat.CHAT,
    openai_completions.COMPLETIONS,
    openai_embeddings.EMBEDDINGS,
    openai_responses.RESPONSES,
    anthropic_messages.MESSAGES,
    vllm.SCORE,
    vllm.RERANK,
    vllm.POOLING,
    vllm.INVOCATIONS,
    ollama.CHAT,
    ollama.GENERATE,
    ollama.EMBED,
    llama_cpp.COMPLETION,
    sglang.GENERATE,
    tgi.GENERATE_STREAM,
    cohere.CHAT,
    cohere.EMBED,
)


# Paths whose dialect is kept in mind, and how long one of them may be: callers may ask for any.
PATHS_MAX = 256
PATH_CHARACTERS_MAX = 256


class Dialects:
    """Finds the dialect of a path by its end, under any mount, trailing slashes or not.

    The longest end wins; of two alike, the first of `more`, then of the known ones.
    """

    def __init__(self, more: Iterable[Dialect] = ()) -> None:
        ends = [(path.rstrip("/"), one) for one in (*more, *KNOWN) for path in one.paths]
        self._by_end = sorted(ends, key=lambda end: -len(end[0]))
        self._known: dict[str, Dialect] = {}

    def of(self, path: str) -> Dialect:
        """Return the dialect of a path; one that knows nothing but usage where no other claims."""
        known = self._known.get(path)
        if known is None:
            known = self._look_up(path.rstrip("/"))
            if len(self._known) < PATHS_MAX and len(path) <= PATH_CHARACTERS_MAX:
                self._known[path] = known
        return known

    def _look_up(self, path: str) -> Dialect:
        # As a server may take slashes and dots, and a router whose patterns end with "$" a newline.
        path = posixpath.normpath(path.removesuffix("\n"))
        for end, dialect in self._by_end:
            if path.endswith(end):
                return dialect
        return UNKNOWN
