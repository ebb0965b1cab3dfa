"""A URI names its sink, and what cannot be is told in words, without secrets."""

import pytest

from inf_middleware import ConfigError
from inf_middleware.sinks.http import HttpSink
from inf_middleware.sinks.jsonl import JsonlSink
from inf_middleware.sinks.redis_stream import RedisStreamSink
from inf_middleware.sinks.uris import sink_from_uri, without_secrets


@pytest.mark.parametrize(
    ("uri", "kind"),
    [
        ("jsonl:/var/log/events.jsonl", JsonlSink),
        ("http://localhost:8888/api/v1/events", HttpSink),
        ("https://user:key@host/events", HttpSink),
        ("redis://localhost:6379/0?stream=billing", RedisStreamSink),
        ("rediss://host?stream=billing", RedisStreamSink),
    ],
)
def test_each_kind_has_its_scheme(uri: str, kind: type) -> None:
    assert isinstance(sink_from_uri(uri), kind)


@pytest.mark.parametrize("uri", ["kafka://u:s3cr3t@x/t?k=s3cr3t", "events", "", "x://[::1"])
def test_others_are_refused_by_name_and_without_secrets(uri: str) -> None:
    with pytest.raises(ConfigError, match='known are "jsonl:PATH"') as caught:
        sink_from_uri(uri)
    assert "s3cr3t" not in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("https://u:p@h:8/x?k=v#f", "https://h:8/x"),
        ("redis://:p@h?stream=s", "redis://h"),
        ("jsonl:a/b.jsonl", "jsonl:a/b.jsonl"),
        ("x://h:port/p", "x://h:port/p"),
    ],
)
def test_what_is_shown_of_a_uri(uri: str, shown: str) -> None:
    assert without_secrets(uri) == shown
