"""Meter, limit and bill the use of a language model server, as ASGI middlewares."""

__version__ = "0.1.0"
