"""The end of a simulation: faults are over, all comes to rest, and nothing may be left."""

import asyncio
from typing import Any

from inf_middleware.ledgers import reconcile
from tests.simulate.asked import Asked
from tests.simulate.limits_model import Broken
from tests.simulate.machine import OWNER
from tests.simulate.worker_process import Worker
from tests.simulate.world import ACCOUNTS, World

# The longest that anything may take without a fault: a drain of two minutes, a body, patience.
PATIENCE_S = 600

# The longest back-off of a sink, and two leases, in heartbeats: after a gap between these who is
# silent is not taken for gone. Once, and once more.
_HOPS, _HOP_US = 20, 10_000_000


async def come_to_rest(world: World) -> None:
    """See that everything ends, and that what is left is what the promises say."""
    await _until(lambda: not world.live, "requests do not end")
    for worker in world.workers:
        await worker.spawn(world.machine.loop, worker.lifespan("startup"))
    for _ in range(_HOPS):
        world.machine.now_us += _HOP_US
        await asyncio.sleep(0.5)
    world.auditor.look()
    _nothing_is_held(world)
    await _all_is_well_again(world)
    await _until(lambda: _delivered(world), "events are not delivered")
    world.auditor.look()
    _nothing_is_held(world)
    world.auditor.integrity()
    world.auditor.acknowledged_is_stored()
    world.auditor.balance_is_explained()
    for request in world.requests:
        _is_billed_once(world, request)
    _sinks_have_all(world)
    await _reconcile(world)
    for worker in world.workers:
        await worker.spawn(world.machine.loop, worker.lifespan("shutdown"))
    await asyncio.sleep(0.1)
    _nothing_runs()


async def _all_is_well_again(world: World) -> None:
    """Whoever can pay is served, by each worker; with that, what a fault left behind ends."""
    for number, worker in enumerate(world.workers):
        account = ACCOUNTS[number]

        async def welcome(worker: Worker = worker, account: str = account) -> None:
            await worker.book.recharge(account, "5", reference=f"last of {account}")
            await worker.book.set_account(account, suspended=False, tier="Tier2")

        await worker.spawn(world.machine.loop, welcome())
        await asyncio.sleep(2)
        request = world.plain(account)
        world.ask(request, worker)
        await _until(lambda: not world.live, "the last request does not end")
        if request.answered != 200:
            raise Broken(f"{worker.name} does not serve any more: {request.code}")


async def _until(holds: Any, otherwise: str) -> None:
    for _ in range(PATIENCE_S):
        if holds():
            return
        await asyncio.sleep(1)
    raise Broken(otherwise)


def _delivered(world: World) -> bool:
    cursors, last = world.auditor.cursors(), world.auditor.last_seq()
    return not last or all(cursors.get(name) == last for name in world.sinks)


def _nothing_is_held(world: World) -> None:
    if world.auditor.held():
        raise Broken(f"{world.auditor.held()} nano are held for nobody")
    if world.auditor.claims():
        raise Broken(f"keys are claimed for nobody: {world.auditor.claims()}")
    now = world.machine.now_us
    for worker in world.workers:
        for account in list(worker.memory.model.accounts):
            if worker.memory.in_progress(account):
                raise Broken(f"{account} has slots for nobody in {worker.name}")
        if worker.limiting_in_use():
            raise Broken(f"{worker.name} has places for nobody")
    for account in list(world.limits.accounts):
        running, _, _ = world.limits.counts(account, now)
        if running or world.running_at_server(account):
            raise Broken(f"{account} has slots for nobody at the server")


def _is_billed_once(world: World, request: Asked) -> None:
    call_id = request.call_id
    is_stored = call_id in world.auditor.rows
    if not request.served:
        # A hold whose worker is gone, or taken for gone, ends as a bill of nothing.
        gone = request.killed or request.paused or request.worker.gone
        if is_stored and not (gone and world.auditor.rows[call_id][1] == 0):
            raise Broken(f"request {request.number} was not served, and is billed")
        return
    if is_stored or request.unrecorded:
        return
    if request.killed:
        if request.held:
            raise Broken(f"request {request.number} was held for, and is not billed")
        return
    if not (request.ledger_failed and world.options.on_ledger_error == "refuse"):
        raise Broken(f"request {request.number} was served, and is not billed")


def _sinks_have_all(world: World) -> None:
    events = world.auditor.outbox()
    bodies = dict(events)
    places = {event_id: place for place, (event_id, _) in enumerate(events)}
    dead = world.auditor.dead_letters()
    for name, sink in world.sinks.items():
        seen: dict[str, int] = {}
        for event_id, account, body in sink.taken:
            if bodies.get(event_id) != body:
                raise Broken(f"sink {name} was told of {event_id}, which is not in the ledger")
            if event_id in seen:
                continue
            seen[event_id] = 0
            if places[event_id] < seen.get(f"of {account}", -1):
                raise Broken(f"sink {name} was told of {account} in another order")
            seen[f"of {account}"] = places[event_id]
        missing = [one for one in bodies if one not in seen and (name, one) not in dead]
        if missing:
            raise Broken(f"sink {name} was never told of {missing}")
        if {one for sink_name, one in dead if sink_name == name} - sink.rejected:
            raise Broken(f"sink {name} has dead letters that it has not refused")


async def _reconcile(world: World) -> None:
    worker = world.workers[0]

    async def reconciling() -> Any:
        return await worker.ledger.read(reconcile.checks)

    for check in await worker.spawn(world.machine.loop, reconciling()):
        if not check.ok:
            raise Broken(f"reconcile: {check.check}: {check.differences}")


def _nothing_runs() -> None:
    for task in asyncio.all_tasks():
        owner = task.get_context().get(OWNER) if hasattr(task, "get_context") else None
        if task is not asyncio.current_task() and owner is not None and owner.alive:
            raise Broken(f"a task is left: {task.get_name()}")
