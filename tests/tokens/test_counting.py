"""Counting: exact where it can be, an estimate where not, and never on the event loop for long."""

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
import tiktoken
from hypothesis import given
from hypothesis import strategies as st

from inf_middleware.domain.errors import ConfigError
from inf_middleware.tokens.counting import (
    INLINE_BYTES_MAX,
    INLINE_TEXTS_MAX,
    TEXT_BYTES_MAX,
    Count,
    Counter,
)
from inf_middleware.tokens.encodings import ENCODINGS, load_encoding

# Lone surrogates too: json.loads lets them through.
ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=400)
REPEATED = st.builds(lambda text, times: text * times, st.text(max_size=4), st.integers(0, 300))


def of_words(text: str) -> int:
    return len(text.split())


def where_it_counts(texts: list[str]) -> str:
    """Return the name of the thread in which a counter of the user's is called."""
    names = set()

    def count(_text: str) -> int:
        names.add(threading.current_thread().name)
        return 1

    asyncio.run(Counter(count).count(texts))
    (name,) = names
    return name


@pytest.mark.parametrize("name", ENCODINGS)
@given(text=ANY_TEXT | REPEATED)
def test_tokens_lie_between_the_bounds_of_their_bytes(name: str, text: str) -> None:
    fewest, most = Counter(name).bounds(len(text.encode("utf-8", "surrogatepass")))
    assert most is not None
    count = Counter(name).count_now([text])
    assert fewest <= count.tokens <= most
    assert count.exact


@given(texts=st.lists(ANY_TEXT, max_size=5))
def test_texts_are_counted_each_for_itself_as_tiktoken_does(texts: list[str]) -> None:
    encoding = load_encoding("o200k_base")
    expected = Count(sum(len(encoding.encode_ordinary(text)) for text in texts), True)
    counter = Counter("o200k_base")
    assert counter.count_now(texts) == expected
    assert asyncio.run(counter.count(texts)) == expected
    assert Counter(encoding).count_now(texts) == expected


def test_token_bounds_are_reached() -> None:
    counter = Counter("o200k_base")
    assert counter.bounds(0) == (0, 0)
    assert counter.bounds(1) == (1, 1)
    assert counter.bounds(128) == (1, 128)
    assert counter.bounds(129) == (2, 129)
    assert counter.count_now([" " * 128]).tokens == 1
    assert counter.count_now(["\x01" * 128]).tokens == 128


def test_there_are_no_bounds_where_they_do_not_hold() -> None:
    assert Counter(of_words).bounds(10_000) == (0, None)
    assert Counter(load_encoding("cl100k_base")).bounds(10_000) == (1, 10_000)


def test_no_text_is_no_token() -> None:
    counter = Counter("o200k_base")
    assert asyncio.run(counter.count([])) == counter.count_now([]) == Count(0, True)
    assert counter.count_now(["", ""]) == Count(0, True)


def test_special_tokens_in_a_text_are_text() -> None:
    for name in ENCODINGS:
        assert Counter(name).count_now(["<|endoftext|>"]) == Count(7, True)
        assert Counter(tiktoken_with_specials(name)).count_now(["<|endoftext|>"]).tokens == 7


def tiktoken_with_specials(name: str) -> tiktoken.Encoding:
    encoding = load_encoding(name)
    assert "<|endoftext|>" in encoding.special_tokens_set
    return encoding


def test_lone_surrogates_are_counted() -> None:
    # Each as U+FFFD, the character for what cannot be read.
    readable = Counter("o200k_base").count_now(["a\ufffdb", "\ufffd" * 10])
    assert Counter("o200k_base").count_now(["a\ud800b", "\udfff" * 10]) == readable
    assert readable.tokens >= 5


@pytest.mark.parametrize("name", ENCODINGS)
@pytest.mark.parametrize("end", ["", "a"])
@pytest.mark.parametrize("start", ["", "say "])
def test_runs_of_blanks_that_break_tiktoken_are_cut_and_counted(
    name: str, start: str, end: str
) -> None:
    text = start + " " * 1_200_000 + end
    count = Counter(name).count_now([text])
    # 128 blanks are one token, and each cut costs at most two.
    assert 9375 <= count.tokens <= 9375 + 12
    assert not count.exact


def test_runs_that_tiktoken_can_count_are_counted_whole() -> None:
    text = " " * 249_999 + "a" + "\n" * 200_000 + "b"
    expected = len(load_encoding("o200k_base").encode_ordinary(text))
    assert Counter("o200k_base").count_now([text]) == Count(expected, True)


def test_no_part_keeps_a_run_that_breaks_tiktoken_wherever_it_begins() -> None:
    counter = Counter("o200k_base")
    for before in (1, 249_999, 250_000, 250_001):
        text = "a" * before + "\t" * 1_000_001 + "b"
        parts = counter.count_now([text])
        whole = counter.count_now(["a" * before]).tokens
        assert whole < parts.tokens < len(text) // 4  # else it would have been estimated


def test_a_counter_of_the_users_is_asked_and_believed() -> None:
    assert Counter(of_words).count_now(["one two", "three"]) == Count(3, True)


def failing(_text: str) -> int:
    raise ValueError("no")


def stopping(_text: str) -> int:
    raise StopIteration


def panicking(text: str) -> int:
    return len(load_encoding("o200k_base").encode_ordinary(text + " " * 1_200_000))


@pytest.mark.parametrize(
    "counter",
    [
        failing,
        stopping,
        panicking,
        lambda _: -1,
        lambda _: 2.0,
        lambda _: True,
        lambda _: None,
        lambda _: "2",
    ],
)
@pytest.mark.parametrize("size", [9, 9 * INLINE_BYTES_MAX])
def test_counter_that_fails_or_answers_oddly_makes_an_estimate(
    counter: Callable[[str], Any], size: int
) -> None:
    count = asyncio.run(Counter(counter).count(["x" * size]))
    assert count == Count(-(-size // 4), False)


def test_one_text_that_fails_leaves_the_others_counted() -> None:
    def count(text: str) -> int:
        return 100 // (text != "bad!")

    assert Counter(count).count_now(["good", "bad!", "good"]) == Count(201, False)


def test_interrupts_and_exits_of_a_counter_are_not_swallowed() -> None:
    def count(_text: str) -> int:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Counter(count).count_now(["a"])


def test_texts_over_the_bound_are_estimated_and_not_counted() -> None:
    asked = []
    counter = Counter(lambda text: asked.append(text) or 1)
    half = "中" * (TEXT_BYTES_MAX // 6)
    assert asyncio.run(counter.count([half, half, "abcdefgh"])) == Count(
        2 * -(-len(half) * 3 // 4) + 2, False
    )
    assert asked == []
    assert counter.count_now(["a" * TEXT_BYTES_MAX]) == Count(1, True)
    assert not counter.count_now(["a" * TEXT_BYTES_MAX, "a"]).exact


def test_small_texts_are_counted_in_place_and_others_in_the_pool() -> None:
    here = threading.current_thread().name
    assert where_it_counts(["a" * INLINE_BYTES_MAX]) == here
    assert where_it_counts(["a"] * INLINE_TEXTS_MAX) == here
    for texts in (
        ["a" * (INLINE_BYTES_MAX + 1)],
        ["a" * INLINE_BYTES_MAX, "a"],
        ["中" * (INLINE_BYTES_MAX // 3 + 1)],  # bytes count, not characters
        ["a"] * (INLINE_TEXTS_MAX + 1),
    ):
        assert where_it_counts(texts).startswith("inf-middleware-count")


def test_the_pool_has_few_threads_however_many_count() -> None:
    names = set()
    counter = Counter(lambda _: names.add(threading.current_thread().name) or 1)

    async def many() -> None:
        await asyncio.gather(*(counter.count(["a" * 5000]) for _ in range(50)))

    asyncio.run(many())
    assert 1 <= len(names) <= max(1, min(2, (os.cpu_count() or 1) - 1))


def test_a_count_given_up_ends_at_once_and_leaves_the_pool_working() -> None:
    release = threading.Event()

    def slow(_text: str) -> int:
        release.wait(60)
        return 1

    async def give_up() -> Count:
        task = asyncio.create_task(Counter(slow).count(["a" * 5000]))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        release.set()
        return await Counter(of_words).count(["a " * 5000])

    assert asyncio.run(give_up()) == Count(5000, True)


@pytest.mark.parametrize(
    ("counter", "says"),
    [
        ("gpt2", "'gpt2'; shipped encodings are cl100k_base, o200k_base; or give"),
        ("", "shipped encodings are"),
        (None, "give an encoding's name, the path of a tokenizer.json"),
        (7, "give an encoding's name, the path of a tokenizer.json"),
        (asyncio.sleep, "which is async; give a plain function"),
        (type("Model", (), {"__call__": asyncio.sleep})(), "which is async"),
    ],
)
def test_what_cannot_count_is_refused_at_construction(counter: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Counter(counter)


def in_a_fresh_process(code: str, timeout_s: float = 120) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONWARNINGS": "ignore"},  # of forking with threads
        capture_output=True,
        encoding="utf-8",
        timeout=timeout_s,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_construction_loads_nothing_and_starts_no_thread() -> None:
    code = """
import threading
from inf_middleware.tokens.counting import Counter
from inf_middleware.tokens.encodings import is_loaded
Counter("o200k_base")
print(is_loaded("o200k_base"), threading.active_count())
"""
    assert in_a_fresh_process(code) == ["False", "1"]


@pytest.mark.parametrize("first", ['counter.count(["hello world"])', "counter.load()"])
def test_event_loop_goes_on_while_the_encoding_is_loaded(first: str) -> None:
    code = f"""
import asyncio
from inf_middleware.tokens.counting import Counter
from inf_middleware.tokens.encodings import is_loaded
beats = 0
async def beat():
    global beats
    while True:
        beats += 1
        await asyncio.sleep(0)
async def main():
    heart = asyncio.create_task(beat())
    counter = Counter("o200k_base")
    await {first}
    print(is_loaded("o200k_base"), beats > 0)
    heart.cancel()
    before = beats
    print((await counter.count(["hello world"])).tokens, beats == before)
asyncio.run(main())
"""
    assert in_a_fresh_process(code) == ["True", "True", "2", "True"]


def test_long_runs_just_below_a_cut_take_no_quadratic_time() -> None:
    # Two seconds; a search that tries each run from each of its characters takes minutes, and
    # a regular expression would hold the GIL, and so the event loop, all the while.
    code = """
from inf_middleware.tokens.counting import Counter
text = "".join(" " * run + "ab " for run in [99_999] * 60 + [249_999, 499_999])
print(Counter("o200k_base").count_now([text + "ab " * 200_000]).tokens > 200_000)
"""
    assert in_a_fresh_process(code, timeout_s=60) == ["True"]


def test_a_forked_process_has_a_pool_of_its_own() -> None:
    code = """
import asyncio, os, signal
from inf_middleware.tokens.counting import Counter
counter = Counter("o200k_base")
texts = ["hello world " * 1000]
parent = asyncio.run(counter.count(texts))
pid = os.fork()
if pid == 0:
    signal.alarm(30)
    os._exit(0 if asyncio.run(counter.count(texts)) == parent else 1)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    assert in_a_fresh_process(code) == ["0"]
