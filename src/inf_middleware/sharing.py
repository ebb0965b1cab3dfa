"""What the stacks of one process have in common: one store, one ledger, one counter per setting.

A thing is made at its first use and is closed by the last of its users that lets it go. A stack
that is dropped without having been shut down is no user any more.
"""

import os
import threading
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar
from weakref import WeakSet, finalize

T = TypeVar("T")


class User:
    """A stack, as far as what it shares is concerned; it must not be held by what is shared."""


class Guest(User):
    """Uses what stacks use, without keeping it open; what none of them uses it makes for itself."""

    def __init__(self) -> None:
        self.own: dict[Hashable, Any] = {}


class _Entry:
    """A thing and those who use it."""

    __slots__ = ("thing", "users")

    def __init__(self, thing: Any) -> None:
        self.thing = thing
        self.users: WeakSet[User] = WeakSet()


class Shared(Generic[T]):
    """A thing that a user shares with others."""

    __slots__ = ("_key", "_user", "thing")

    def __init__(self, key: Hashable, user: User, thing: T) -> None:
        self._key = key
        self._user = user
        self.thing = thing

    def let_go(self) -> bool:
        """Stop using it; tell whether nobody uses it any more, so that it is to be closed."""
        with _lock:
            entry = _entries.get(self._key)
            if entry is None or entry.thing is not self.thing:
                return True
            entry.users.discard(self._user)
            if entry.users:
                return False
            del _entries[self._key]
            return True


_entries: dict[Hashable, _Entry] = {}
_lock = threading.Lock()


def _renew_lock() -> None:
    # What was made before a fork opens anew in the child by itself; the lock may be held for ever.
    global _lock  # noqa: PLW0603 - one per process, which is what a fork makes anew
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):  # absent on Windows, which does not fork
    os.register_at_fork(after_in_child=_renew_lock)


def share(
    key: Hashable, user: User, make: Callable[[], T], dropped: Callable[[T], None] | None = None
) -> Shared[T]:
    """Return what others use under a key, else make it; `make` opens nothing.

    `dropped` is called with it, on any thread, once the last of its users is gone.
    """
    with _lock:
        for other in [other for other, entry in _entries.items() if not entry.users]:
            del _entries[other]
        entry = _entries.get(key)
        if isinstance(user, Guest):
            if entry is None and key not in user.own:
                user.own[key] = make()
            return Shared(key, user, entry.thing if entry is not None else user.own[key])
        if entry is None:
            entry = _entries[key] = _Entry(make())
        entry.users.add(user)
        if dropped is not None:
            finalize(user, _tell, entry, dropped).atexit = False
        return Shared(key, user, entry.thing)


def _tell(entry: _Entry, dropped: Callable[[Any], None]) -> None:
    if not list(entry.users):  # the lock may be held: garbage is collected at any moment
        dropped(entry.thing)


def identity(value: object) -> Hashable:
    """Return what tells a setting from others: a text or path by itself, an object by its place.

    A mapping is told by what it maps. Who shares under it holds the object, so that its place is
    not given to another.
    """
    if isinstance(value, Mapping):
        return frozenset((identity(name), identity(item)) for name, item in value.items())
    if isinstance(value, str | Path):
        return str(value)
    method = getattr(value, "__func__", None)  # each look at a method makes another object of it
    if method is not None:
        return (id(method), id(getattr(value, "__self__", None)))
    return id(value)
