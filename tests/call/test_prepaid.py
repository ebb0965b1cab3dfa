"""Prepaid: what is not paid for is not served, and what is served is paid."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from inf_middleware import Account, CostLedger, Price, Tier, TierLimiter, Tiers
from inf_middleware.call.hold import SLICE_TOKENS
from inf_middleware.domain.errors import LedgerUnavailable
from inf_middleware.domain.events import BillingEvent
from inf_middleware.domain.money import decimal_string
from inf_middleware.ledgers.book import LedgerBook
from inf_middleware.ledgers.sqlite import SqliteLedger
from inf_middleware.ledgers.steps import Ask
from inf_middleware.stores.memory import MemoryStore
from tests.apps import JsonApp, StreamApp, completion, delta, event, read_all, usage_chunk, usage_of
from tests.driver import Answered, post
from tests.kit import CHAT, STREAM, Opaque, records_of

TOKEN = 10_000  # nano; what a token of inf-chat-v1 costs


class Shop:
    """A model server that takes money first, with a ledger of its own."""

    def __init__(self, app: Any, tmp_path: Path, **options: Any) -> None:
        self.path = tmp_path / "ledger.db"
        self.ledger = SqliteLedger(self.path)
        self.book = LedgerBook(self.ledger)
        accounts = options.pop("accounts", {"sk-one": Account("acme")})
        self.app: Any = CostLedger(
            app, ledger=self.ledger, mode="prepaid", accounts=accounts, **options
        )

    def run(self, go: Callable[["Shop"], Awaitable[Any]], balance_tokens: int = 0) -> Any:
        async def story() -> Any:
            if balance_tokens:
                nano = balance_tokens * TOKEN
                await self.book.recharge("acme", f"0.{nano:09d}", reference="start")
            try:
                return await go(self)
            finally:
                await self.ledger.aclose()

        return asyncio.run(story())

    async def post(self, body: Any, **options: Any) -> Answered:
        return await post(self.app, body, key="sk-one", **options)

    async def standing(self) -> tuple[int, int]:
        record = await self.book.account("acme")
        return (record.balance_nano, record.held_nano) if record else (0, 0)

    @property
    def calls(self) -> list[dict[str, Any]]:
        return [record for record in records_of(self.path) if record["kind"] == "usage"]


def error_of(answered: Answered) -> dict[str, Any]:
    error: dict[str, Any] = answered.json["error"]
    return error


def test_without_a_balance_nothing_is_served_and_nothing_recorded(tmp_path: Path) -> None:
    model = JsonApp(completion(usage=usage_of(10, 5)))
    shop = Shop(model, tmp_path)

    async def go(shop: Shop) -> Answered:
        return await shop.post({**CHAT, "max_tokens": 100})

    refused = shop.run(go)
    assert (refused.status, error_of(refused)["code"]) == (402, "insufficient_balance")
    assert refused.headers["x-should-retry"] == "false"
    assert "0 CNY are available" in error_of(refused)["message"]
    assert model.bodies == []
    assert shop.calls == []


def test_a_json_call_holds_input_and_cap_before_the_app_and_pays_what_it_used(
    tmp_path: Path,
) -> None:
    seen: list[tuple[int, int]] = []

    async def model(scope: Any, receive: Any, send: Any) -> None:
        seen.append(await shop.standing())
        await JsonApp(completion(usage=usage_of(13, 5)))(scope, receive, send)

    shop = Shop(model, tmp_path)

    async def go(shop: Shop) -> tuple[int, int]:
        answered = await shop.post({**CHAT, "max_tokens": 100})
        assert answered.status == 200
        return await shop.standing()

    after = shop.run(go, balance_tokens=1000)
    ((balance, held),) = seen
    assert balance == 1000 * TOKEN
    assert 100 * TOKEN < held < 130 * TOKEN
    assert after == ((1000 - 18) * TOKEN, 0)
    assert shop.calls[0]["overdrawn_nano"] == 0


def test_the_refusal_names_what_is_there_and_what_is_needed(tmp_path: Path) -> None:
    shop = Shop(JsonApp(completion()), tmp_path)

    async def go(shop: Shop) -> Answered:
        return await shop.post({**CHAT, "max_tokens": 1000})

    message = error_of(shop.run(go, balance_tokens=500))["message"]
    assert "0.005 CNY are available, and 0.010" in message


@pytest.mark.parametrize("policy", ["refuse", "spool"])
def test_what_costs_more_than_a_ledger_can_hold_is_not_covered(policy: str, tmp_path: Path) -> None:
    model = JsonApp(completion())
    shop = Shop(model, tmp_path, on_ledger_error=policy)

    async def go(shop: Shop) -> list[Answered]:
        return [await shop.post({**CHAT, "max_tokens": 30_000, "n": 10**n}) for n in (6, 11, 18)]

    for answered in shop.run(go, balance_tokens=500):
        assert (answered.status, error_of(answered)["code"]) == (402, "insufficient_balance")
    assert model.bodies == []


def test_a_call_that_fails_before_its_first_token_pays_nothing(tmp_path: Path) -> None:
    shop = Shop(JsonApp({"error": {"message": "no"}}, status=500), tmp_path)

    async def go(shop: Shop) -> tuple[int, int]:
        assert (await shop.post({**CHAT, "max_tokens": 10})).status == 500
        return await shop.standing()

    assert shop.run(go, balance_tokens=100) == (100 * TOKEN, 0)
    assert [call["amount_nano"] for call in shop.calls] == [0]


def test_a_refusal_for_want_of_money_gives_the_admission_back(tmp_path: Path) -> None:
    store = MemoryStore(clock=lambda: 1.0)
    shop = Shop(JsonApp(completion()), tmp_path)
    shop.app = TierLimiter(shop.app, storage=store)

    async def go(shop: Shop) -> list[int]:
        return [(await shop.post({**CHAT, "max_tokens": 10})).status for _ in range(3)]

    assert shop.run(go) == [402, 402, 402]
    assert store.in_progress("acme") == 0


def test_a_call_refused_further_in_leaves_nothing_held(tmp_path: Path) -> None:
    store = MemoryStore(clock=lambda: 1.0)
    model = JsonApp(completion(usage=usage_of(10, 5)))
    accounts = {"sk-one": Account("acme", tier="Free")}
    inner = TierLimiter(model, storage=store, accounts=accounts)
    shop = Shop(Opaque(inner), tmp_path, accounts=accounts)

    async def go(shop: Shop) -> list[int]:
        statuses = [(await shop.post({**CHAT, "max_tokens": 10})).status for _ in range(6)]
        assert await shop.standing() == ((1000 - 4 * 15) * TOKEN, 0)
        return statuses

    assert shop.run(go, balance_tokens=1000) == [200] * 4 + [429] * 2


def test_of_racing_calls_just_those_that_are_paid_for_are_served(tmp_path: Path) -> None:
    shop = Shop(JsonApp(completion(usage=usage_of(13, 100))), tmp_path)

    async def go(shop: Shop) -> list[int]:
        answers = await asyncio.gather(*(shop.post({**CHAT, "max_tokens": 100}) for _ in range(40)))
        return [answered.status for answered in answers]

    statuses = shop.run(go, balance_tokens=1150)
    assert statuses.count(200) == 10
    assert statuses.count(402) == 30


LONG = {**CHAT, "messages": [{"role": "user", "content": "The quick brown fox. " * 40}]}


class HeldFor:
    """An app that sees what is held while it works, behind a limiter that admits by bounds."""

    def __init__(self, tmp_path: Path) -> None:
        self.held: list[int] = []
        self.shop = Shop(self._model, tmp_path)
        self.shop.app = TierLimiter(self.shop.app, tiers=Tiers([Tier("One", 10**4, 10**6, 10**9)]))

    async def _model(self, scope: Any, receive: Any, send: Any) -> None:
        self.held.append((await self.shop.standing())[1] // TOKEN)
        await JsonApp(completion(usage=usage_of(201, 5)))(scope, receive, send)

    def run(self, balance_tokens: int, calls: int = 1) -> list[Answered]:
        async def go(shop: Shop) -> list[Answered]:
            asked = {**LONG, "max_tokens": 50}
            answers = await asyncio.gather(*(shop.post(asked) for _ in range(calls)))
            served = [answered for answered in answers if answered.status == 200]
            left = balance_tokens - len(served) * 206
            assert await shop.standing() == (left * TOKEN, 0)
            return list(answers)

        answers: list[Answered] = self.shop.run(go, balance_tokens)
        return answers


def test_where_the_balance_is_plenty_more_may_be_held_than_the_input_has_and_is_not_paid(
    tmp_path: Path,
) -> None:
    plenty, scarce = HeldFor(tmp_path / "plenty"), HeldFor(tmp_path / "scarce")
    for made, balance in ((plenty, 10**5 - 1), (scarce, 10**3)):
        made.shop.path.parent.mkdir()
        (answered,) = made.run(balance)
        assert answered.status == 200
    size = len(json.dumps(LONG))
    ((exact,), (bound,)) = scarce.held, plenty.held
    assert 200 < exact < 300
    assert size / 2 < bound < size + 200


def test_who_has_less_is_asked_for_what_the_input_has_and_told_so(tmp_path: Path) -> None:
    few = HeldFor(tmp_path)
    statuses = [answered.status for answered in few.run(280)]
    assert statuses == [200]
    (exact,) = few.held
    (tmp_path / "none").mkdir()
    none = HeldFor(tmp_path / "none")
    (refused,) = none.run(exact - 1)
    assert refused.status == 402
    told = f"{decimal_string((exact - 1) * TOKEN)} CNY are available"
    assert (
        f"{told}, and {decimal_string(exact * TOKEN)} CNY are needed"
        in (error_of(refused)["message"])
    )


def test_of_racing_calls_with_much_input_just_those_that_are_paid_for_are_served(
    tmp_path: Path,
) -> None:
    one = HeldFor(tmp_path)
    one.run(1_000)
    (exact,) = one.held
    (tmp_path / "many").mkdir()
    many = HeldFor(tmp_path / "many")
    statuses = [answered.status for answered in many.run(10 * exact, 40)]
    assert (statuses.count(200), statuses.count(402)) == (10, 30)


def test_a_credit_limit_lets_a_balance_go_below_nothing(tmp_path: Path) -> None:
    accounts = {"sk-one": Account("acme", credit_limit="0.002")}
    shop = Shop(JsonApp(completion(usage=usage_of(13, 100))), tmp_path, accounts=accounts)

    async def go(shop: Shop) -> list[int]:
        return [(await shop.post({**CHAT, "max_tokens": 100})).status for _ in range(2)]

    assert shop.run(go) == [200, 402]
    assert shop.calls[0]["overdrawn_nano"] == 0


def test_a_model_without_a_price_is_not_served(tmp_path: Path) -> None:
    shop = Shop(JsonApp(completion()), tmp_path)

    async def go(shop: Shop) -> Answered:
        return await shop.post({**CHAT, "model": "unheard-of"})

    assert shop.run(go, balance_tokens=1000).status == 404


def test_what_costs_nothing_needs_no_balance(tmp_path: Path) -> None:
    shop = Shop(JsonApp(completion(usage=usage_of(1, 1))), tmp_path, unpriced=Price("*", "0", "0"))

    async def go(shop: Shop) -> int:
        return (await shop.post({**CHAT, "model": "unheard-of"})).status

    assert shop.run(go) == 200


class Telling:
    """Streams words one by one and watches what is held; stops when told that nobody listens."""

    def __init__(self, shop: list[Shop], words: int) -> None:
        self.shop = shop
        self.words = words
        self.sent = 0
        self.held: list[int] = []
        self.stopped = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await read_all(receive)
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        try:
            for number in range(self.words):
                piece = event(delta(f" {'one' if number else 'One'}"))
                await send({"type": "http.response.body", "body": piece, "more_body": True})
                self.sent += 1
                if number % 16 == 0:
                    self.held.append((await self.shop[0].standing())[1] // TOKEN)
        except OSError:
            self.stopped = True
            raise
        for last in (event(delta("", finish="stop")), event("[DONE]")):
            await send({"type": "http.response.body", "body": last, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def streaming(tmp_path: Path, words: int, **options: Any) -> tuple[Shop, Telling]:
    shops: list[Shop] = []
    model = Telling(shops, words)
    shops.append(Shop(model, tmp_path, **options))
    return shops[0], model


def test_a_stream_holds_one_slice_and_one_more_when_half_is_used(tmp_path: Path) -> None:
    shop, model = streaming(tmp_path, 600)

    async def go(shop: Shop) -> Answered:
        return await shop.post({**STREAM, "max_tokens": 5000})

    answered = shop.run(go, balance_tokens=50_000)
    assert answered.body.endswith(event("[DONE]"))
    first = model.held[0]
    assert SLICE_TOKENS < first < SLICE_TOKENS + 30
    assert max(model.held) <= first + 3 * SLICE_TOKENS
    assert model.held[-1] > 600
    (call,) = shop.calls
    assert (call["outcome"], call["output_tokens"], call["overdrawn_nano"]) == ("complete", 600, 0)


def test_a_checkpoint_of_a_stream_tells_the_input_that_was_counted(tmp_path: Path) -> None:
    _, model = streaming(tmp_path, 600)
    seen: list[tuple[int, int]] = []

    def checkpoints() -> Any:
        return (yield Ask("SELECT checkpoint FROM hold"))

    async def telling(scope: Any, receive: Any, send: Any) -> None:
        async def sending(message: Any) -> None:
            await send(message)
            for (checkpoint,) in await shop.ledger.read(checkpoints):
                bill = BillingEvent.decode(bytes(checkpoint))
                seen.append((bill.input_tokens, bill.output_tokens))

        await model(scope, receive, sending)

    shop = model.shop[0] = Shop(telling, tmp_path)
    shop.app = TierLimiter(shop.app, tiers=Tiers([Tier("One", 10**4, 10**6, 10**9)]))

    async def go(shop: Shop) -> Answered:
        return await shop.post({**LONG, "stream": True, "max_tokens": 5000})

    shop.run(go, balance_tokens=900_000)
    (call,) = shop.calls
    inputs, outputs = zip(*seen, strict=True)
    assert set(inputs) == {0, call["input_tokens"]}
    assert outputs[0] == 0
    assert max(outputs) > SLICE_TOKENS


def test_a_stream_that_cannot_be_paid_further_ends_cleanly(tmp_path: Path) -> None:
    shop, model = streaming(tmp_path, 2000)

    async def go(shop: Shop) -> tuple[Answered, tuple[int, int]]:
        answered = await shop.post(
            {**STREAM, "max_tokens": 5000, "stream_options": {"include_usage": True}}
        )
        return answered, await shop.standing()

    answered, standing = shop.run(go, balance_tokens=700)
    (call,) = shop.calls
    assert call["outcome"] == "balance_exhausted"
    assert call["overdrawn_nano"] == 0
    assert standing == (700 * TOKEN - call["amount_nano"], 0)
    assert 0 <= standing[0] < TOKEN
    assert answered.messages[-1]["more_body"] is False
    *chunks, finish, usage, done = answered.body.strip().split(b"\n\n")
    assert done == b"data: [DONE]"
    assert json.loads(finish[6:])["choices"] == [
        {"index": 0, "delta": {}, "finish_reason": "length"}
    ]
    assert json.loads(usage[6:])["usage"]["completion_tokens"] == call["output_tokens"]
    assert len(chunks) == call["output_tokens"]  # what was made was sent, and paid
    assert model.stopped
    assert model.sent <= call["output_tokens"]


def test_a_client_that_did_not_ask_is_told_no_usage_at_the_end(tmp_path: Path) -> None:
    shop, _ = streaming(tmp_path, 2000)

    async def go(shop: Shop) -> Answered:
        return await shop.post({**STREAM, "max_tokens": 5000})

    answered = shop.run(go, balance_tokens=500)
    assert b'"usage"' not in answered.body
    assert answered.body.endswith(b"data: [DONE]\n\n")


def test_a_stream_of_large_pieces_is_overdrawn_by_one_piece_at_most(tmp_path: Path) -> None:
    text = "The quick brown fox jumps over the lazy dog. " * 10  # 100 tokens and some
    shop = Shop(StreamApp([event(delta(text)) for _ in range(50)]), tmp_path)

    async def go(shop: Shop) -> tuple[int, int]:
        await shop.post({**STREAM, "max_tokens": 20_000})
        return await shop.standing()

    balance, held = shop.run(go, balance_tokens=700)
    (call,) = shop.calls
    assert call["outcome"] == "balance_exhausted"
    assert held == 0
    assert -110 * TOKEN <= balance < 0
    assert call["overdrawn_nano"] == -balance


def test_a_stream_within_its_cap_is_never_cut(tmp_path: Path) -> None:
    pieces = [event(delta(" one")) for _ in range(50)]
    pieces += [event(delta("", finish="length")), event(usage_chunk(13, 50)), event("[DONE]")]
    shop = Shop(StreamApp(pieces), tmp_path)

    async def go(shop: Shop) -> Answered:
        return await shop.post({**STREAM, "max_tokens": 50})

    answered = shop.run(go, balance_tokens=80)
    assert answered.body.endswith(event("[DONE]"))
    assert shop.calls[0]["outcome"] == "complete"


@pytest.mark.parametrize(
    "asked",
    [{}, {"max_tokens": 10}, {"max_completion_tokens": 1, "max_tokens": 5000}],
    ids=["no cap", "a cap that the server ignores", "two caps, and the server goes by the other"],
)
def test_a_stream_that_keeps_to_no_cap_goes_on_for_as_long_as_it_is_paid(
    asked: dict[str, Any], tmp_path: Path
) -> None:
    shop, model = streaming(tmp_path, 5000)

    async def go(shop: Shop) -> tuple[int, int]:
        await shop.post({**STREAM, **asked})
        return await shop.standing()

    balance, held = shop.run(go, balance_tokens=1100)
    (call,) = shop.calls
    assert (call["outcome"], held) == ("balance_exhausted", 0)
    assert 0 <= balance < TOKEN
    assert model.sent < 1100


def test_a_stream_is_not_cut_for_what_it_may_be_miscounted(tmp_path: Path) -> None:
    # Of another tokenizer each of these is a token; by ours they are 60.
    pieces = [event(delta(" onetwo")) for _ in range(30)]
    pieces += [event(delta("", finish="length")), event(usage_chunk(13, 30)), event("[DONE]")]
    shop = Shop(StreamApp(pieces), tmp_path)

    async def go(shop: Shop) -> Answered:
        return await shop.post({**STREAM, "max_tokens": 30})

    assert shop.run(go, balance_tokens=50).body.endswith(event("[DONE]"))
    assert (shop.calls[0]["outcome"], shop.calls[0]["output_tokens"]) == ("complete", 30)


class Faulty:
    """A ledger whose holds fail at will."""

    def __init__(self, real: SqliteLedger) -> None:
        self.real = real
        self.holds_fail = self.voids_fail = self.settles_fail = False
        self.answers_are_lost = False  # of claims and settlements, which are made all the same

    async def hold(self, event: Any, amount_nano: int, credit_limit_nano: int) -> int | None:
        if self.holds_fail:
            raise LedgerUnavailable("away")
        return await self.real.hold(event, amount_nano, credit_limit_nano)

    async def extend(self, event: Any, amount_nano: int) -> int | None:
        if self.holds_fail:
            raise LedgerUnavailable("away")
        return await self.real.extend(event, amount_nano)

    async def claim(self, claimed: Any) -> Any:
        found = await self.real.claim(claimed)
        if self.answers_are_lost:
            raise LedgerUnavailable("the connection was cut in the middle of a commit")
        return found

    async def void(self, request_id: str) -> None:
        if self.voids_fail:
            raise LedgerUnavailable("away")
        await self.real.void(request_id)

    async def settle(self, event: Any) -> None:
        if self.settles_fail:
            raise LedgerUnavailable("away")
        await self.real.settle(event)
        if self.answers_are_lost:
            raise LedgerUnavailable("the connection was cut in the middle of a commit")

    async def probe(self) -> None:
        if self.settles_fail:
            raise LedgerUnavailable("away")

    async def aclose(self) -> None:
        await self.real.aclose()


def shop_of_a_faulty_ledger(tmp_path: Path) -> tuple[Shop, Faulty]:
    shop = Shop(JsonApp(completion()), tmp_path)
    faulty = Faulty(shop.ledger)
    shop.app = CostLedger(
        JsonApp(completion(usage=usage_of(10, 5))),
        ledger=faulty,
        mode="prepaid",
        accounts={"sk-one": Account("acme")},
        settle_timeout_s=0,
    )
    return shop, faulty


@pytest.mark.parametrize(("policy", "status"), [("refuse", 503), ("spool", 200)])
def test_a_ledger_that_is_away_at_the_hold_goes_by_the_policy(
    policy: str, status: int, tmp_path: Path
) -> None:
    shop = Shop(JsonApp(completion(usage=usage_of(10, 5))), tmp_path)
    faulty = Faulty(shop.ledger)
    faulty.holds_fail = True
    accounts = {"sk-one": Account("acme")}
    shop.app = CostLedger(
        JsonApp(completion(usage=usage_of(10, 5))),
        ledger=faulty,
        mode="prepaid",
        accounts=accounts,
        on_ledger_error=policy,
        deployment=str(tmp_path / "x"),
    )

    async def go(shop: Shop) -> Answered:
        return await shop.post({**CHAT, "max_tokens": 10})

    answered = shop.run(go, balance_tokens=1000)
    assert answered.status == status
    assert len(shop.calls) == (status == 200)


def test_the_hold_of_a_call_that_could_not_be_settled_ends_when_the_ledger_is_back(
    tmp_path: Path,
) -> None:
    shop, faulty = shop_of_a_faulty_ledger(tmp_path)

    async def go(shop: Shop) -> None:
        faulty.settles_fail = True
        assert (await shop.post({**CHAT, "max_tokens": 10})).status == 503
        assert (await shop.standing())[1] > 0
        faulty.settles_fail = False
        shop.app._stack.worker._parts.billing.health._next_probe = 0  # as if a second had gone
        assert (await shop.post({**CHAT, "max_tokens": 10})).status == 200
        assert await shop.standing() == ((1000 - 15) * TOKEN, 0)

    shop.run(go, balance_tokens=1000)


def test_a_bill_whose_commit_was_in_doubt_is_taken_back_from_who_was_told_503(
    tmp_path: Path,
) -> None:
    shop, faulty = shop_of_a_faulty_ledger(tmp_path)

    async def go(shop: Shop) -> None:
        faulty.answers_are_lost = True
        assert (await shop.post({**CHAT, "max_tokens": 10})).status == 503
        faulty.answers_are_lost = False
        shop.app._stack.worker._parts.billing.health._next_probe = 0  # as if a second had gone
        assert (await shop.post({**CHAT, "max_tokens": 10})).status == 200
        assert await shop.standing() == ((1000 - 15) * TOKEN, 0)

    shop.run(go, balance_tokens=1000)


def test_an_idempotency_key_whose_claim_was_in_doubt_may_be_sent_again(tmp_path: Path) -> None:
    shop, faulty = shop_of_a_faulty_ledger(tmp_path)
    key = [("idempotency-key", "k")]

    async def go(shop: Shop) -> None:
        faulty.answers_are_lost = True
        assert (await shop.post({**CHAT, "max_tokens": 10}, headers=key)).status == 503
        faulty.answers_are_lost = False
        assert (await shop.post({**CHAT, "max_tokens": 10}, headers=key)).status == 200

    shop.run(go, balance_tokens=1000)


def test_a_caller_that_leaves_while_money_is_being_held_leaves_nothing_held(
    tmp_path: Path,
) -> None:
    shop = Shop(JsonApp(completion()), tmp_path)

    async def go(shop: Shop) -> tuple[int, int]:
        for ticks in range(1, 12):
            task = asyncio.ensure_future(shop.post({**CHAT, "max_tokens": 10}))
            for _ in range(ticks):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
        return await shop.standing()

    assert shop.run(go, balance_tokens=10_000)[1] == 0


def test_callers_that_come_at_once_end_each_lost_hold_once(tmp_path: Path) -> None:
    shop, faulty = shop_of_a_faulty_ledger(tmp_path)

    async def go(shop: Shop) -> None:
        faulty.settles_fail = True
        calls = [shop.post({**CHAT, "max_tokens": 10}) for _ in range(4)]
        assert {answered.status for answered in await asyncio.gather(*calls)} == {503}
        faulty.settles_fail = False
        shop.app._stack.worker._parts.billing.health._next_probe = 0  # as if a second had gone
        calls = [shop.post({**CHAT, "max_tokens": 10}) for _ in range(4)]
        assert {answered.status for answered in await asyncio.gather(*calls)} == {200}
        assert await shop.standing() == ((1000 - 4 * 15) * TOKEN, 0)

    shop.run(go, balance_tokens=1000)


def test_a_lost_hold_ends_when_the_ledger_is_back_without_another_call(tmp_path: Path) -> None:
    shop, faulty = shop_of_a_faulty_ledger(tmp_path)

    async def go(shop: Shop) -> None:
        faulty.settles_fail = faulty.voids_fail = True
        assert (await shop.post({**CHAT, "max_tokens": 10})).status == 503
        assert (await shop.standing())[1] > 0
        faulty.settles_fail = faulty.voids_fail = False
        async with asyncio.timeout(30):
            while (await shop.standing())[1]:  # noqa: ASYNC110 - of the ledger, there is no event
                await asyncio.sleep(0.01)
        assert await shop.standing() == (1000 * TOKEN, 0)

    shop.run(go, balance_tokens=1000)
