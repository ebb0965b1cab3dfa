"""From a URI to its sink; each kind is imported only where it is wanted."""

from importlib.util import find_spec
from urllib.parse import urlsplit

from inf_middleware.domain.errors import ConfigError
from inf_middleware.domain.uris import masked
from inf_middleware.ports import Sink
from inf_middleware.sinks.jsonl import JsonlSink

_KNOWN = 'known are "jsonl:PATH", "https://HOST/PATH" (or http) and "redis://HOST:PORT?stream=NAME"'


def sink_from_uri(uri: str) -> Sink:
    """Make a sink; opens nothing.

    Raises:
        ConfigError: The URI is none, or what its sink needs is not installed.
    """
    scheme = uri.partition(":")[0]
    if scheme == "jsonl":
        return JsonlSink.from_uri(uri)
    if scheme in ("http", "https"):
        if find_spec("httpx") is None:
            raise ConfigError(
                f"sink {without_secrets(uri)} needs httpx:"
                ' python -m pip install "inf-middleware[http]"'
            )
        from inf_middleware.sinks.http import HttpSink  # noqa: PLC0415 - an extra

        return HttpSink(uri)
    if scheme in ("redis", "rediss", "unix"):
        from inf_middleware.sinks.redis_stream import RedisStreamSink  # noqa: PLC0415 - slow

        return RedisStreamSink.from_uri(uri)
    raise ConfigError(f"sink {without_secrets(uri)!r} is not known; {_KNOWN}")


def without_secrets(uri: str) -> str:
    """Return a URI as it may be shown: neither user and password, nor its query."""
    try:
        parts = urlsplit(uri)
        port = parts.port
    except ValueError:
        return masked(uri).partition("?")[0]
    if not parts.scheme or "@" in parts.path:  # a slash is missing, or one in a password is not %2F
        return masked(uri).partition("?")[0]
    host = f"{parts.hostname or ''}:{port}" if port else parts.hostname or ""
    return f"{parts.scheme}:{'//' if host else ''}{host}{parts.path}"
