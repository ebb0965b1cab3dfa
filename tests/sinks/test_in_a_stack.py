"""Sinks by their URIs in a served stack: calls end up at every far end, and no secret is shown."""

import asyncio
import json
import logging
from pathlib import Path
from uuid import uuid4

import pytest

from inf_middleware import CostLedger
from tests.apps import JsonApp, completion, usage_of
from tests.driver import post
from tests.kit import CHAT, Closing, lifespan_through, lines_of, records_of
from tests.sinks.far_ends import HttpServer, Stream
from tests.sinks.redis_server import RedisServer


def test_calls_end_up_at_every_far_end(
    tmp_path: Path,
    http: HttpServer,
    redis_server: RedisServer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    stream = Stream(redis_server, uuid4().hex)
    http.script = [(401, {})]
    app = CostLedger(
        Closing(JsonApp(completion(usage=usage_of(3, 4)))),
        accounts={"sk-demo": "free"},
        ledger=f"sqlite:///{tmp_path}/l.db",
        sinks={
            "file": f"jsonl:{tmp_path}/e.jsonl",
            "meter": http.url.replace("://", "://user:s3cr3t@"),
            "stream": f"{stream.url}?stream={stream.name}",
        },
    )

    async def go() -> None:
        for _ in range(3):
            assert (await post(app, CHAT, key="sk-demo")).status == 200

        async def receive() -> dict[str, str]:
            return {"type": "lifespan.shutdown"}

        async def send(_: object) -> None: ...

        await lifespan_through(app, receive, send)

    asyncio.run(go())
    ids = [record["request_id"] for record in records_of(tmp_path / "l.db")]
    assert len(ids) == 3
    assert [line["id"] for line in lines_of(tmp_path / "e.jsonl")] == ids
    for far_end in (http, stream):
        assert [json.loads(body)["id"] for body in far_end.arrived()] == ids
    assert "sink meter did not take its events" in caplog.text
    assert "s3cr3t" not in caplog.text
