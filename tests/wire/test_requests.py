"""Requests that are read in one go tell the same as those that are read as laxly as servers do."""

import itertools
import json
from typing import Any

import pytest

from inf_middleware.wire.dialect import Dialect
from inf_middleware.wire.dialects import KNOWN
from inf_middleware.wire.dialects.openai_chat import CHAT

VALUES = [None, True, False, 0, 1, 5, 2**70, -1, 5.0, 5.5, "5", "true", "m" * 300, "\ud83d", [], {}]
OPTIONS = [{"include_usage": value} for value in VALUES]

BOM = b"\xef\xbb\xbf"  # with it no body is read in one go


def body_of(told: dict[str, Any]) -> bytes:
    body: dict[str, Any] = {"messages": [], "model": "m"}
    for path, value in told.items():
        *steps, name = path.split(".")
        inner: Any = body
        for step in steps:
            inner = inner.setdefault(step, {})
            if not isinstance(inner, dict):
                break
        else:
            inner[name] = value
    return json.dumps(body).encode()


@pytest.mark.parametrize("dialect", KNOWN, ids=lambda one: one.name)
def test_a_request_is_the_same_however_it_is_read(dialect: Dialect) -> None:
    paths = [path for path in dialect._asked if path]
    heads = {path.partition(".")[0] for path in paths}
    several: list[dict[str, Any]] = [{}, *({head: value} for head in heads for value in VALUES)]
    several += [{one: v, two: w} for one, two in itertools.pairwise(paths) for v in VALUES
                for w in (*VALUES, *OPTIONS)]  # fmt: skip
    for told in several:
        body = body_of(told)
        read = dialect.read(body)
        assert read == dialect.read(BOM + body), body
        assert read == dialect.read(body), body  # the second time it is known


def test_what_is_kept_of_requests_is_bounded() -> None:
    for number in range(2_000):
        body = json.dumps({"model": f"model-{number}", "messages": []}).encode()
        assert CHAT.read(body)[1].model == f"model-{number}"
    assert CHAT._typed is not None
    known: Any = CHAT._typed[1]
    assert known.cache_info().currsize <= 512
    for long in ({"model": "m" * 257}, {"n": 10**1_000}, {"max_tokens": 10**1_000}):
        misses = known.cache_info().misses
        CHAT.read(json.dumps({"model": "m", **long}).encode())
        assert known.cache_info().misses == misses, long
