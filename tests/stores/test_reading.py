"""What a store tells of limits without an admission: the same figures, and nothing is taken."""

from typing import Any

from inf_middleware import Tier
from tests.stores.backends import SMALL, Driver

MODELS = Tier(
    "Models",
    3,
    5,
    1_000,
    requests=["100/day"],
    models={"Qwen/*": {"concurrency": 1, "tokens_per_minute": 500}},
)


def read(driver: Driver, tier: Tier = SMALL, account: str = "a") -> Any:
    return driver.run(driver.store.read(account, tier.groups))


def test_of_an_account_that_has_not_called_everything_is_left(driver: Driver) -> None:
    (own,) = read(driver)
    assert (own.running, own.is_full) == (0, False)
    assert [(rate.total, rate.reset_us) for rate in own.rates] == [(0, 0), (0, 0)]


def test_reading_tells_what_admissions_took_and_takes_nothing(driver: Driver) -> None:
    held = driver.admitted(tokens=300)
    driver.now += 10
    for _ in range(20):
        (own,) = read(driver)
    assert own.running == 1
    assert [rate.total for rate in own.rates] == [1, 300]
    assert [rate.reset_us for rate in own.rates] == [50_000_000, 50_000_000]
    driver.settle(held, 120)
    (own,) = read(driver)
    assert (own.running, [rate.total for rate in own.rates]) == (0, [1, 120])
    last = driver.admitted(tokens=880)
    assert last.standings.tokens.remaining == 0
    driver.settle(last, 880)
    driver.now += 50
    (own,) = read(driver)
    assert [rate.total for rate in own.rates] == [1, 880]


def test_models_with_limits_of_their_own_are_told_apart(driver: Driver) -> None:
    driver.admitted(MODELS, tokens=200, model="Qwen/7B")
    driver.admitted(MODELS, tokens=30, model="another")
    own, of_model = read(driver, MODELS)
    assert [rate.total for rate in own.rates] == [2, 30, 2]
    assert own.running == 1  # the other has its slot under the model's own concurrency
    assert (of_model.running, of_model.is_full) == (1, True)
    assert [rate.total for rate in of_model.rates] == [200]


def test_an_account_tells_nothing_of_another(driver: Driver) -> None:
    driver.admitted(tokens=300)
    (own,) = read(driver, account="b")
    assert (own.running, [rate.total for rate in own.rates]) == (0, [0, 0])


def test_a_lease_whose_time_is_over_is_free_as_it_is_read(driver: Driver) -> None:
    driver.admitted(tokens=300)
    driver.now += 30.0
    (own,) = read(driver)
    assert (own.running, [rate.total for rate in own.rates]) == (0, [1, 0])
