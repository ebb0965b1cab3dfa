"""What the proxy forwards to, and how, each part checked when it is given."""

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from inf_middleware.domain import tables
from inf_middleware.domain.errors import ConfigError
from inf_middleware.domain.uris import check_patterns

# A host that is there answers within milliseconds; three retransmissions of a lost SYN take 7 s.
CONNECT_TIMEOUT_S = 5.0

# From a request's arrival to the head of its answer, its upload included: a slow model that is
# loaded first, and then reads a long prompt on a CPU, takes minutes.
FIRST_BYTE_TIMEOUT_S = 600.0

# A server that has accepted a request reads it, or says why not; while it does neither, nobody sees
# whether the client is still there, and its slot is taken.
WRITE_TIMEOUT_S = 60.0

_EXAMPLE = "http://localhost:8000"

_TIMEOUTS = ("connect_timeout_s", "write_timeout_s", "first_byte_timeout_s", "chunk_timeout_s")


@dataclass(frozen=True, kw_only=True)
class Upstream:
    """The server behind the proxy.

    `url`: where it is; what is in its path goes before every request's. `key`: what it is sent in
    the place of the caller's key (None: the caller's own). `paths`: patterns of what is forwarded
    ("/v1/*"); the rest is 404. `ca_file`: certificates (PEM) of the authorities that an https
    URL is believed by (None: the well-known ones). `connect_timeout_s`, `write_timeout_s` (in which
    it takes nothing of a body) and `first_byte_timeout_s`: 504 beyond. `chunk_timeout_s`: between
    two pieces of an answer (None: no bound).

    Raises:
        ConfigError: One of them cannot hold; says what would be right.
    """

    url: str
    key: str | None = field(default=None, repr=False)
    paths: tuple[str, ...] = ("*",)
    ca_file: str | None = None
    connect_timeout_s: float = CONNECT_TIMEOUT_S
    write_timeout_s: float = WRITE_TIMEOUT_S
    first_byte_timeout_s: float = FIRST_BYTE_TIMEOUT_S
    chunk_timeout_s: float | None = None

    def __post_init__(self) -> None:
        _check_url(self.url)
        key = self.key
        if key is not None and (not key or not key.isascii() or not key.isprintable()):
            raise ConfigError("the key of the upstream must be printable ASCII text")
        if not isinstance(self.paths, tuple) or not all(
            isinstance(path, str) for path in self.paths
        ):
            raise ConfigError(f'paths is {self.paths!r}; write a list: ["/v1/*", "/api/chat"]')
        check_patterns("paths", self.paths)
        if self.ca_file is not None:
            self._check_authorities()
        for name in _TIMEOUTS:
            value = getattr(self, name)
            if name == "chunk_timeout_s" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                raise ConfigError(f"{name} is {value!r}; it must be a number of seconds above 0")

    def verification(self) -> ssl.SSLContext | bool:
        """Return how an https upstream is verified, for httpx."""
        if not self._is_https:
            return False  # else the well-known authorities are read, for up to a tenth of a second
        return True if self.ca_file is None else ssl.create_default_context(cafile=self.ca_file)

    @property
    def _is_https(self) -> bool:
        return urlsplit(self.url).scheme == "https"  # in any letters

    def _check_authorities(self) -> None:
        if not isinstance(self.ca_file, str):
            raise ConfigError(f'ca_file is {self.ca_file!r}; write a path: "ca.pem"')
        if not self._is_https:
            raise ConfigError(f"ca_file is for https, and the upstream is {self.url!r}")
        try:
            self.verification()
        except OSError as error:  # what ssl raises is one too
            raise ConfigError(
                f"ca_file: {self.ca_file} has no certificates in PEM that can be read: {error}"
            ) from None

    @classmethod
    def from_table(cls, table: Mapping[str, Any], source: str) -> "Upstream":
        """Take the `[upstream]` section of a settings file; files in it are relative to it.

        Raises:
            ConfigError: A key is unknown or cannot hold; names the file.
        """
        where = f"{source}: [upstream]"
        known = {one.name for one in fields(cls)} - {"key"} | {"key_file"}
        tables.refuse_unknown(table, known, where)
        if "url" not in table:
            raise ConfigError(f'{where} lacks url; write url = "{_EXAMPLE}"')
        given = dict(table)
        key_file = given.pop("key_file", None)
        if isinstance(given.get("paths"), list):
            given["paths"] = tuple(given["paths"])
        here = Path(source).parent
        if isinstance(given.get("ca_file"), str):
            given["ca_file"] = str(here / given["ca_file"])
        try:
            if key_file is not None:
                given["key"] = _secret(here / str(key_file))
            return cls(**given)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None


def _check_url(url: object) -> None:
    if not (isinstance(url, str) and _is_base(url)):
        raise ConfigError(
            f"the upstream is {_without_secret(url)}; it must be a URL such as {_EXAMPLE}, without"
            " user, query or fragment"
        )


def _is_base(url: str) -> bool:
    if not url.isascii() or not url.isprintable() or not {" ", "?", "#"}.isdisjoint(url):
        return False
    try:
        parts = urlsplit(url)
        named = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        return False
    return bool(named) and parts.username is None


def _without_secret(url: object) -> str:
    text = str(url)
    return repr(text) if "@" not in text else repr(f"…@{text.rpartition('@')[2]}")


def _secret(path: Path) -> str:
    try:
        return path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"key_file: {path} cannot be read: {error}") from None
