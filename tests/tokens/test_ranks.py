"""The shipped rank files are tiktoken's, and can be made again."""

import base64
import gzip
import hashlib
import lzma
import zipfile
from importlib.resources import files
from pathlib import Path

import pytest
from tiktoken_ext import openai_public

from inf_middleware.tokens.encodings import ENCODINGS, encoding_arguments, load_ranks, unpack
from inf_middleware.tokens.ranks.build import SHA256, build, original_text, pack

RANKS = files("inf_middleware") / "tokens" / "ranks"


def shipped(name: str) -> bytes:
    return lzma.decompress((RANKS / f"{name}.xz").read_bytes())


def original(name: str) -> bytes:
    return original_text(unpack(shipped(name)))


def expected_by_tiktoken(name: str) -> str:
    asked = []

    def load(_url: str, expected_hash: str) -> dict[bytes, int]:
        asked.append(expected_hash)
        return {}

    encoding_arguments(openai_public.ENCODING_CONSTRUCTORS[name], load)
    assert len(asked) == 1
    return asked[0]


def folder_of_originals(folder: Path) -> Path:
    folder.mkdir()
    for name in ENCODINGS:
        (folder / f"{name}.tiktoken.gz").write_bytes(gzip.compress(original(name), 1))
    return folder


@pytest.mark.parametrize("name", ENCODINGS)
def test_rebuilt_original_has_the_sha256_that_tiktoken_itself_checks(name: str) -> None:
    digest = hashlib.sha256(original(name)).hexdigest()
    assert digest == expected_by_tiktoken(name)
    assert digest == SHA256[name]


@pytest.mark.parametrize("name", ENCODINGS)
def test_every_line_of_the_original_is_in_the_loaded_ranks(name: str) -> None:
    lines = (line.split() for line in original(name).splitlines())
    assert load_ranks(name) == {base64.b64decode(token): int(rank) for token, rank in lines}


@pytest.mark.parametrize("name", ENCODINGS)
def test_no_token_is_longer_than_the_bound_says(name: str) -> None:
    assert max(map(len, load_ranks(name))) == 128


def test_licence_of_the_ranks_stands_beside_them() -> None:
    text = (RANKS / "LICENSE-tiktoken").read_text("utf-8")
    assert text.startswith("MIT License\n\nCopyright (c) 2022 OpenAI, Shantanu Jain\n")
    for digest in SHA256.values():
        assert digest in (RANKS / "README.md").read_text("utf-8")


def test_the_script_makes_the_shipped_files_from_a_folder_and_from_a_wheel(tmp_path: Path) -> None:
    source = folder_of_originals(tmp_path / "source")
    wheel = tmp_path / "bpe_openai.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path in source.iterdir():
            archive.write(path, f"bpe_openai/data/{path.name}")
    made = []
    for start in (source, wheel):
        folder = tmp_path / f"from-{start.name}"
        folder.mkdir()
        build(start, folder)
        made.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert made[0] == made[1]  # the same bytes each time
    for name in ENCODINGS:
        # Another release of xz may compress otherwise; what is inside stays.
        assert lzma.decompress(made[0][f"{name}.xz"]) == shipped(name)


@pytest.mark.parametrize("name", ENCODINGS)
def test_the_script_refuses_a_wrong_hash_and_writes_nothing(name: str, tmp_path: Path) -> None:
    source = folder_of_originals(tmp_path / "source")
    # Only two tokens change places: every line still reads well.
    lines = original(name).splitlines(keepends=True)
    first, second = (line.split()[0] for line in lines[1000:1002])
    lines[1000:1002] = [b"%s 1000\n" % second, b"%s 1001\n" % first]
    (source / f"{name}.tiktoken.gz").write_bytes(gzip.compress(b"".join(lines), 1))
    folder = tmp_path / "made"
    folder.mkdir()
    with pytest.raises(ValueError, match=f"{name} has sha256 .* tiktoken expects {SHA256[name]}"):
        build(source, folder)
    assert list(folder.iterdir()) == []


def test_what_cannot_be_had_back_is_not_packed() -> None:
    assert unpack(pack(b"IQ== 0\nIg== 1\n")) == [b"!", b'"']
    for text in (b"IQ== 1\nIg== 0\n", b"IQ== 0\nIg== 2\n", b"IQ== 0"):
        with pytest.raises(ValueError, match="ranks 0 to n-1"):
            pack(text)
    with pytest.raises(ValueError, match="256"):
        pack(b"%s 0\n" % base64.b64encode(b"x" * 256))
