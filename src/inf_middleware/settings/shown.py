"""Values as they may be shown: no password, no key, nothing that a query may carry."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from inf_middleware.accounts.toml import TomlAccounts
from inf_middleware.domain.prices import Prices
from inf_middleware.domain.tiers import Tiers
from inf_middleware.domain.uris import masked
from inf_middleware.files import TableFile
from inf_middleware.wire.forwarded import TrustedProxies

# A URI in the middle of a message that has an "@" in it.
_URI_WITH_AT = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"]*@[^\s'\"]*")

# Longer texts say nothing more in one line.
_CHARACTERS_MAX = 200


def shown(name: str, value: Any) -> str:
    """Return the value of an option in one line, for a log or an error."""
    if name == "accounts" and isinstance(value, Mapping):
        return "…"  # its keys are those of callers
    if name == "admin_key" and value is not None:
        return "…"
    return _shown(value)


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return uri_shown(value)
    if value is None or isinstance(value, bool | int | Path):
        return str(value)
    if isinstance(value, float):
        return str(value).removesuffix(".0")
    if isinstance(value, TableFile | TomlAccounts):
        return value.source
    if isinstance(value, Tiers):
        return ", ".join(tier.name for tier in value.tiers)
    if isinstance(value, Prices):
        return f"{value.version}, {len(value.prices)} prices"
    if isinstance(value, TrustedProxies):
        names = [*map(str, value.networks), *(["unix"] if value.unix else [])]
        return _cut(", ".join(names)) or "none"
    if isinstance(value, Mapping):
        return _mapping_shown(value)
    if isinstance(value, tuple | list):
        return _cut(", ".join(map(_shown, value))) or "none"
    return getattr(value, "__qualname__", None) or f"a {type(value).__qualname__}"


def uri_shown(text: str) -> str:
    """Return a text; if it is a URI, without credentials and query."""
    return _cut("".join(c if c.isprintable() else "?" for c in masked(text)))


def without_credentials(message: str, value: Any) -> str:
    """Return a message about a value, with the secrets of URIs in it blotted out."""
    for text in _texts_in(value):
        if uri_shown(text) != text:
            message = message.replace(text, uri_shown(text))
    return _URI_WITH_AT.sub(lambda found: masked(found[0]), message)


def _texts_in(value: Any) -> Iterable[str]:
    if isinstance(value, Mapping):
        return [text for text in value.values() if isinstance(text, str)]
    return [value] if isinstance(value, str) else []


def _mapping_shown(value: Mapping[Any, Any]) -> str:
    return _cut(
        "{" + ", ".join(f"{_shown(name)}: {_shown(item)}" for name, item in value.items()) + "}"
    )


def _cut(text: str) -> str:
    return text if len(text) <= _CHARACTERS_MAX else f"{text[: _CHARACTERS_MAX - 1]}…"
