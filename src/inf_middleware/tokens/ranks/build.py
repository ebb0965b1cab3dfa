"""Make the compact rank files from tiktoken's original ones; see README.md beside this file."""

import base64
import gzip
import hashlib
import lzma
import sys
import zipfile
from pathlib import Path

from inf_middleware.tokens.encodings import unpack

# What tiktoken 0.14.0 itself checks after a download (tiktoken_ext/openai_public.py).
SHA256 = {
    "o200k_base": "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
    "cl100k_base": "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
}


def pack(original: bytes) -> bytes:
    """Turn an original rank file into the compact form, not yet compressed.

    Raises:
        ValueError: The original cannot be had back from it: its ranks are not 0 to n-1 in order,
            or a token is longer than 255 bytes.
    """
    tokens = [base64.b64decode(line.split()[0]) for line in original.splitlines()]
    compact = len(tokens).to_bytes(4, "big") + bytes(map(len, tokens)) + b"".join(tokens)
    if original_text(unpack(compact)) != original:
        raise ValueError("the file is not made of tokens with the ranks 0 to n-1 in order")
    return compact


def original_text(tokens: list[bytes]) -> bytes:
    """Turn tokens back into the text of the original file."""
    lines = (b"%s %d\n" % (base64.b64encode(token), rank) for rank, token in enumerate(tokens))
    return b"".join(lines)


def check(name: str, original: bytes) -> None:
    """Refuse a file that is not tiktoken's.

    Raises:
        ValueError: Its sha256 is another.
    """
    digest = hashlib.sha256(original).hexdigest()
    if digest != SHA256[name]:
        raise ValueError(f"{name} has sha256 {digest}, and tiktoken expects {SHA256[name]}")


def build(source: Path, folder: Path) -> None:
    """Write the compact files into a folder: both, or none.

    `source`: a wheel of bpe-openai, or a folder that holds its `.tiktoken.gz` files.

    Raises:
        ValueError: A file is not tiktoken's.
    """
    data = zipfile.Path(source) / "bpe_openai" / "data" if source.is_file() else source
    made = {}
    for name in SHA256:
        original = gzip.decompress((data / f"{name}.tiktoken.gz").read_bytes())
        check(name, original)
        made[name] = lzma.compress(pack(original), preset=9 | lzma.PRESET_EXTREME)
    for name, compact in made.items():
        (folder / f"{name}.xz").write_bytes(compact)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m inf_middleware.tokens.ranks.build WHEEL_OR_FOLDER")
    build(Path(sys.argv[1]), Path(__file__).parent)
