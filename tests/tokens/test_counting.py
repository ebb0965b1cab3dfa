"""Counting, whatever the text holds, off the event loop."""

import asyncio
import subprocess
import sys
import threading

import pytest
import tiktoken
from hypothesis import given
from hypothesis import strategies as st

from inf_middleware import ConfigError
from inf_middleware.tokens.counting import Count, Counter, token_bounds
from inf_middleware.tokens.encodings import load_encoding

COUNTER = Counter("o200k_base")


@given(st.text(st.characters(), max_size=400))
def test_a_count_is_within_the_bounds_of_its_bytes(text: str) -> None:
    size = len(text.encode("utf-8", "replace"))
    for name in ("o200k_base", "cl100k_base"):
        count = Counter(name).count_now([text])
        low, high = token_bounds(len(text.encode("utf-8", "surrogatepass")))
        assert count.exact
        assert low <= count.tokens <= high or size == 0


def test_text_that_looks_like_a_special_token_is_text() -> None:
    assert COUNTER.count_now(["<|endoftext|>"]).tokens > 1


@pytest.mark.parametrize("tail", ["", "x"])
@pytest.mark.parametrize("blank", [" ", "\t", "\u3000"])
def test_a_million_blanks_are_counted(blank: str, tail: str) -> None:
    count = COUNTER.count_now([blank * 1_200_000 + tail])
    assert count.exact
    assert 1_200_000 // 128 <= count.tokens <= 3_700_000


def test_lone_surrogates_are_counted() -> None:
    count = COUNTER.count_now(["a\ud800b\udfff"])
    assert count.exact
    assert count.tokens >= 2


def test_text_beyond_the_bound_is_estimated() -> None:
    count = COUNTER.count_now(["x" * 9_000_000, "y" * 9_000_000])
    assert count == Count(4_500_000, False)


def test_a_function_of_the_users_counts() -> None:
    assert Counter(len).count_now(["abc", "de"]) == Count(5, True)
    encoding = load_encoding("cl100k_base")
    assert Counter(encoding).count_now(["hello world"]) == Count(2, True)


@pytest.mark.parametrize("answer", [-1, 1.5, None, True, "3"])
def test_a_counter_that_answers_nonsense_is_replaced_by_an_estimate(answer: object) -> None:
    counter = Counter(lambda _: answer)  # type: ignore[arg-type,return-value]
    assert counter.count_now(["12345678"]) == Count(2, False)


def test_a_counter_that_fails_is_replaced_by_an_estimate() -> None:
    def failing(text: str) -> int:
        raise RuntimeError("no model")

    assert Counter(failing).count_now(["12345678"]) == Count(2, False)


@pytest.mark.parametrize("counter", ["gpt-4", 5, None, ""])
def test_what_is_no_counter_is_refused_in_words(counter: object) -> None:
    with pytest.raises(ConfigError, match="counter is"):
        Counter(counter)  # type: ignore[arg-type]


def test_small_texts_are_counted_in_place_and_large_ones_in_a_thread() -> None:
    where: list[threading.Thread] = []

    def counter(text: str) -> int:
        where.append(threading.current_thread())
        return 1

    async def go() -> None:
        await Counter(counter).count(["x" * 4096])
        await Counter(counter).count(["x" * 4097])

    asyncio.run(go())
    assert where[0] is threading.current_thread()
    assert where[1].name.startswith("inf-middleware-count")


def test_the_event_loop_goes_on_while_an_encoding_loads_and_counts() -> None:
    code = """
import asyncio
from inf_middleware.tokens.counting import Counter
from inf_middleware.tokens.encodings import is_loaded

async def main():
    beats = 0
    async def heart():
        nonlocal beats
        while True:
            beats += 1
            await asyncio.sleep(0.001)
    beating = asyncio.create_task(heart())
    assert not is_loaded("o200k_base")
    assert (await Counter("o200k_base").count(["hello world"])).tokens == 2
    print(beats)
    beating.cancel()

asyncio.run(main())
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert int(ran.stdout) > 5


def test_constructing_a_counter_loads_nothing() -> None:
    code = """
from inf_middleware.tokens.counting import Counter
from inf_middleware.tokens.encodings import is_loaded
Counter("o200k_base")
assert not is_loaded("o200k_base")
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_encoding_of_tiktokens_is_taken_as_it_is() -> None:
    tiny = tiktoken.Encoding(
        "tiny",
        pat_str=r".",
        mergeable_ranks={bytes([n]): n for n in range(256)},
        special_tokens={},
    )
    assert Counter(tiny).count_now(["abc"]) == Count(3, True)
