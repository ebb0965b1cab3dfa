"""URIs as errors show them: no password, whatever is wrong with them."""

import pytest

from inf_middleware.domain.errors import ConfigError
from inf_middleware.domain.uris import masked
from inf_middleware.ledgers.uris import ledger_of
from inf_middleware.sinks.uris import sink_from_uri, without_secrets
from inf_middleware.stores.scripts import check_storage

MISTAKEN = [
    "redis:/u:secret@host/db",
    "redis//:secret@host:6379",
    "u:secret@host/db",
    "oracle://u:sec@ret@host/db",
    "oracle:u:secret@host",
    "http:/u:secret/1@host",
    "redis://u:secret@host:x",
    "rediss://u:secret?1@host",
]


@pytest.mark.parametrize("make", [ledger_of, sink_from_uri, check_storage])
@pytest.mark.parametrize("uri", MISTAKEN)
def test_an_error_about_a_uri_shows_no_password(make: object, uri: str) -> None:
    with pytest.raises(ConfigError) as raised:
        make(uri)  # type: ignore[operator]
    assert "sec" not in str(raised.value)


@pytest.mark.parametrize("uri", [*MISTAKEN, "https://u:1/secret@host"])
def test_of_a_sink_the_place_is_shown_and_nothing_before_it(uri: str) -> None:
    assert "sec" not in without_secrets(uri)
    assert "host" in without_secrets(uri)


def test_what_has_no_password_is_shown_as_it_is() -> None:
    for uri in ("jsonl:a/b.jsonl", "https://host:8080/a", "foo", "mine=foo"):
        assert without_secrets(uri) == uri


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("https://h/x?notify=o@e.com&token=secret", "https://h/x?…"),
        ("https://h:8/x?token=secret", "https://h:8/x?…"),
        ("https://u:secret@h/x?notify=o@e.com&token=secret", "https://…@h/x?…"),
        ("https://u:sec@ret@[::1]:8/x?notify=o@e.com", "https://…@[::1]:8/x?…"),
        ("postgresql://a,b:5432/db?password=p@secret", "postgresql://a,b:5432/db?…"),
        ("unix:///run/redis.sock?password=p@secret", "unix:///run/redis.sock?…"),
        ("postgresql://?host=h&password=p@secret", "postgresql://…"),
        ("redis://u:sec?ret@host", "redis://…@host"),
        ("redis://u:sec?ret@host?password=p@secret", "redis://…"),
        ("https://h/x?o@secret", "https://…"),
        ("Qwen/Qwen?", "Qwen/Qwen?"),
    ],
)
def test_a_query_is_not_shown_whatever_stands_in_it(uri: str, shown: str) -> None:
    assert masked(uri) == shown
    assert masked(shown) == shown
