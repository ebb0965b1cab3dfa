"""One subject on uvicorn, in a process of its own, until it is told to stop.

    python -m benchmarks.serve SUBJECT PORT FOLDER [REDIS [POSTGRES]]

The port is inherited by forked processes with `WORKERS=n` in the environment.
"""

import os
import sys
from pathlib import Path

import uvicorn

from benchmarks.subjects import SUBJECTS, Places


def app() -> object:
    """Make the subject that the arguments name; each worker process makes its own."""
    name, _, folder, *servers = sys.argv[1:]
    places = Places(Path(folder), *servers)
    subject = next(subject for subject in SUBJECTS if subject.name == name)
    made = subject.make(places)
    if subject.is_frozen:
        from inf_middleware.cli.serve import spare_garbage_collector  # noqa: PLC0415 - of two

        spare_garbage_collector()
    return made


def main() -> None:
    """Serve."""
    uvicorn.run(
        "benchmarks.serve:app",
        factory=True,
        port=int(sys.argv[2]),
        loop="uvloop",
        http="httptools",
        log_level="error",
        access_log=False,
        workers=int(os.environ.get("WORKERS", "1")),
    )


if __name__ == "__main__":
    main()
