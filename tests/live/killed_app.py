"""A prepaid model server whose workers are killed: it streams words, and says which worker did."""

import asyncio
import os
from typing import Any

from inf_middleware import Account, CostLedger
from tests.apps import delta, event, read_all

# Two slices and some: a hold is extended a few times before a stream ends.
WORDS = 600
WORDS_PER_PIECE = 4

# A stream takes about a third of a second, so that a kill finds several at work.
_PAUSE_S = 0.002


async def words(scope: Any, receive: Any, send: Any) -> None:
    """Stream words one piece after the other; " one" is one token."""
    await read_all(receive)
    headers = [
        (b"content-type", b"text/event-stream"),
        (b"x-worker", str(os.getpid()).encode()),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    piece = event(delta(" one" * WORDS_PER_PIECE))
    for _ in range(WORDS // WORDS_PER_PIECE):
        await send({"type": "http.response.body", "body": piece, "more_body": True})
        await asyncio.sleep(_PAUSE_S)
    for last in (event(delta("", finish="stop")), event("[DONE]")):
        await send({"type": "http.response.body", "body": last, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def make() -> Any:
    """Return the server of one worker, on the ledger that the environment names."""
    accounts = {"sk-one": Account("acme")}
    return CostLedger(words, ledger=os.environ["LEDGER"], mode="prepaid", accounts=accounts)
