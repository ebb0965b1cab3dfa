"""What only the store of one process promises: no waiting, and no more memory than is in use."""

import asyncio
from typing import Any

import pytest

from inf_middleware.domain.limits import Admission
from tests.stores.backends import LEASE_S, SMALL, Driver, InMemory


def test_answers_never_wait_so_that_one_loop_decides_in_one_step() -> None:
    with asyncio.Runner() as runner:
        driver = Driver(InMemory(), runner)
        step: Any = driver.store.admit(driver.ask())
        with pytest.raises(StopIteration) as ended:
            step.send(None)
        assert isinstance(ended.value.value, Admission)


def test_idle_accounts_are_dropped_on_the_way() -> None:
    with asyncio.Runner() as runner:
        driver = Driver(InMemory(), runner)
        busy = driver.admitted(account="busy")
        for number in range(1_000):
            driver.settle(driver.admitted(account=f"account-{number}"), 1)
        assert len(driver.store) == 1_001
        for _ in range(600):
            driver.now += 61.0
            driver.renew((busy, 0))
            driver.settle(driver.admitted(account="other"), 1)
        assert len(driver.store) <= 3
        driver.settle(busy, 5)


def test_an_account_whose_lease_was_lost_is_dropped_when_that_is_forgotten() -> None:
    with asyncio.Runner() as runner:
        driver = Driver(InMemory(), runner)
        driver.admitted(account="lost")
        for later in (LEASE_S, 60.0, 301.0, 61.0, 61.0):
            driver.now += later
            driver.settle(driver.admitted(account="other"), 1)
        assert driver.in_progress("lost") == 0
        assert len(driver.store) == 1


def test_refused_strangers_leave_nothing_behind() -> None:
    with asyncio.Runner() as runner:
        driver = Driver(InMemory(), runner)
        for number in range(500):
            driver.refused(SMALL, 1_001, account=f"stranger-{number}")
        driver.now += 61.0
        for _ in range(300):
            driver.settle(driver.admitted(account="other"), 0)
            driver.now += 61.0
        assert len(driver.store) <= 2
