"""The ports of a simulated stack, each with somebody who looks: what goes in, what comes out."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from starlette.requests import HTTPConnection

from inf_middleware import Account, BillingEvent
from inf_middleware.accounts.ledger import LedgerAccounts
from inf_middleware.domain.books import Claim, Claimed
from inf_middleware.domain.limits import Admission, Ask, Held, Refusal
from inf_middleware.ledgers.sqlite import SqliteLedger
from inf_middleware.stores.memory import MemoryStore
from tests.simulate.asked import REQUEST, Asked
from tests.simulate.limits_model import Bounds, Broken, LimitsModel
from tests.simulate.machine import Machine

LEASE_S = 30.0
LEASE_US = 30_000_000


def bounds_of(ask: Ask) -> Bounds:
    """Return what an ask is to be judged by."""
    (group,) = ask.groups
    rates = {rate.metric: rate.limit for rate in group.rates}
    return Bounds(group.concurrency or 0, rates["requests"], rates["tokens"])


class ObservedMemory(MemoryStore):
    """A store in memory, with its model beside it."""

    def __init__(self, machine: Machine, model: LimitsModel) -> None:
        super().__init__(lease_s=LEASE_S)
        self.model = model
        self._machine = machine

    def admit_now(self, ask: Ask) -> Admission | Refusal:
        answer = super().admit_now(ask)
        wait_us, full = 0, False
        if isinstance(answer, Refusal):
            full = answer.standings.concurrency.remaining == 0
            wait_us = round(answer.retry_after_s * 1e6)
            if full and wait_us <= 1_000_000:
                wait_us = 0  # an estimate
        self.model.admit(
            self._machine.now_us,
            ask.account_id,
            ask.call_id,
            ask.tokens,
            bounds_of(ask),
            LEASE_US,
            admitted=isinstance(answer, Admission),
            enforced=ask.enforce,
            wait_us=wait_us,
            full=full,
        )
        self._compare(ask.account_id)
        return answer

    async def renew(self, held: Sequence[Held]) -> frozenset[str]:
        lost = await super().renew(held)
        for admission, used in held:
            kept = self.model.renew(
                self._machine.now_us, admission.account_id, admission.call_id, used, LEASE_US
            )
            if kept == (admission.call_id in lost):
                raise Broken(f"{admission.call_id} is lost to one and held to the other")
        return lost

    def settle_now(self, admission: Admission, tokens: int | None) -> None:
        super().settle_now(admission, tokens)
        self.model.settle(self._machine.now_us, admission.account_id, admission.call_id, tokens)
        self._compare(admission.account_id)

    def _compare(self, account: str) -> None:
        running, _, _ = self.model.counts(account, self._machine.now_us)
        if self.in_progress(account) != running:
            raise Broken(f"{account}: {self.in_progress(account)} in progress, and not {running}")


class ObservedStore:
    """The store that a stack is given: says where its requests are."""

    def __init__(self, store: Any) -> None:
        self.store = store

    async def admit(self, ask: Ask) -> Admission | Refusal:
        request = _request()
        request.state = "admitting"
        request.is_called(ask.call_id)
        if ask.enforce:
            (group,) = ask.groups
            most = next(rate.limit for rate in group.rates if rate.metric == "tokens")
            if ask.tokens != request.reservation(most):
                raise Broken(f"{ask.tokens} reserved, and not {request.reservation(most)}")
        answer: Admission | Refusal = await self.store.admit(ask)
        if isinstance(answer, Admission):
            request.admitted = True
        request.state = "waiting" if isinstance(answer, Refusal) else "holding"
        return answer

    async def renew(self, held: Sequence[Held]) -> frozenset[str]:
        lost: frozenset[str] = await self.store.renew(held)
        return lost

    async def settle(self, admission: Admission, tokens: int | None) -> None:
        request = REQUEST.get()
        if request is not None:
            request.state = "settling"
        await self.store.settle(admission, tokens)
        if request is not None:
            request.settled_with_store = True

    async def aclose(self) -> None:
        await self.store.aclose()


class ObservedAccounts(LedgerAccounts):
    """The look-up, which says when it is done."""

    async def __call__(self, key: str | None, connection: HTTPConnection) -> Account | None:
        request = _request()
        account = await super().__call__(key, connection)
        request.state = "reading"
        return account


class ObservedLedger(SqliteLedger):
    """The ledger, which says where requests are, and what it has acknowledged."""

    def __init__(self, path: Any, acknowledged: Callable[[str], None]) -> None:
        super().__init__(path)
        self._acknowledged = acknowledged

    def settle(self, event: BillingEvent) -> Awaitable[None]:
        request = REQUEST.get()
        if request is not None:
            request.state = "settling"
        future: Any = super().settle(event)

        def told(done: Any) -> None:
            failed = done.cancelled() or done.exception() is not None
            if not failed:
                self._acknowledged(event.id)
            if request is not None:
                request.ledger_failed = request.ledger_failed or failed
                request.state = "settling" if failed else "closing"

        future.add_done_callback(told)
        return future  # type: ignore[no-any-return]

    async def hold(
        self, event: BillingEvent, amount_nano: int, credit_limit_nano: int, spare_nano: int = 0
    ) -> int | None:
        request = _request()
        request.state = "holding"
        available = await super().hold(event, amount_nano, credit_limit_nano, spare_nano)
        request.held = available is None
        return available

    async def extend(self, event: BillingEvent, amount_nano: int) -> int | None:
        request = _request()
        if request.state == "streaming":
            request.state = "extending"
        available = await super().extend(event, amount_nano)
        if request.state == "extending":
            request.state = "streaming"
        return available

    async def claim(self, claimed: Claim) -> Claimed:
        request = _request()
        request.state = "claiming"
        request.is_called(claimed.request_id)
        return await super().claim(claimed)


def _request() -> Asked:
    request = REQUEST.get()
    assert request is not None
    return request
