"""Which dialect a path speaks."""

from inf_middleware.wire.dialect import Dialect
from inf_middleware.wire.openai_chat import OpenAIChat
from inf_middleware.wire.unknown import Unknown

_BY_SUFFIX: tuple[tuple[str, Dialect], ...] = (("/chat/completions", OpenAIChat()),)
_UNKNOWN: Dialect = Unknown()


def dialect_for(path: str) -> Dialect:
    """Return the dialect of a path by its suffix, under any mount, trailing slashes or not."""
    path = path.rstrip("/")
    for suffix, dialect in _BY_SUFFIX:
        if path.endswith(suffix):
            return dialect
    return _UNKNOWN
