"""The shipped ranks are tiktoken's own, and need no network."""

import gzip
import hashlib
import io
import lzma
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import tiktoken
from tiktoken_ext import openai_public

from inf_middleware import ConfigError
from inf_middleware.tokens.encodings import ENCODINGS, load_encoding, load_ranks
from inf_middleware.tokens.ranks.build import SHA256, build, pack, unpacked_text

RANKS = Path(sys.modules[load_ranks.__module__].__file__ or "").parent / "ranks"


def tiktokens_own_hash(name: str) -> str:
    """The hash that tiktoken passes to its download, caught before the download."""
    caught = []

    def instead(_url: str, expected_hash: str) -> dict[bytes, int]:
        caught.append(expected_hash)
        return {}

    constructor = openai_public.ENCODING_CONSTRUCTORS[name]
    own = {**constructor.__globals__, "load_tiktoken_bpe": instead}
    type(constructor)(constructor.__code__, own)()
    return caught[0]


@pytest.mark.parametrize("name", ENCODINGS)
def test_the_original_file_is_rebuilt_to_tiktokens_own_sha256(name: str) -> None:
    tokens = sorted(load_ranks(name), key=load_ranks(name).__getitem__)
    digest = hashlib.sha256(unpacked_text(tokens)).hexdigest()
    assert digest == tiktokens_own_hash(name) == SHA256[name]


VECTORS = [
    ("o200k_base", "hello world", [24912, 2375]),
    ("cl100k_base", "hello world", [15339, 1917]),
    ("cl100k_base", "tiktoken is great!", [83, 1609, 5963, 374, 2294, 0]),
    ("cl100k_base", "2 + 2 = 4", [17, 489, 220, 17, 284, 220, 19]),
    (
        "cl100k_base",
        "お誕生日おめでとう",
        [33334, 45918, 243, 21990, 9080, 33334, 62004, 16556, 78699],
    ),
]


@pytest.mark.parametrize(("name", "text", "ids"), VECTORS)
def test_ids_are_those_that_are_published(name: str, text: str, ids: list[int]) -> None:
    encoding = load_encoding(name)
    assert encoding.encode(text) == ids
    assert encoding.decode(ids) == text


@pytest.mark.parametrize("name", ENCODINGS)
def test_an_encoding_is_built_once_and_is_whole(name: str) -> None:
    encoding = load_encoding(name)
    assert load_encoding(name) is encoding
    assert isinstance(encoding, tiktoken.Encoding)
    assert encoding.name == name
    assert encoding.encode("<|endoftext|>", allowed_special="all") == [encoding.eot_token]


def test_an_encoding_that_is_not_shipped_is_refused_in_words() -> None:
    with pytest.raises(ConfigError, match="shipped are cl100k_base, o200k_base"):
        load_encoding("gpt2")


def test_counting_works_with_no_network_at_all(tmp_path: Path) -> None:
    code = """
import socket

def no_network(*args, **kwargs):
    raise AssertionError("the network was touched")

socket.socket.connect = socket.getaddrinfo = socket.create_connection = no_network
from inf_middleware.tokens.counting import Counter
assert Counter("o200k_base").count_now(["hello world"]).tokens == 2
assert Counter("cl100k_base").count_now(["hello world"]).tokens == 2
"""
    environment = {"HOME": str(tmp_path), "TMPDIR": str(tmp_path), "PATH": "/nowhere"}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert ran.returncode == 0, ran.stderr.decode()
    assert list(tmp_path.iterdir()) == []


def test_the_script_makes_the_very_files_that_are_shipped(tmp_path: Path) -> None:
    wheel = io.BytesIO()
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in SHA256:
            ranks = load_ranks(name)
            original = unpacked_text(sorted(ranks, key=ranks.__getitem__))
            archive.writestr(f"bpe_openai/data/{name}.tiktoken.gz", gzip.compress(original))
    made = tmp_path / "a.whl"
    made.write_bytes(wheel.getvalue())
    build(made, tmp_path)
    for name in SHA256:
        shipped = (RANKS / f"{name}.xz").read_bytes()
        assert lzma.decompress((tmp_path / f"{name}.xz").read_bytes()) == lzma.decompress(shipped)


def test_the_script_refuses_a_file_that_is_not_tiktokens(tmp_path: Path) -> None:
    wheel = tmp_path / "a.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in SHA256:
            archive.writestr(f"bpe_openai/data/{name}.tiktoken.gz", gzip.compress(b"IQ== 0\n"))
    with pytest.raises(ValueError, match="has sha256"):
        build(wheel, tmp_path)
    assert not list(tmp_path.glob("*.xz"))


def test_ranks_out_of_order_are_refused() -> None:
    with pytest.raises(ValueError, match="line 1 has rank 2"):
        pack(b"IQ== 0\nIg== 2\n")


def test_the_licence_stands_beside_the_data() -> None:
    notice = (RANKS / "LICENSE-tiktoken").read_text("utf-8")
    assert "MIT License" in notice
    assert "OpenAI" in notice
