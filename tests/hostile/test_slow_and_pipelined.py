"""A body that is slow has its deadline; requests that come all at once have each their bill."""

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest

from inf_middleware import Account, Gate
from inf_middleware.call.body import BODY_TIMEOUT_S
from tests.apps import JsonApp, completion, usage_of
from tests.driver import Answered, scope_of
from tests.kit import Closing, House, records_of
from tests.servers import serving


class MovedLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock can be moved on, so that its timers fall due."""

    moved_s = 0.0

    def time(self) -> float:
        return super().time() + self.moved_s


@pytest.mark.parametrize("trickles", [False, True], ids=["silence", "a byte a second"])
def test_a_body_that_does_not_arrive_is_a_408_and_holds_nothing(
    trickles: bool, tmp_path: Path
) -> None:
    model = JsonApp(completion())
    house = House(model, tmp_path)
    answered = Answered()
    pieces = 0

    async def go() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, MovedLoop)

        async def receive() -> dict[str, Any]:
            nonlocal pieces
            pieces += 1
            if trickles:
                loop.moved_s += 1.0
                await asyncio.sleep(0)
                return {"type": "http.request", "body": b" ", "more_body": True}
            loop.moved_s += BODY_TIMEOUT_S
            await asyncio.Event().wait()
            raise AssertionError("nobody wakes this")

        async def send(message: dict[str, Any]) -> None:
            answered.messages.append(message)

        await house.app(scope_of(key="sk-five"), receive, send)
        await house.close()

    with asyncio.Runner(loop_factory=MovedLoop) as runner:
        runner.run(go())
    assert (answered.status, answered.json["error"]["code"]) == (408, "request_timeout")
    assert pieces <= BODY_TIMEOUT_S + 2
    assert model.bodies == house.records == []
    assert house.in_progress("umbrella") == 0


def request_of(key: str, body: bytes) -> bytes:
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        f"authorization: Bearer {key}\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def answers_on(client: socket.socket, number: int) -> list[int]:
    """Read so many answers, each with a content-length; return their statuses."""
    statuses = []
    data = b""
    while len(statuses) < number:
        head, found, rest = data.partition(b"\r\n\r\n")
        if found:
            fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
            length = int(fields[b"content-length"])
            if len(rest) >= length:
                statuses.append(int(head.split(b" ")[1]))
                data = rest[length:]
                continue
        piece = client.recv(65_536)
        assert piece, (statuses, data)
        data += piece
    assert data == b""
    return statuses


@pytest.mark.parametrize("http", ["h11", "httptools"])
def test_pipelined_requests_are_answered_in_order_and_billed_one_by_one(
    http: str, tmp_path: Path
) -> None:
    model = JsonApp(completion(usage=usage_of(9, 2)))
    accounts = {
        "sk-one": Account("one", tier="tier5"),
        "sk-two": Account("two", tier="tier5"),
    }
    app = Gate(Closing(model), accounts=accounts, ledger=f"sqlite:///{tmp_path}/ledger.db")
    inner = request_of("sk-two", b"{}")
    hidden = b'{"model": "inf-chat-v1", "messages": [], "user": "' + inner.hex().encode() + b'"}'
    sent = [
        request_of("sk-one", hidden),
        request_of("sk-none", hidden),
        request_of("sk-two", hidden),
        # A whole request within a body is a body: no JSON, and nobody's request.
        request_of("sk-one", inner),
        request_of("sk-one", hidden),
    ]
    with serving(app, http=http) as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), 30.0) as client:
            client.sendall(b"".join(sent))
            assert answers_on(client, len(sent)) == [200, 401, 200, 400, 200]
    billed = [record["account"] for record in records_of(tmp_path / "ledger.db")]
    assert billed == ["one", "two", "one"]
    assert model.bodies == [hidden] * 3
