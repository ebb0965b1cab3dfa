"""JSON bodies: read as laxly as servers do, so that what a server accepts is never unmetered."""

import json
import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from keyword import iskeyword
from operator import attrgetter
from typing import Any, TypeAlias

import msgspec
from msgspec.structs import asdict

from inf_middleware.domain.errors import InvalidRequest
from inf_middleware.wire.paths import find

decode = msgspec.json.Decoder().decode
_raw_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])

# A whole number as text. Longer ones are no caps, and slow to convert.
_NUMBER = re.compile(r"\+?([0-9](?:_?[0-9]){0,18})(?:\.0*)?", re.ASCII)

# What a JSON body may be that msgspec does not take.
ODD = (msgspec.MsgspecError, UnicodeError, RecursionError)


class Fields:
    """The fields of a JSON object, each read when it is asked for; the rest is only skipped.

    Raises:
        InvalidRequest: The body is no JSON object, by the laxest reading of it.
    """

    __slots__ = ("_body", "_raw", "_values")

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._values: dict[str, Any] = {}
        self._raw: dict[str, msgspec.Raw] = {}
        try:
            self._raw = _raw_decoder.decode(body)
        except ODD:
            self._values = read_object(body)

    def __contains__(self, name: str) -> bool:
        return name in self._raw or name in self._values

    def at(self, path: str) -> Any:
        """Return what a path leads to, or None; nothing where there is no path ("").

        Of several ("a|b") the first that leads anywhere.
        """
        for way in path.split("|") if path else ():
            value = self.get(way)
            if value is not None:
                return value
        return None

    def get(self, path: str) -> Any:
        """Return what a path leads to, or None."""
        if path in self._values:
            return self._values[path]
        head, _, rest = path.partition(".")
        value = self._field(head)
        return find(value, rest) if rest else value

    def _field(self, name: str) -> Any:
        raw = self._raw.pop(name, None)
        if raw is not None:
            try:
                self._values[name] = msgspec.json.decode(raw)
            except ODD:
                self._values, self._raw = read_object(self._body), {}
        return self._values.get(name)


def names_of(body: bytes) -> Iterable[str]:
    """Return the names of the fields of a JSON object.

    Raises:
        InvalidRequest: The body is none.
    """
    try:
        return _raw_decoder.decode(body)
    except ODD:
        return read_object(body)


# From a JSON object to those of its fields that somebody will ask for, None where they are absent;
# the rest is only skipped. Raises one of `ODD`.
Head: TypeAlias = Callable[[bytes], dict[str, Any]]


def head_of(names: Iterable[str]) -> Head | None:
    """Return what reads fields, all in one go; None where a name cannot be one of a class."""
    read = _struct_reader(names)
    return None if read is None else lambda body: asdict(read(body))


def _struct_reader(names: Iterable[str]) -> Callable[[bytes], Any] | None:
    wanted = sorted(set(names))
    if not all(_is_name(name) for name in wanted):
        return None
    fields = [(name, Any, None) for name in wanted]
    return msgspec.json.Decoder(msgspec.defstruct("Fields", fields, gc=False)).decode


def typed_head(
    kinds: Sequence[tuple[str, Any]],
) -> tuple[Callable[[bytes], Hashable], Callable[[Any], Sequence[Any]]] | None:
    """Return what reads paths ("": None), each of a kind, and what picks their values in order.

    What is read of two bodies is equal where all values are. Raises one of `ODD` where one is of
    another kind. None where a name cannot be one of a class.
    """
    tree: dict[str, Any] = {}
    for path, kind in kinds:
        *steps, name = path.split(".")
        inner = tree
        for step in steps:
            inner = inner.setdefault(step, {})
            if not isinstance(inner, dict):
                return None
        if path and inner.setdefault(name, kind) is not kind:
            return None
    try:
        head = _struct_of(tree)
    except ValueError:
        return None
    pick = attrgetter(*(path or _ABSENT for path, _ in kinds))
    return msgspec.json.Decoder(head).decode, pick


# Of the class itself, so that no body can say it.
_ABSENT = "__absent__"


def _struct_of(tree: dict[str, Any]) -> Any:
    fields: list[Any] = []
    for name, kind in tree.items():
        if not _is_name(name):
            raise ValueError(name)
        if isinstance(kind, dict):
            inner = _struct_of(kind)
            fields.append((name, inner, inner()))
        else:
            fields.append((name, kind | None, None))
    return msgspec.defstruct("Head", fields, frozen=True, gc=False, namespace={_ABSENT: None})


def _is_name(name: str) -> bool:
    return name.isidentifier() and not iskeyword(name)


def read_object(body: bytes) -> dict[str, Any]:
    """Read a JSON object as Starlette's `request.json()` would: BOM, UTF-16, NaN and all.

    Raises:
        InvalidRequest: It is none.
    """
    if not body.strip():
        raise InvalidRequest("The request body is empty; send a JSON object.")
    try:
        value = json.loads(body)
    except RecursionError:
        raise InvalidRequest("The request body is nested too deeply.") from None
    except UnicodeError:
        raise InvalidRequest("The request body is not UTF-8; send a JSON object.") from None
    except ValueError as error:
        raise InvalidRequest(
            f"The request body is not JSON ({error}); send a JSON object."
        ) from None
    if not isinstance(value, dict):
        raise InvalidRequest(
            f"The request body is a JSON {type(value).__name__}; send a JSON object."
        )
    return value


def read_value(data: bytes) -> Any:
    """Read any JSON value that a server sends, NaN and broken characters too; None where none."""
    try:
        return decode(data)
    except ODD:
        pass
    try:
        return json.loads(data.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None


def read_parts(body: bytes, names: frozenset[str]) -> Any:
    """Read a JSON value, of an object only the fields named: the others may be long."""
    try:
        fields = _raw_decoder.decode(body)
        return {name: msgspec.json.decode(fields[name]) for name in names if name in fields}
    except ODD:
        return read_value(body)


def asking_for_usage(body: bytes, *, continuous: bool = False) -> bytes:
    """Add `stream_options.include_usage`; every other value keeps its very bytes.

    `continuous` asks for running totals too (`continuous_usage_stats`: vLLM, SGLang).
    """
    asked = {"include_usage": True}
    if continuous:
        asked["continuous_usage_stats"] = True
    try:
        fields = _raw_decoder.decode(body)
        raw = fields.get("stream_options")
        options = msgspec.json.decode(raw) if raw is not None else None
        fields["stream_options"] = msgspec.Raw(msgspec.json.encode({**(options or {}), **asked}))
        return msgspec.json.encode(fields)
    except ODD:
        value = read_object(body)
        value["stream_options"] = {**(value.get("stream_options") or {}), **asked}
        return json.dumps(value).encode("ascii")


def without_usage(data: bytes) -> bytes:
    """Return a JSON object without its `usage`; every other value keeps its very bytes."""
    try:
        fields = _raw_decoder.decode(data)
    except ODD:
        return data
    fields.pop("usage", None)
    return msgspec.json.encode(fields)


def whole_number(value: object) -> int | None:
    """Read a number as lax servers do ("5" and 5.0 are 5); None for what is none above 0.

    Source: pydantic, "Conversion Table" (2026-11), by which vLLM and SGLang read.
    """
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        found = _NUMBER.fullmatch(value.strip())
        value = int(found[1].replace("_", "")) if found else None
    if isinstance(value, float):
        value = int(value) if value.is_integer() else None
    return value if isinstance(value, int) and value > 0 else None
