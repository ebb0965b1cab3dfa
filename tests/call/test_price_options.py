"""The price list of CostLedger holds for its stack, wherever it stands in it."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from inf_middleware import CostLedger, Price, Prices
from inf_middleware.ledgers.book import LedgerBook
from tests.apps import JsonApp, completion, usage_of
from tests.call.test_any_order import cases
from tests.call.test_metering_options import serve, start_up
from tests.driver import Answered, post
from tests.kit import CHAT, House, Opaque

# The shipped list has the same model at another price, in another currency and with more context.
PRICES = Prices([Price("inf-chat-v1", "30", "50", context=1000)], currency="USD", version="own/1")


def model() -> JsonApp:
    return JsonApp(completion("four", usage=usage_of(13, 7)))


@pytest.mark.parametrize(("order", "between"), cases())
def test_a_call_is_billed_by_the_prices_of_its_ledger(
    order: Any, between: Any, tmp_path: Path
) -> None:
    house = House(model(), tmp_path, order=order, between=between, prices=PRICES)
    serve(house, [CHAT, {**CHAT, "model": "inf-med-chat-v1"}])
    known, unknown = house.records
    assert (known["amount_nano"], known["currency"]) == (13 * 30_000 + 7 * 50_000, "USD")
    assert known["price_version"].startswith("own/1")
    assert (unknown["amount_nano"], unknown["unpriced"], unknown["currency"]) == (0, 1, "USD")


@pytest.mark.parametrize(("order", "between"), cases())
def test_a_hold_is_reckoned_by_the_prices_of_its_ledger(
    order: Any, between: Any, tmp_path: Path
) -> None:
    house = House(model(), tmp_path, order=order, between=between, prices=PRICES, mode="prepaid")
    asked = {**CHAT, "max_tokens": 100}

    async def go() -> list[Answered]:
        await LedgerBook(house.ledger).recharge("acme", "1", reference="of another currency")
        poor = await post(house.app, asked, key="sk-one")
        book = LedgerBook(house.ledger, currency="USD")
        await book.recharge("acme", "0.0056", reference="enough")
        rich = await post(house.app, asked, key="sk-one")
        await house.close()
        return [poor, rich]

    poor, rich = asyncio.run(go())
    assert (poor.status, rich.status) == (402, 200)
    assert "0 USD are available, and 0.005" in poor.json["error"]["message"]


@pytest.mark.parametrize("start", [False, True], ids=["unstarted", "started"])
@pytest.mark.parametrize(("order", "between"), cases())
def test_no_more_is_reserved_than_the_context_in_its_ledgers_list_leaves(
    order: Any, between: Any, start: bool, tmp_path: Path
) -> None:
    # Without a lifespan, what stands behind something opaque is known from the first call on.
    house = House(model(), tmp_path, order=order, between=between, prices=PRICES)
    answers = serve(house, [CHAT, CHAT], start=start)
    remaining = [int(answered.headers["x-ratelimit-remaining-tokens"]) for answered in answers]
    assert remaining[1] == 768_000 - 20 - 1000
    if start or between is None:
        assert remaining[0] == 768_000 - 1000


@pytest.mark.parametrize(("order", "between"), cases())
def test_what_exceeds_the_context_in_its_ledgers_list_never_reaches_the_model(
    order: Any, between: Any, tmp_path: Path
) -> None:
    app = model()
    house = House(app, tmp_path, order=order, between=between, prices=PRICES)
    (answered,) = serve(house, [{**CHAT, "max_tokens": 1000}])
    assert (answered.status, answered.json["error"]["code"]) == (400, "context_length_exceeded")
    assert not app.bodies


@pytest.mark.parametrize(("order", "between"), cases())
def test_more_context_than_the_shipped_list_knows_is_used(
    order: Any, between: Any, tmp_path: Path
) -> None:
    prices = Prices([Price("inf-chat-v1", "10", "10", context=128_000)])
    house = House(model(), tmp_path, order=order, between=between, prices=prices)

    async def go() -> Answered:
        await start_up(house)
        answered = await post(house.app, {**CHAT, "max_tokens": 100_000}, key="sk-five")
        await house.close()
        return answered

    assert asyncio.run(go()).status == 200


def test_of_two_ledgers_the_first_that_a_call_meets_is_heard_of(tmp_path: Path) -> None:
    other = Prices([Price("inf-chat-v1", "1", "1", context=500)])
    inner = CostLedger(model(), prices=other, ledger=f"sqlite:///{tmp_path}/inner.db")
    house = House(Opaque(inner), tmp_path, between=Opaque, prices=PRICES)
    (answered,) = serve(house, [CHAT], start=True)
    assert int(answered.headers["x-ratelimit-remaining-tokens"]) == 768_000 - 1000
    assert house.record["amount_nano"] == 13 * 30_000 + 7 * 50_000
