"""API keys: told apart by their SHA-256, and never shown."""

import hashlib

from inf_middleware.domain.errors import ConfigError

# No server's whole request head is larger than 64 KiB by default; a signed token with a long list
# of claims has 4 KiB.
KEY_BYTES_MAX = 16 * 1024

DIGEST_PREFIX = "sha256:"


def key_of(raw: bytes) -> str | None:
    """Return a key as text; None where it is malformed: too long, not UTF-8 or not printable."""
    if len(raw) > KEY_BYTES_MAX:
        return None
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return None
    return text if text.isprintable() else None


def digest_of(key: str) -> bytes:
    """Return the SHA-256 of a key: what it is looked up and remembered by."""
    return hashlib.sha256(key.encode()).digest()


def configured_digest(key: object, where: str) -> bytes:
    """Return the SHA-256 of a key as an operator writes it: in clear, or as "sha256:<hex>".

    Raises:
        ConfigError: No caller can send such a key, or the digest is none; does not show the key.
    """
    if not isinstance(key, str) or not key:
        raise ConfigError(
            f"{where} has a key that is no text; write a text such as 'sk-demo', or sha256:<hex>"
        )
    if key.startswith(DIGEST_PREFIX):
        try:
            digest = bytes.fromhex(key.removeprefix(DIGEST_PREFIX))
        except ValueError:
            digest = b""
        if len(digest) != hashlib.sha256().digest_size:
            raise ConfigError(f"{where} has a sha256: key that is not 64 hexadecimal digits")
        return digest
    try:
        raw = key.encode()
    except UnicodeEncodeError:
        raw = b"\0"
    if key_of(raw) is None or key != key.strip():
        raise ConfigError(
            f"{where} has a key that no caller can send; a key is printable text without spaces"
            f" around it, of at most {KEY_BYTES_MAX:,} bytes"
        )
    return digest_of(key)


def without_key(text: str, key: str) -> str:
    """Return a text, such as a traceback, with a key in it blotted out."""
    for written in (key, repr(key)[1:-1]):
        text = text.replace(written, "<key>")
    return text
