"""The cache of look-ups: bounded, timed, one question at a time, and only what the key decides."""

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from starlette.requests import HTTPConnection

from inf_middleware import Account
from inf_middleware.accounts.cached import CachedAccounts
from inf_middleware.domain.errors import AccountsUnavailable
from inf_middleware.domain.keys import digest_of
from tests.driver import scope_of
from tests.kit import Clock


def connection(**scope: Any) -> HTTPConnection:
    return HTTPConnection(scope_of(**scope))


class Asked:
    """A look-up that notes who asked, and knows the keys that begin with sk-."""

    def __init__(self) -> None:
        self.keys: list[str | None] = []
        self.down = False

    async def __call__(self, key: str | None, connection: HTTPConnection) -> Account | None:
        self.keys.append(key)
        await asyncio.sleep(0)
        if self.down:
            raise OSError(f"cannot ask about {key!r}")
        return Account(f"of {key}") if key and key.startswith("sk-") else None


def run(check: Callable[[Asked, CachedAccounts, Clock], Awaitable[None]], **options: Any) -> None:
    asked, clock = Asked(), Clock()
    cached = CachedAccounts(asked, clock=clock, **{"ttl_s": 60.0, **options})
    asyncio.run(check(asked, cached, clock))  # type: ignore[arg-type]


def test_an_answer_is_remembered_for_its_time_and_not_longer() -> None:
    async def check(asked: Asked, cached: CachedAccounts, clock: Clock) -> None:
        for key in ("sk-a", "nobody"):
            first = await cached(key, connection())
            clock.now += 59.9
            assert await cached(key, connection()) is first
            clock.now += 0.1
            await cached(key, connection())
        assert asked.keys == ["sk-a", "sk-a", "nobody", "nobody"]

    run(check)


def test_who_is_at_hand_is_so_for_the_time_of_the_answer_and_not_longer() -> None:
    async def check(asked: Asked, cached: CachedAccounts, clock: Clock) -> None:
        for key in ("sk-a", "nobody"):
            assert cached.known_by_digest(digest_of(key)) is None
            await cached(key, connection())
        clock.now += 59.9
        assert cached.known_by_digest(digest_of("sk-a")) == Account("of sk-a")
        assert cached.known_by_digest(digest_of("nobody")) is None
        clock.now += 0.1
        assert cached.known_by_digest(digest_of("sk-a")) is None

    run(check)


def test_at_0_seconds_nothing_is_remembered() -> None:
    async def check(asked: Asked, cached: CachedAccounts, clock: Clock) -> None:
        for _ in range(3):
            await cached("sk-a", connection())
        assert len(asked.keys) == 3

    run(check, ttl_s=0.0)


def test_concurrent_look_ups_of_one_key_share_one_call() -> None:
    async def check(asked: Asked, cached: CachedAccounts, clock: Clock) -> None:
        found = await asyncio.gather(
            *(cached(key, connection()) for key in ["sk-a", "sk-b", "nobody"] * 50)
        )
        assert sorted(map(str, asked.keys)) == ["nobody", "sk-a", "sk-b"]
        assert found[0] == Account("of sk-a")
        assert found[2] is None

    run(check)


def test_who_leaves_while_waiting_does_not_take_the_answer_from_others() -> None:
    async def check(asked: Asked, cached: CachedAccounts, clock: Clock) -> None:
        first = asyncio.ensure_future(cached("sk-a", connection()))
        second = asyncio.ensure_future(cached("sk-a", connection()))
        await asyncio.sleep(0)
        first.cancel()
        assert await second == Account("of sk-a")
        assert asked.keys == ["sk-a"]

    run(check)


def test_a_flood_of_random_keys_pushes_no_valid_key_out_and_grows_no_memory() -> None:
    async def check(asked: Asked, cached: CachedAccounts, clock: Clock) -> None:
        await cached("sk-a", connection())
        for number in range(1_000):
            await cached(f"random-{number}", connection())
        asked.keys.clear()
        await cached("sk-a", connection())
        await cached("random-999", connection())
        assert asked.keys == []
        await cached("random-900", connection())
        assert asked.keys == ["random-900"]

    run(check, known_max=10, unknown_max=20)


def test_of_too_many_valid_keys_the_least_used_is_forgotten() -> None:
    async def check(asked: Asked, cached: CachedAccounts, clock: Clock) -> None:
        for key in ("sk-a", "sk-b", "sk-a", "sk-c"):
            await cached(key, connection())
        asked.keys.clear()
        await cached("sk-a", connection())
        await cached("sk-b", connection())
        assert asked.keys == ["sk-b"]

    run(check, known_max=2)


def test_what_is_fresh_serves_while_the_look_up_fails_and_the_rest_is_unavailable(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "inf_middleware.accounts")

    async def check(asked: Asked, cached: CachedAccounts, clock: Clock) -> None:
        await cached("sk-a", connection())
        asked.down = True
        clock.now += 59.0
        assert await cached("sk-a", connection()) == Account("of sk-a")
        for key in ("sk-b", "sk-c", "nobody"):
            with pytest.raises(AccountsUnavailable):
                await cached(key, connection())
        clock.now += 1.0
        with pytest.raises(AccountsUnavailable):
            await cached("sk-a", connection())
        asked.down = False
        assert await cached("sk-a", connection()) == Account("of sk-a")

    run(check)
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2
    assert "cannot ask about '<key>'" in told[0]
    assert "works again" in told[1]
    assert "sk-" not in caplog.text


def test_a_look_up_that_hangs_has_failed() -> None:
    async def hanging(key: str | None, connection: HTTPConnection) -> Account | None:
        await asyncio.Event().wait()
        return None

    async def check() -> None:
        with pytest.raises(AccountsUnavailable):
            await CachedAccounts(hanging, ttl_s=60.0, timeout_s=0.01)("sk-a", connection())

    asyncio.run(check())


def test_a_loop_that_ends_takes_its_questions_with_it() -> None:
    asked = Asked()
    cached = CachedAccounts(asked, ttl_s=60.0)

    async def leaving() -> None:
        for _ in range(2):
            waiting = asyncio.ensure_future(cached("sk-a", connection()))
        await asyncio.sleep(0)
        assert not waiting.done()

    asyncio.run(leaving())
    assert asyncio.run(cached("sk-a", connection())) == Account("of sk-a")


def test_a_question_of_another_event_loop_is_not_waited_for() -> None:
    begun, goes_on = threading.Event(), threading.Event()
    asked: list[str | None] = []

    async def look_up(key: str | None, connection: HTTPConnection) -> Account | None:
        asked.append(key)
        if len(asked) == 1:
            begun.set()
            await asyncio.to_thread(goes_on.wait, 20)
        return Account("acme")

    cached = CachedAccounts(look_up, ttl_s=60.0)
    other = threading.Thread(target=lambda: asyncio.run(cached("sk-a", connection())))
    other.start()
    assert begun.wait(20)
    try:
        found = asyncio.run(asyncio.wait_for(cached("sk-a", connection()), 20))
    finally:
        goes_on.set()
        other.join(20)
    assert (found, len(asked)) == (Account("acme"), 2)


def test_a_look_up_that_gives_itself_up_has_failed_and_cancels_no_request() -> None:
    async def giving_up(key: str | None, connection: HTTPConnection) -> Account | None:
        raise asyncio.CancelledError

    async def check() -> None:
        with pytest.raises(AccountsUnavailable):
            await CachedAccounts(giving_up, ttl_s=60.0)("sk-a", connection())

    asyncio.run(check())


def test_questions_in_progress_are_bounded() -> None:
    release = asyncio.Event()

    async def slow(key: str | None, connection: HTTPConnection) -> Account | None:
        await release.wait()
        return Account("a")

    async def check() -> None:
        cached = CachedAccounts(slow, ttl_s=60.0, asking_max=2)
        running = [asyncio.ensure_future(cached(key, connection())) for key in ("sk-a", "sk-b")]
        await asyncio.sleep(0)
        with pytest.raises(AccountsUnavailable):
            await cached("sk-c", connection())
        release.set()
        assert await asyncio.gather(*running) == [Account("a")] * 2
        assert await cached("sk-c", connection()) == Account("a")

    asyncio.run(check())


def test_an_answer_that_comes_from_the_connection_is_given_to_that_request_only(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "inf_middleware.accounts")

    async def by_team(key: str | None, connection: HTTPConnection) -> Account | None:
        await asyncio.sleep(0)
        return Account(connection.headers["x-team"])

    async def check() -> None:
        cached = CachedAccounts(by_team, ttl_s=60.0)
        teams = ["red", "blue"] * 10
        for _ in range(2):
            found = await asyncio.gather(
                *(cached("sk-a", connection(headers=[("x-team", team)])) for team in teams)
            )
            assert [account.id for account in found if account] == teams

    asyncio.run(check())
    (told,) = [record.getMessage() for record in caplog.records]
    assert "reads the connection" in told


READING: list[Callable[[HTTPConnection], object]] = [
    lambda connection: connection.headers,
    lambda connection: connection.client,
    lambda connection: connection.scope,
    lambda connection: connection.state,
    lambda connection: connection.url.path,
    lambda connection: connection["path"],
    dict,
    lambda connection: connection.cookies,
]


@pytest.mark.parametrize("read", READING)
def test_whatever_is_read_of_the_connection_is_seen(
    read: Callable[[HTTPConnection], object],
) -> None:
    calls = 0

    async def reading(key: str | None, connection: HTTPConnection) -> Account | None:
        nonlocal calls
        calls += 1
        read(connection)
        return Account("a")

    async def check() -> None:
        cached = CachedAccounts(reading, ttl_s=60.0)
        for _ in range(3):
            await cached("sk-a", connection())

    asyncio.run(check())
    assert calls == 3


def test_the_application_is_no_part_of_a_request() -> None:
    calls = 0

    async def reading(key: str | None, connection: HTTPConnection) -> Account | None:
        nonlocal calls
        calls += 1
        return Account(connection.app["database"][key])

    async def check() -> None:
        cached = CachedAccounts(reading, ttl_s=60.0)
        app = {"database": {"sk-a": "acme"}}
        for _ in range(3):
            found = await cached("sk-a", HTTPConnection({**scope_of(), "app": app}))
            assert found == Account("acme")

    asyncio.run(check())
    assert calls == 1


def test_without_a_key_the_look_up_is_asked_each_time() -> None:
    async def check(asked: Asked, cached: CachedAccounts, clock: Clock) -> None:
        for _ in range(3):
            assert await cached(None, connection()) is None
        assert asked.keys == [None] * 3

    run(check)


def test_no_key_is_kept_in_clear() -> None:
    async def check(asked: Asked, cached: CachedAccounts, clock: Clock) -> None:
        await cached("sk-secret", connection())
        await cached("unknown-secret", connection())
        kept = {**cached._known._entries, **cached._unknown._entries}
        assert len(kept) == 2
        assert b"secret" not in b"".join(kept)

    run(check)
