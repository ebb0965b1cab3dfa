"""Shipped encodings are tiktoken's own, without a network."""

import hashlib
import json
import lzma
import os
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from tiktoken.load import load_tiktoken_bpe, read_file_cached
from tiktoken_ext import openai_public

from inf_middleware.domain.errors import ConfigError
from inf_middleware.tokens.encodings import (
    ENCODINGS,
    encoding_arguments,
    is_loaded,
    load_encoding,
    unpack,
)
from inf_middleware.tokens.ranks.build import original_text

# Ids as the encodings have them everywhere; those of cl100k_base up to the thumb are also in
# tiktoken's own tests.
KNOWN = [
    ("cl100k_base", "hello world", [15339, 1917]),
    ("cl100k_base", "rer", [38149]),
    ("cl100k_base", "'rer", [2351, 81]),
    ("cl100k_base", "today\n ", [31213, 198, 220]),
    ("cl100k_base", "today\n \n", [31213, 27907]),
    ("cl100k_base", "today\n  \n", [31213, 14211]),
    ("cl100k_base", " \x850", [220, 126, 227, 15]),
    ("cl100k_base", "👍", [9468, 239, 235]),
    ("cl100k_base", "你好，世界", [57668, 53901, 3922, 3574, 244, 98220]),
    ("cl100k_base", "def f(x):\n    return x", [755, 282, 2120, 997, 262, 471, 865]),
    ("o200k_base", "hello world", [24912, 2375]),
    ("o200k_base", "你好，世界", [177519, 979, 28428]),
    ("o200k_base", "def f(x):\n    return x", [1314, 285, 4061, 1883, 271, 622, 1215]),
    ("o200k_base", "naïve café", [1503, 9954, 737, 30469]),
    ("o200k_base", "👍", [82514]),
    ("o200k_base", "👩\u200d💻", [28823, 102, 2524, 31446, 119]),
]

SAMPLES = [
    *(text for _, text, _ in KNOWN),
    "It's 1234567 o'clock: THEY'LL say\t\"no\"  \r\n\r\n   and go.",
    "金融与医疗：每 1,000,000 个 token 的价格是 ¥10。\n",
    '{"messages": [{"role": "user", "content": "\\u4f60"}]}',
    "for (int i = 0; i < n; ++i) { a[i] /= 2; } // done\n",
    "مرحبا בעולם Привет नमस्ते สวัสดี 안녕하세요 e\u0301\u0323",
    "<|endoftext|><|endofprompt|>",
    "\x00\x7f\xa0\u2028\ufeff\U0010ffff",
]

# tiktoken names files of its cache by the sha1 of where they come from.
CACHE_NAMES = {
    name: hashlib.sha1(
        f"https://openaipublic.blob.core.windows.net/encodings/{name}.tiktoken".encode(),
        usedforsecurity=False,
    ).hexdigest()
    for name in ENCODINGS
}

# Asks tiktoken itself, whose cache holds the files rebuilt from ours and whose downloads fail.
ASK_TIKTOKEN = """
import json, sys, tiktoken
names, samples = json.load(sys.stdin)
told = {}
for name in names:
    encoding = tiktoken.get_encoding(name)
    told[name] = {
        "name": encoding.name,
        "pattern": encoding._pat_str,
        "special": encoding._special_tokens,
        "size": encoding.n_vocab,
        "ids": [encoding.encode_ordinary(sample) for sample in samples],
    }
json.dump(told, sys.stdout)
"""

NO_NETWORK = """
import sys
touched = []
def refuse(event, args):
    if event in {"socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"}:
        touched.append(event)
        raise RuntimeError("there is no network here")
sys.addaudithook(refuse)
"""

COUNT = """
import asyncio
from inf_middleware.tokens.counting import Counter
for name in ("o200k_base", "cl100k_base"):
    count = asyncio.run(Counter(name).count(["hello world", "你好，世界"]))
    print(name, count.tokens, count.exact)
print(touched)
import socket
try:
    socket.getaddrinfo("localhost", 80)
except RuntimeError:
    print("and the network was off")
"""

# The fork happens while another thread is loading, which is then missing in the child.
FORK_WHILE_LOADING = """
import os, signal, threading, time
from inf_middleware.tokens import encodings
thread = threading.Thread(target=encodings.load_encoding, args=("o200k_base",))
thread.start()
while not encodings._locks["o200k_base"].locked() and thread.is_alive():
    time.sleep(0)
pid = os.fork()
if pid == 0:
    signal.alarm(30)
    assert not encodings.is_loaded("o200k_base")
    ids = encodings.load_encoding("o200k_base").encode("hello world")
    os._exit(0 if ids == [24912, 2375] else 1)
thread.join()
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def run(code: str, folder: Path, stdin: str = "", **environment: str) -> str:
    clean = {
        name: value
        for name, value in os.environ.items()
        if name not in {"TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR"}
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=stdin,
        env={**clean, "TMPDIR": str(folder), "PYTHONUTF8": "1", **environment},
        capture_output=True,
        encoding="utf-8",
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(("name", "text", "ids"), KNOWN)
def test_known_texts_have_their_known_ids(name: str, text: str, ids: list[int]) -> None:
    assert load_encoding(name).encode_ordinary(text) == ids
    assert load_encoding(name).decode(ids) == text


def test_ids_pattern_and_special_tokens_are_those_of_tiktoken_itself(tmp_path: Path) -> None:
    for name in ENCODINGS:
        packed = (files("inf_middleware") / "tokens" / "ranks" / f"{name}.xz").read_bytes()
        text = original_text(unpack(lzma.decompress(packed)))
        (tmp_path / CACHE_NAMES[name]).write_bytes(text)
    told = json.loads(
        run(
            NO_NETWORK + ASK_TIKTOKEN,
            tmp_path,
            stdin=json.dumps([ENCODINGS, SAMPLES]),
            TIKTOKEN_CACHE_DIR=str(tmp_path),
        )
    )
    for name in ENCODINGS:
        ours = load_encoding(name)
        assert told[name] == {
            "name": ours.name,
            "pattern": ours._pat_str,
            "special": ours._special_tokens,
            "size": ours.n_vocab,
            "ids": [ours.encode_ordinary(sample) for sample in SAMPLES],
        }


def test_counting_needs_no_network_and_leaves_no_file(tmp_path: Path) -> None:
    lines = run(NO_NETWORK + COUNT, tmp_path).splitlines()
    assert lines == ["o200k_base 5 True", "cl100k_base 8 True", "[]", "and the network was off"]
    assert list(tmp_path.iterdir()) == []


def test_a_process_forked_while_another_thread_loads_can_load(tmp_path: Path) -> None:
    assert run(FORK_WHILE_LOADING, tmp_path, PYTHONWARNINGS="ignore").split() == ["0"]


def test_an_encoding_is_built_once_however_many_threads_ask(tmp_path: Path) -> None:
    code = """
from concurrent.futures import ThreadPoolExecutor
from inf_middleware.tokens.encodings import ENCODINGS, is_loaded, load_encoding
assert not any(map(is_loaded, ENCODINGS))
with ThreadPoolExecutor(8) as pool:
    print(len({id(encoding) for encoding in pool.map(load_encoding, ENCODINGS * 4)}))
"""
    assert run(code, tmp_path).split() == ["2"]


def test_what_is_loaded_is_had_while_another_encoding_loads(tmp_path: Path) -> None:
    code = """
from inf_middleware.tokens import encodings
loaded = encodings.load_encoding("cl100k_base")
for lock in encodings._locks.values():
    lock.acquire()
print(encodings.load_encoding("cl100k_base") is loaded)
"""
    assert run(code, tmp_path).split() == ["True"]


def test_nothing_of_tiktoken_is_changed_by_loading() -> None:
    load_encoding("cl100k_base")
    assert openai_public.load_tiktoken_bpe is load_tiktoken_bpe


def test_unknown_name_is_told_what_is_shipped() -> None:
    for name in ("p50k_base", "gpt-4o", ""):
        with pytest.raises(ConfigError, match="shipped are cl100k_base, o200k_base"):
            load_encoding(name)
        assert not is_loaded(name)


def load_otherwise() -> dict[str, object]:
    return {"mergeable_ranks": read_file_cached("https://127.0.0.1:1/", None)}


def with_an_argument(where: str) -> dict[str, object]:
    return {"name": where}


@pytest.mark.parametrize("constructor", [load_otherwise, with_an_argument])
def test_constructor_that_would_load_in_another_way_fails_at_once(constructor: Any) -> None:
    with pytest.raises(ConfigError, match=r"install tiktoken 0\.14, or give a tiktoken\.Encoding"):
        encoding_arguments(constructor, lambda *_, **__: {})
