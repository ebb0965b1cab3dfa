"""Simulates the whole stack by seeds: python -m tests.simulate --seeds 0:420 --steps 2000.

A seed that fails is told with its trace, and `--seeds N:N+1 --trace` replays it exactly.
"""

import argparse
import os
import sys

from tests.simulate import machine

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.simulate", description=__doc__)
    parser.add_argument("--seeds", default="0:420", help="from:to, the last not included")
    parser.add_argument("--steps", type=int, default=2_000, help="of each seed")
    parser.add_argument("--seconds", type=float, help="go on with further seeds for so long")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--first", action="store_true", help="end with the first that fails")
    parser.add_argument("--trace", action="store_true", help="print what happens")
    parser.add_argument("--pairs", action="store_true", help="fail where a pair was not visited")
    if os.environ.get("PYTHONHASHSEED") != "0":  # the order of sets is part of a replay
        os.execve(  # noqa: S606 - itself
            sys.executable,
            [sys.executable, "-m", "tests.simulate", *sys.argv[1:]],
            {**os.environ, "PYTHONHASHSEED": "0"},
        )
    machine.boot()
    from tests.simulate import runner  # only now: all of the library is on the machine

    sys.exit(runner.main(parser.parse_args()))
