"""Make the compact rank files from tiktoken's original ones; see README.md beside this file."""

import base64
import gzip
import hashlib
import lzma
import sys
import zipfile
from pathlib import Path

# What tiktoken 0.14.0 itself checks after a download (tiktoken_ext/openai_public.py).
SHA256 = {
    "o200k_base": "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
    "cl100k_base": "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
}


def pack(original: bytes) -> bytes:
    """Turn an original rank file into the compact form, not yet compressed.

    Raises:
        ValueError: Its ranks are not 0 to n-1 in order, or a token is longer than 255 bytes.
    """
    tokens = []
    for number, line in enumerate(original.splitlines()):
        token, rank = line.split()
        if int(rank) != number:
            raise ValueError(f"line {number} has rank {int(rank)}")
        tokens.append(base64.b64decode(token))
    lengths = bytes(map(len, tokens))
    return len(tokens).to_bytes(4, "big") + lengths + b"".join(tokens)


def unpacked_text(tokens: list[bytes]) -> bytes:
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


def build(wheel: Path, folder: Path) -> None:
    """Write the compact files of a wheel of bpe-openai into a folder."""
    with zipfile.ZipFile(wheel) as archive:
        for name in SHA256:
            packed = archive.read(f"bpe_openai/data/{name}.tiktoken.gz")
            original = gzip.decompress(packed)
            check(name, original)
            compact = lzma.compress(pack(original), preset=9 | lzma.PRESET_EXTREME)
            (folder / f"{name}.xz").write_bytes(compact)
            sys.stdout.write(f"{name}: {len(original):,} bytes -> {len(compact):,} bytes\n")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: build.py WHEEL_OF_BPE_OPENAI")
    build(Path(sys.argv[1]), Path(__file__).parent)
