"""The corpus: inputs that a fuzzer found to reach something new, one file of them per target."""

import base64
import json
from pathlib import Path

from tests.fuzz.targets import DIALECTS
from tests.wire.fixtures import EXCHANGES

FOLDER = Path(__file__).parent / "corpus"

# Of each target: what is kept is replayed by each run of the tests.
KEPT_MAX = 400


def kept(target: str) -> list[bytes]:
    """Return the inputs that are kept of a target."""
    path = FOLDER / f"{target}.txt"
    if not path.exists():
        return []
    return [base64.b64decode(line) for line in path.read_text("ascii").splitlines()]


def keep(target: str, inputs: list[bytes]) -> None:
    """Keep the shortest inputs, one a line, in an order that does not change from run to run."""
    FOLDER.mkdir(exist_ok=True)
    shortest = sorted({*inputs}, key=lambda one: (len(one), one))[:KEPT_MAX]
    text = "".join(base64.b64encode(one).decode() + "\n" for one in shortest)
    (FOLDER / f"{target}.txt").write_text(text, "ascii")


def seeds(target: str) -> list[bytes]:
    """Return what the tests know of each API, as inputs of a target."""
    out = []
    for exchange in EXCHANGES:
        body = {
            "request_heads": json.dumps(exchange.request).encode(),
            "answers": json.dumps(exchange.answer).encode(),
        }.get(target, exchange.stream)
        for which, dialect in enumerate(DIALECTS):
            if any(exchange.path.endswith(path) for path in dialect.paths):
                out.append(bytes([which, 7]) + body)
    return out
