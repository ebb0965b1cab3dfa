"""Whether this process is one of several workers of its server, as far as that can be seen."""

import multiprocessing
import os


def are_several() -> bool:
    """Whether servers are told to run several workers, or this process was started as one."""
    told = os.environ.get("WEB_CONCURRENCY", "")
    return (told.isdigit() and int(told) > 1) or multiprocessing.parent_process() is not None
