"""What a request costs, told by what no busy machine disturbs: Python calls and instructions.

    python -m benchmarks.instructions [--valgrind] [SUBJECT ...]
    python -m benchmarks.instructions --calls SUBJECT     # each function, by how often it is called

Of one more request of 1 KB, and of one more chunk of a stream. Calls are those of Python functions
and of builtins, on the loop's thread; instructions are counted by valgrind, of all threads.
"""

import argparse
import asyncio
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from starlette.types import ASGIApp

from benchmarks import subjects
from benchmarks.in_process import AT_ONCE, cpu_of, nothing
from benchmarks.model_app import CHUNKS, asked
from benchmarks.subjects import Places, subjects_for

# What drives the others, and is left out of them where times are measured.
DRIVER = "the driver alone"

NAMES = (DRIVER, subjects.BARE, subjects.METER, subjects.LIMITER, subjects.LEDGER, subjects.ALL)

# Few enough for valgrind, which takes fifty times as long.
REQUESTS = 4 * AT_ONCE
STREAMS = 8

# Of a process that starts, fills its caches and serves a first round.
WARM_UP = 2 * AT_ONCE


async def _calls(name: str, count: int, *, stream: bool) -> Counter[str]:
    """Return how often each function is called for so many requests, by its name."""
    found: Counter[str] = Counter()

    def note(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            code = frame.f_code
            found[f"{_short(code.co_filename)}:{code.co_firstlineno} {code.co_qualname}"] += 1
        elif event == "c_call":
            found[f"builtin {getattr(argument, '__qualname__', argument)}"] += 1

    body = asked(stream=stream)
    with tempfile.TemporaryDirectory(dir=".", prefix="bench-") as folder:
        app = _app(name, Places(Path(folder)))
        await cpu_of(app, body, 2 if stream else WARM_UP)
        sys.setprofile(note)
        try:
            await cpu_of(app, body, count)
        finally:
            sys.setprofile(None)
    return found


def _app(name: str, places: Places) -> ASGIApp:
    if name == DRIVER:
        return nothing
    (subject,) = subjects_for(places, (name,))
    return subject.make(places)


def _short(path: str) -> str:
    return "/".join(Path(path).parts[-2:])


def calls(name: str) -> tuple[float, float, float, float]:
    """Return Python calls and calls of builtins per request, and the same per chunk."""

    def of(found: Counter[str]) -> tuple[int, int]:
        builtins = sum(n for one, n in found.items() if one.startswith("builtin "))
        return found.total() - builtins, builtins

    whole = of(asyncio.run(_calls(name, REQUESTS, stream=False)))
    streams = of(asyncio.run(_calls(name, STREAMS, stream=True)))
    per_request = [one / REQUESTS for one in whole]
    per_chunk = [
        (one / STREAMS - rest) / CHUNKS for one, rest in zip(streams, per_request, strict=True)
    ]
    return per_request[0], per_request[1], per_chunk[0], per_chunk[1]


def instructions(name: str) -> tuple[float, float]:
    """Return the instructions per request and per chunk."""
    request = (_counted(name, 2 * REQUESTS, 0) - _counted(name, REQUESTS, 0)) / REQUESTS
    streams = (_counted(name, 0, 2 * STREAMS) - _counted(name, 0, STREAMS)) / STREAMS
    return request, (streams - request) / CHUNKS


def _counted(name: str, requests: int, streams: int) -> int:
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        command = ["valgrind", "--tool=callgrind"]
        command += ["--callgrind-out-file=/dev/null", sys.executable, "-m", __spec__.name, name]
        command += ["--serve", str(requests), str(streams)]
        environment = {**os.environ, "PYTHONHASHSEED": "0", "BENCH_FOLDER": folder}
        ran = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    found = re.search(r"Collected : (\d+)", ran.stderr)
    assert found is not None, ran.stderr
    return int(found[1])


async def _serve(name: str, requests: int, streams: int) -> None:
    app = _app(name, Places(Path(os.environ["BENCH_FOLDER"])))
    await cpu_of(app, asked(stream=False), WARM_UP + requests)
    await cpu_of(app, asked(stream=True), 2 + streams)


def main(arguments: Sequence[str] | None = None) -> None:
    """Count for all subjects, or for those named."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.instructions", description=__doc__)
    parser.add_argument("subjects", nargs="*", default=NAMES, metavar="SUBJECT")
    parser.add_argument("--valgrind", action="store_true", help="count instructions, too")
    parser.add_argument("--calls", action="store_true", help="list what is called per request")
    parser.add_argument("--serve", nargs=2, type=int, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.serve:
        asyncio.run(_serve(chosen.subjects[0], *chosen.serve))
    elif chosen.calls:
        for name in chosen.subjects:
            found = asyncio.run(_calls(name, REQUESTS, stream=False))
            print(f"{name}: {found.total() / REQUESTS:.1f} per request")
            for one, count in found.most_common():
                print(f"{count / REQUESTS:8.2f}  {one}")
    else:
        print("subject: calls + builtins per request, per chunk", end="")
        print("; instructions per request, per chunk" if chosen.valgrind else "")
        for name in chosen.subjects:
            request, builtins, chunk, of_chunk = calls(name)
            print(f"{name}: {request:.0f} + {builtins:.0f}, {chunk:.2f} + {of_chunk:.2f}", end="")
            if chosen.valgrind:
                whole, piece = instructions(name)
                print(f"; {whole:,.0f}, {piece:,.0f}", end="", flush=True)
            print()


if __name__ == "__main__":
    main()
