"""Waiting for one's turn: in order within an account, in turns between them, bounded."""

import asyncio
import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inf_middleware import Account, CostLedger, Tier, TierLimiter, TokenMeter
from inf_middleware.call import waiting
from tests.apps import completion, read_all, usage_of
from tests.driver import post, scope_of
from tests.kit import CHAT, House, Opaque, reading

# Far beyond what any of these tests takes: nobody is refused for having waited too long.
LONG_S = 60.0


class Gated:
    """A model that works on each request until it is told to end it."""

    def __init__(self) -> None:
        self.running: list[tuple[str, asyncio.Event]] = []
        self.order: list[str] = []
        self.came = asyncio.Condition()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        asked = json.loads(await read_all(receive))
        done = asyncio.Event()
        name = asked["messages"][0]["content"]
        async with self.came:
            self.order.append(name)
            self.running.append((name, done))
            self.came.notify_all()
        await done.wait()
        body = json.dumps(completion(usage=usage_of(1, 1))).encode()
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def serves(self, count: int) -> None:
        """Wait until so many requests have come."""
        async with asyncio.timeout(10), self.came:
            await self.came.wait_for(lambda: len(self.order) >= count)

    def end(self) -> str:
        """End the request that runs longest."""
        name, done = self.running.pop(0)
        done.set()
        return name


async def settled() -> None:
    """Let everything that can go on go on."""
    for _ in range(50):
        await asyncio.sleep(0)


def asking(name: str, **more: Any) -> dict[str, Any]:
    return {**CHAT, "messages": [{"role": "user", "content": name}], "max_tokens": 1, **more}


def claims(ledger: Path) -> int:
    """How many Idempotency-Keys are claimed, which is a commit each."""
    if not ledger.exists():
        return 0
    with reading(ledger) as db:
        if not db.execute("SELECT 1 FROM sqlite_schema WHERE name = 'idempotency'").fetchall():
            return 0
        return int(db.execute("SELECT count(*) FROM idempotency").fetchall()[0][0])


def accounts(**tiers: Tier) -> dict[str, Account]:
    return {f"sk-{name}": Account(name, tier=tier) for name, tier in tiers.items()}


ONE = Tier("One", 1, 1_000, 100_000)
WIDE = Tier("Wide", 100, 1_000, 1_000_000)


def test_without_waiting_a_full_account_is_refused_at_once(tmp_path: Path) -> None:
    async def go() -> None:
        model = Gated()
        house = House(model, tmp_path, accounts=accounts(a=ONE))
        first = asyncio.create_task(post(house.app, asking("1"), key="sk-a"))
        await model.serves(1)
        assert (await post(house.app, asking("2"), key="sk-a")).status == 429
        model.end()
        assert (await first).status == 200
        await house.close()

    asyncio.run(go())


def test_within_an_account_first_come_is_first_served(tmp_path: Path) -> None:
    async def go() -> None:
        model = Gated()
        house = House(model, tmp_path, accounts=accounts(a=ONE), max_wait_s=LONG_S)
        tasks = []
        for number in range(8):
            tasks.append(asyncio.create_task(post(house.app, asking(f"{number}"), key="sk-a")))
            await model.serves(1)  # and so what counts is loaded: the others are soon in line
            await settled()
        for number in range(8):
            await model.serves(number + 1)
            assert house.in_progress("a") == 1
            assert model.end() == f"{number}"
            await settled()
        assert [(await task).status for task in tasks] == [200] * 8
        await house.close()
        # Every wait is one admission, one record.
        assert len(house.records) == 8

    asyncio.run(go())


def test_a_small_request_does_not_pass_a_large_one_that_came_before(tmp_path: Path) -> None:
    tokens = Tier("Tokens", 100, 1_000, 1_000)

    async def go() -> None:
        model = Gated()
        house = House(model, tmp_path, accounts=accounts(a=tokens), max_wait_s=LONG_S)
        tasks = []
        # 600 and 900 do not fit together; 100 would fit beside 600.
        for name, most in (("large", 600), ("larger", 900), ("small", 100)):
            asked = asking(name, max_tokens=most - 8)
            tasks.append(asyncio.create_task(post(house.app, asked, key="sk-a")))
            await model.serves(1)  # and so what counts is loaded: the others are soon in line
            await settled()
        assert model.order == ["large"]
        assert model.end() == "large"
        await model.serves(2)
        assert model.order == ["large", "larger"]
        assert model.end() == "larger"
        await model.serves(3)
        model.end()
        assert [(await task).status for task in tasks] == [200] * 3
        await house.close()

    asyncio.run(go())


def test_where_the_process_is_full_accounts_take_turns(tmp_path: Path) -> None:
    async def go() -> None:
        model = Gated()
        house = House(
            model,
            tmp_path,
            accounts=accounts(a=WIDE, b=WIDE, c=WIDE),
            max_in_flight=1,
            max_wait_s=LONG_S,
        )
        tasks = []
        # Account a comes with ten requests before the others come with two each.
        for name in ["a"] * 10 + ["b"] * 2 + ["c"] * 2:
            tasks.append(asyncio.create_task(post(house.app, asking(name), key=f"sk-{name}")))
            await settled()
        for number in range(14):
            await model.serves(number + 1)
            assert len(model.running) == 1
            model.end()
            await settled()
        assert [(await task).status for task in tasks] == [200] * 14
        # Nobody waits for all of a.
        assert set(model.order[1:7]) == {"a", "b", "c"}
        await house.close()

    asyncio.run(go())


def test_a_process_that_is_full_answers_503_with_when_to_try_again(tmp_path: Path) -> None:
    async def go() -> None:
        model = Gated()
        house = House(model, tmp_path, accounts=accounts(a=WIDE, b=WIDE), max_in_flight=2)
        tasks = [
            asyncio.create_task(post(house.app, asking(name), key=f"sk-{name}")) for name in "ab"
        ]
        await model.serves(2)
        answered = await post(house.app, asking("c"), key="sk-a")
        assert (answered.status, answered.json["error"]["code"]) == (503, "server_busy")
        assert answered.headers["retry-after"] == "1"
        assert "x-should-retry" not in answered.headers
        # It took nothing.
        assert house.in_progress("a") == 1
        for _ in range(2):
            model.end()
        assert [(await task).status for task in tasks] == [200, 200]
        again = asyncio.create_task(post(house.app, asking("d"), key="sk-a"))
        await model.serves(3)
        model.end()
        left = (await again).headers["x-ratelimit-remaining-requests"]
        assert left == "998"
        await house.close()

    asyncio.run(go())


def test_a_wait_is_given_up_when_its_client_leaves(tmp_path: Path) -> None:
    async def go() -> None:
        model = Gated()
        house = House(model, tmp_path, accounts=accounts(a=ONE), max_wait_s=LONG_S)
        first = asyncio.create_task(post(house.app, asking("1"), key="sk-a"))
        await model.serves(1)
        leaves = asyncio.Event()
        sent: list[Any] = []
        waits = asyncio.create_task(house.app(*client_that(leaves, asking("2"), sent)))
        third = asyncio.create_task(post(house.app, asking("3"), key="sk-a"))
        await settled()
        leaves.set()
        async with asyncio.timeout(5):
            await waits
        assert sent == []
        model.end()
        await model.serves(2)
        assert model.order == ["1", "3"]
        model.end()
        assert [(await task).status for task in (first, third)] == [200, 200]
        await house.close()
        assert len(house.records) == 2

    asyncio.run(go())


def test_a_wait_behind_something_opaque_that_is_given_up_is_not_billed(tmp_path: Path) -> None:
    async def go() -> None:
        model = Gated()
        order = (CostLedger, TokenMeter, TierLimiter)
        house = House(
            model,
            tmp_path,
            accounts=accounts(a=ONE),
            max_wait_s=LONG_S,
            order=order,
            between=Opaque,
        )
        first = asyncio.create_task(post(house.app, asking("1"), key="sk-a"))
        await model.serves(1)
        leaves = asyncio.Event()
        waits = asyncio.create_task(house.app(*client_that(leaves, asking("2"), [])))
        await settled()
        leaves.set()
        async with asyncio.timeout(5):
            await waits
        model.end()
        assert (await first).status == 200
        await house.close()
        assert len(house.records) == 1

    asyncio.run(go())


def test_an_idempotency_key_is_free_again_when_its_wait_is_given_up(tmp_path: Path) -> None:
    async def go() -> None:
        model = Gated()
        house = House(model, tmp_path, accounts=accounts(a=ONE), max_wait_s=LONG_S)
        first = asyncio.create_task(post(house.app, asking("1"), key="sk-a"))
        await model.serves(1)
        leaves = asyncio.Event()
        headers = [("idempotency-key", "once")]
        request = client_that(leaves, asking("2"), [], headers=headers)
        waits = asyncio.create_task(house.app(*request))
        async with asyncio.timeout(LONG_S):
            while not claims(house.path):  # noqa: ASYNC110 - the ledger's own thread
                await asyncio.sleep(0.01)
        await settled()
        leaves.set()
        async with asyncio.timeout(5):
            await waits
        model.end()
        assert (await first).status == 200
        again = asyncio.create_task(post(house.app, asking("2"), key="sk-a", headers=headers))
        await model.serves(2)
        model.end()
        assert (await again).status == 200
        await house.close()

    asyncio.run(go())


def test_a_client_that_leaves_after_it_has_waited_is_seen_by_the_app(tmp_path: Path) -> None:
    seen: list[str] = []

    async def go() -> None:
        begun, leaves = asyncio.Event(), asyncio.Event()

        async def model(scope: Any, receive: Any, send: Any) -> None:
            await read_all(receive)
            begun.set()
            if not seen:
                seen.append("first")
                await leaves.wait()
            else:
                seen.append((await receive())["type"])
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b""})

        house = House(model, tmp_path, accounts=accounts(a=ONE), max_wait_s=LONG_S)
        first = asyncio.create_task(post(house.app, asking("1"), key="sk-a"))
        await begun.wait()
        gone = asyncio.Event()
        second = asyncio.create_task(house.app(*client_that(gone, asking("2"), [])))
        await settled()
        leaves.set()
        await first
        await settled()
        gone.set()
        async with asyncio.timeout(5):
            await second
        await house.close()

    asyncio.run(go())
    assert seen == ["first", "http.disconnect"]


def test_a_wait_longer_than_it_may_be_ends_with_the_refusal(tmp_path: Path) -> None:
    async def go() -> None:
        model = Gated()
        house = House(model, tmp_path, accounts=accounts(a=ONE), max_wait_s=0.05)
        first = asyncio.create_task(post(house.app, asking("1"), key="sk-a"))
        await model.serves(1)
        answered = await post(house.app, asking("2"), key="sk-a")
        assert answered.status == 429
        assert answered.json["error"]["code"] == "concurrency_limit_exceeded"
        model.end()
        await first
        await house.close()

    asyncio.run(go())


def test_all_of_a_line_are_told_their_own_limit_when_they_have_waited_in_vain(
    tmp_path: Path,
) -> None:
    async def go() -> None:
        model = Gated()
        house = House(model, tmp_path, accounts=accounts(a=ONE), max_wait_s=0.05)
        first = asyncio.create_task(post(house.app, asking("1"), key="sk-a"))
        await model.serves(1)
        posts = [post(house.app, asking(f"{number}"), key="sk-a") for number in range(2, 7)]
        for answered in await asyncio.gather(*posts):
            assert answered.status == 429
            assert answered.json["error"]["code"] == "concurrency_limit_exceeded"
        model.end()
        await first
        await house.close()

    asyncio.run(go())


def test_who_waited_behind_others_is_told_of_what_it_asked_for_itself(tmp_path: Path) -> None:
    tokens = Tier("Tokens", 100, 1_000, 1_000)

    async def go() -> None:
        model = Gated()
        house = House(model, tmp_path, accounts=accounts(a=tokens), max_wait_s=0.05)
        first = asyncio.create_task(post(house.app, asking("1", max_tokens=592), key="sk-a"))
        await model.serves(1)
        asked = {most: asking("2", max_tokens=most - 8) for most in (900, 800, 700)}
        answers = await asyncio.gather(
            *(post(house.app, one, key="sk-a") for one in asked.values())
        )
        for most, answered in zip(asked, answers, strict=True):
            assert answered.json["error"]["code"] == "tokens_limit_exceeded"
            assert f"600 used, {most} requested." in answered.json["error"]["message"]
        model.end()
        await first
        await house.close()

    asyncio.run(go())


def test_all_of_a_line_are_told_that_the_process_is_full_where_it_is(tmp_path: Path) -> None:
    async def go() -> None:
        model = Gated()
        house = House(model, tmp_path, accounts=accounts(a=WIDE), max_in_flight=1, max_wait_s=0.05)
        first = asyncio.create_task(post(house.app, asking("1"), key="sk-a"))
        await model.serves(1)
        posts = [post(house.app, asking(f"{number}"), key="sk-a") for number in range(2, 5)]
        for answered in await asyncio.gather(*posts):
            assert (answered.status, answered.json["error"]["code"]) == (503, "server_busy")
        model.end()
        await first
        await house.close()

    asyncio.run(go())


@pytest.mark.parametrize("between", [None, Opaque], ids=["adjacent", "opaque"])
def test_nothing_looks_for_the_client_of_a_call_that_waited_and_was_refused(
    between: Any, tmp_path: Path
) -> None:
    async def go() -> None:
        model = Gated()
        house = House(model, tmp_path, accounts=accounts(a=ONE), max_wait_s=0.05, between=between)
        first = asyncio.create_task(post(house.app, asking("1"), key="sk-a"))
        await model.serves(1)
        others = asyncio.all_tasks()
        sent: list[Any] = []
        await house.app(*client_that(asyncio.Event(), asking("2"), sent))
        assert sent[0]["status"] == 429
        await settled()
        assert not asyncio.all_tasks() - others, "its client may stay, and ask again"
        model.end()
        await first
        await house.close()

    asyncio.run(go())


def test_nothing_looks_for_the_client_of_a_call_that_waited_and_has_no_balance(
    tmp_path: Path,
) -> None:
    rich = Account("b", tier=WIDE, credit_limit="100")

    def looking() -> list[Any]:
        coroutines: list[Any] = [task.get_coro() for task in asyncio.all_tasks()]
        return [one for one in coroutines if one.__qualname__ == "client_that.<locals>.receive"]

    async def go() -> None:
        model = Gated()
        house = House(
            model,
            tmp_path,
            accounts={**accounts(a=WIDE), "sk-b": rich},
            mode="prepaid",
            max_in_flight=1,
            max_wait_s=LONG_S,
        )
        first = asyncio.create_task(post(house.app, asking("1"), key="sk-b"))
        await model.serves(1)
        sent: list[Any] = []
        waits = asyncio.create_task(house.app(*client_that(asyncio.Event(), asking("2"), sent)))
        await settled()
        assert looking()
        assert not sent
        model.end()
        await waits
        assert sent[0]["status"] == 402
        await settled()
        assert not looking(), "its client may stay, and ask again"
        assert (await first).status == 200
        await house.close()

    asyncio.run(go())


def test_what_waiting_cannot_cure_is_refused_at_once(tmp_path: Path) -> None:
    async def go() -> None:
        model = Gated()
        two = Tier("Two", 100, 2, 100_000)
        house = House(model, tmp_path, accounts=accounts(a=two), max_wait_s=5.0)
        tasks = [asyncio.create_task(post(house.app, asking("x"), key="sk-a")) for _ in range(2)]
        await model.serves(2)
        # The next request would fit in a minute; it may wait five seconds.
        answered = await asyncio.wait_for(post(house.app, asking("y"), key="sk-a"), 2.0)
        assert answered.json["error"]["code"] == "requests_limit_exceeded"
        for _ in range(2):
            model.end()
        await asyncio.gather(*tasks)
        await house.close()

    asyncio.run(go())


def test_so_many_wait_and_no_more(tmp_path: Path) -> None:
    async def go() -> None:
        model = Gated()
        house = House(model, tmp_path, accounts=accounts(a=ONE), max_wait_s=LONG_S)
        app: Callable[..., Any] = house.app
        tasks = [
            asyncio.create_task(post(app, asking(f"{n}"), key="sk-a"))
            for n in range(waiting.WAITING_MAX + 1)
        ]
        await model.serves(1)
        await settled()
        async with asyncio.timeout(5):
            answered = await post(app, asking("one more"), key="sk-a")
        assert (answered.status, answered.json["error"]["code"]) == (503, "server_busy")
        for task in tasks[1:]:
            task.cancel()
        model.end()
        assert (await tasks[0]).status == 200
        await asyncio.wait(tasks)
        # Those who were cancelled left no line behind.
        last = asyncio.create_task(post(app, asking("last"), key="sk-a"))
        await model.serves(2)
        model.end()
        assert (await last).status == 200
        await house.close()

    asyncio.run(go())


def test_a_refusal_leaves_no_place_taken(tmp_path: Path) -> None:
    few = Tier("Few", 5, 1, 100_000)

    async def go() -> None:
        model = Gated()
        house = House(model, tmp_path, accounts=accounts(a=few, b=WIDE), max_in_flight=1)
        for name, refused in (("a", True), ("b", False)):
            served = asyncio.create_task(post(house.app, asking(name), key=f"sk-{name}"))
            await model.serves(1 if name == "a" else 2)
            model.end()
            assert (await served).status == 200
            if refused:
                again = await post(house.app, asking("again"), key="sk-a")
                assert again.json["error"]["code"] == "requests_limit_exceeded"
        await house.close()

    asyncio.run(go())


def test_a_refusal_in_the_line_leaves_no_place_taken(tmp_path: Path) -> None:
    few = Tier("Few", 100, 1_000, 1_000)

    async def go() -> None:
        model = Gated()
        accounts_ = accounts(a=few, b=WIDE)
        house = House(model, tmp_path, accounts=accounts_, max_in_flight=2, max_wait_s=LONG_S)
        tasks = []
        for name, most in (("small", 100), ("large", 600), ("larger", 900)):
            asked = asking(name, max_tokens=most - 8)
            tasks.append(asyncio.create_task(post(house.app, asked, key="sk-a")))
            await model.serves(min(len(tasks), 2))
            await settled()
        assert model.end() == "small"
        await settled()  # who waits has asked again, and does not fit beside the large one
        tasks.append(asyncio.create_task(post(house.app, asking("other"), key="sk-b")))
        await model.serves(3)
        assert model.order == ["small", "large", "other"]
        assert model.end() == "large"
        await model.serves(4)
        for _ in range(2):
            model.end()
        assert [(await task).status for task in tasks] == [200] * 4
        await house.close()

    asyncio.run(go())


def test_a_settlement_that_is_cancelled_and_run_again_gives_one_place_back(tmp_path: Path) -> None:
    async def go() -> None:
        model = Gated()
        house = House(model, tmp_path, accounts=accounts(a=WIDE), max_in_flight=2)
        tasks = []
        for number in range(3):
            tasks.append(asyncio.create_task(post(house.app, asking(f"{number}"), key="sk-a")))
            await model.serves(number + 1)
            if number == 0:  # then there is a ledger
                model.end()
                await tasks.pop()
        with reading(house.path) as other:
            other.execute("BEGIN IMMEDIATE")  # so that the settlement takes its time
            model.end()
            async with asyncio.timeout(10):
                while house.in_progress("a") == 2:  # noqa: ASYNC110 - the store has no event
                    await asyncio.sleep(0)
            tasks[0].cancel()
            await settled()
            other.execute("ROLLBACK")
        await asyncio.wait([tasks[0]])
        # One still runs: there is one place, and not two.
        tasks[0] = asyncio.create_task(post(house.app, asking("3"), key="sk-a"))
        await model.serves(4)
        async with asyncio.timeout(10):
            refused = await post(house.app, asking("4"), key="sk-a")
        assert (refused.status, refused.json["error"]["code"]) == (503, "server_busy")
        for _ in range(2):
            model.end()
        assert [(await task).status for task in tasks] == [200, 200]
        await house.close()
        assert len(house.records) == 4

    asyncio.run(go())


def test_places_are_never_lost_however_waits_end() -> None:
    async def go() -> None:
        places = waiting.Places(1)
        for cancel_first in (True, False):
            assert places.try_take()
            waits = [asyncio.create_task(places.take()) for _ in range(3)]
            await settled()
            if cancel_first:
                waits[0].cancel()
                places.give()
            else:
                places.give()  # to waits[0], which is cancelled before it can go on
                waits[0].cancel()
            await settled()
            assert waits[1].done()
            places.give()
            await settled()
            assert waits[2].done()
            places.give()
            for wait in waits:
                with contextlib.suppress(asyncio.CancelledError):
                    await wait
        assert places.try_take()
        assert not places.try_take()

    asyncio.run(go())


@pytest.mark.parametrize("fails_after", [0, 0.01], ids=["at once", "later"])
def test_a_server_that_fails_while_a_call_waits_costs_no_place(
    fails_after: float, tmp_path: Path
) -> None:
    async def go() -> None:
        model = Gated()
        house = House(
            model, tmp_path, accounts=accounts(a=WIDE, b=WIDE), max_in_flight=1, max_wait_s=LONG_S
        )
        first = asyncio.create_task(post(house.app, asking("1"), key="sk-b"))
        await model.serves(1)
        others = asyncio.all_tasks()
        scope, receive, send = client_that(asyncio.Event(), asking("2"), [])
        received = 0

        async def failing() -> Any:
            nonlocal received
            received += 1
            if received == 1:
                return await receive()
            if fails_after:
                await asyncio.sleep(fails_after)
            raise ValueError("of the server's own")

        with pytest.raises(ValueError, match="of the server's own"):
            await house.app(scope, failing, send)
        await settled()
        assert not asyncio.all_tasks() - others
        model.end()
        assert (await first).status == 200
        again = asyncio.create_task(post(house.app, asking("3"), key="sk-a"))
        await model.serves(2)
        model.end()
        assert (await again).status == 200
        await house.close()

    asyncio.run(go())


def client_that(leaves: asyncio.Event, asked: dict[str, Any], sent: list[Any], **scope: Any) -> Any:
    """The three arguments of a request whose client leaves when it is told to."""
    body = json.dumps(asked).encode()
    told = False

    async def receive() -> dict[str, Any]:
        nonlocal told
        if not told:
            told = True
            return {"type": "http.request", "body": body, "more_body": False}
        await leaves.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    return scope_of(length=len(body), key="sk-a", **scope), receive, send
