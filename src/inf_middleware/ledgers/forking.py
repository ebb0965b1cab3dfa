"""What has a ledger's file open closes it before a fork, and opens it anew after.

A copy of an open connection in the child takes locks for held that its parent holds, and what
either commits then may be lost (sqlite.org/howtocorrupt.html, "Carrying an open database
connection across a fork").
"""

import os
import threading
import weakref
from abc import ABC, abstractmethod


class Forking(ABC):
    """Has a connection that it uses while it holds `using`, and at no other time."""

    def __init__(self) -> None:
        self.using = threading.RLock()
        _all.add(self)

    def begin_anew(self) -> None:
        """Begin in the child of a fork, in which nobody is left who would release a lock."""
        self.using = threading.RLock()

    @abstractmethod
    def let_go(self) -> None:
        """Close the connection; the next use opens another. `using` is held."""


_all: "weakref.WeakSet[Forking]" = weakref.WeakSet()
_one_at_a_time = threading.RLock()  # so that no two forks wait for each other's
_held: list[Forking] = []


def _before() -> None:
    _one_at_a_time.acquire()
    for forking in list(_all):
        forking.using.acquire()  # as long as its transaction takes
        _held.append(forking)
        forking.let_go()


def _in_parent() -> None:
    while _held:
        _held.pop().using.release()
    _one_at_a_time.release()


def _in_child() -> None:
    global _one_at_a_time  # noqa: PLW0603 - one per process, which is what a fork makes anew
    _one_at_a_time = threading.RLock()
    while _held:
        _held.pop().begin_anew()


os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
