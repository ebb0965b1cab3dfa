"""Soaks the whole stack: python -m tests.soak --minutes 60 --seed 1.

Two workers of uvicorn on a real Redis and a real PostgreSQL are asked without end while these, the
sinks and the workers themselves fail. At the end nothing may be open that was not at the start, and
each acknowledged answer has to be one bill.
"""

import argparse
import sys

from tests.soak import runner

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="with faults")
    parser.add_argument("--seed", type=int, default=1, help="of what happens when")
    sys.exit(runner.main(parser.parse_args()))
