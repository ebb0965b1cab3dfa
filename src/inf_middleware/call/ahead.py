"""Seeing that a client leaves, before the app receives anything."""

import asyncio

from starlette.types import Message, Receive


class ClientGone(Exception):  # noqa: N818 - nobody is left to answer
    """The client left before the app was called."""


class Ahead:
    """Reads one message ahead while a call waits, and gives it to whoever receives next.

    `first` is a message that was received already, and comes before all others.
    """

    __slots__ = ("_ahead", "_first", "_receive")

    def __init__(self, receive: Receive, first: Message | None = None) -> None:
        self._receive = receive
        self._first = first
        self._ahead: asyncio.Task[Message] | None = None

    async def receive(self) -> Message:
        """Return the next message, the one read ahead first."""
        if self._first is not None:
            first, self._first = self._first, None
            return first
        if self._ahead is not None:
            ahead, self._ahead = self._ahead, None
            return await ahead
        return await self._receive()

    def look(self) -> "asyncio.Task[Message]":
        """Return the message ahead, as it comes."""
        if self._ahead is None:
            self._ahead = asyncio.ensure_future(self._receive())
        return self._ahead

    def close(self) -> None:
        """Stop looking."""
        if self._ahead is not None:
            self._ahead.cancel()
            self._ahead = None
