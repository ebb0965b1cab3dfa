"""What happens next, by the seed: who asks, who leaves, what breaks, and how long it takes."""

from collections.abc import Callable
from typing import Any

from inf_middleware.domain.errors import BookingRefused, LedgerUnavailable
from tests.simulate.asked import STATES, Asked
from tests.simulate.limits_model import Broken
from tests.simulate.machine import Machine
from tests.simulate.worker_process import Worker
from tests.simulate.world import ACCOUNTS, World

# What befalls all requests that are under way; "leaves" and "cancelled" befall one.
FAULTS = (
    "leaves",
    "cancelled",
    "killed",
    "power_cut",
    "stalled",
    "stopped",
    "clock_back",
    "clock_forward",
    "recharged",
    "suspended",
    "pinned",
    "store_down",
    "store_slow",
    "reply_lost",
    "connection_reset",
    "scripts_forgotten",
    "failed_over",
    "disk_full",
    "disk_error",
    "disk_slow",
    "sink_fails",
    "sink_rejects",
    "sink_slow",
)

PAIRS = [(fault, state) for fault in FAULTS for state in STATES]

# How likely something happens at a step: more where requests are for a short time only.
_CHANCES = dict.fromkeys(STATES, 0.04)
_CHANCES.update(dict.fromkeys(("working", "streaming", "waiting"), 0.01))
_CHANCES.update(dict.fromkeys(("claiming", "holding", "closing"), 0.15))
_CHANCES["extending"] = 0.3  # the rarest: of prepaid streams that outlast what is held

# How often what befalls one request befalls one of any state: those that last are else passed over
# for others nearly always.
_ANY_STATE = 0.3

# Above what one account may have in progress, below what would only queue.
_LIVE_MAX = 8

# How long a fault lasts.
_FAULT_US = (20_000, 1_500_000)

# A process that gives no sign of life may be taken for gone after this, less a beat that was due.
_SIGN_OF_LIFE_US = 20_000_000


class Schedule:
    """Chooses; `steps_left` until everything is to come to rest."""

    def __init__(self, world: World, machine: Machine) -> None:
        self._world = world
        self._machine = machine
        self._rng = machine.rng
        self._places = 0
        self._references = 0
        self._healing: dict[str, Callable[[], None]] = {}
        self._faults = [name for name in FAULTS if name not in _STORE or world.options.shared]

    def step(self, idle: bool) -> None:
        """Let something happen, or nothing."""
        world, rng = self._world, self._rng
        if world.power.is_gone:
            self._power_is_gone()
            return
        live = world.live
        if rng.random() < (0.15 if idle else 0.05) and len(live) < _LIVE_MAX:
            self._ask()
        chance = max((_CHANCES[request.state] for request in live), default=0.0)
        if rng.random() < chance:
            getattr(self, f"_{rng.choice(self._faults)}")()
        elif not live and rng.random() < 0.2:
            self._leap(rng.randint(1_000_000, _SIGN_OF_LIFE_US))

    def heal(self) -> None:
        """End all faults."""
        if self._world.power.is_gone:
            self._power_is_gone()
        self._world.power.writes_left = None
        self._world.server.lose = self._world.server.reset = 0  # what has befallen nobody yet
        for heal in list(self._healing.values()):
            heal()
        self._healing.clear()

    def _ask(self) -> None:
        rng, world = self._rng, self._world
        number = next(world.numbers)
        stream = rng.random() < 0.65
        account = rng.choice(ACCOUNTS)
        chunks = [rng.randint(1, 90) for _ in range(rng.randint(1, 8))]
        fails = ["", "", "", "", "before", "started", "middle", "status", "endless"]
        request = Asked(
            number=number,
            account=account,
            key=world.keys[account],
            words=rng.choice([3, 20, 20, 80, 80, 200, 200, 200, 700]),
            cap=rng.choice([None, 5, 60, 600, 1_000]),
            stream=stream,
            asks_usage=rng.random() < 0.3,
            tells_usage=rng.random() < 0.6,
            chunks=chunks,
            chunk_us=rng.choice([500, 20_000, 200_000, 3_000_000]),
            fails=rng.choice(fails if stream else ["", "", "", "before", "started", "status"]),
            listens=rng.random() < 0.5,
            priced=rng.random() < 0.85,
            idempotency_key=f"key-{rng.randint(1, 6)}" if rng.random() < 0.25 else None,
            body_pieces=rng.choice([1, 1, 3]),
            body_us=rng.choice([0, 300, 40_000]),
            reads_slowly_us=rng.choice([0, 0, 0, 2_000, 90_000]),
            server_raises=rng.random() < 0.5,
            offset=rng.choice([0, 1, 40]),
        )
        running = [worker for worker in world.workers if not worker.process.stopped]
        if running:
            world.ask(request, rng.choice(running))

    def _leap(self, us: int) -> None:
        self._machine.now_us += us
        self._world.note(f"leap {us}")

    def _for_a_while(self, name: str, begin: Callable[[], None], end: Callable[[], None]) -> None:
        self._world.befalls(name)
        if self._healing and self._rng.random() < 0.8:  # mostly one at a time
            return
        if name in self._healing:
            return
        begin()

        def heal() -> None:
            if self._healing.pop(name, None) is not None:
                end()
                self._world.note(f"{name} is over")

        self._healing[name] = heal
        self._machine.loop.in_world(self._rng.randint(*_FAULT_US), heal)

    # what befalls one request

    def _leaves(self) -> None:
        staying = [request for request in self._world.live if not request.left]
        if staying:
            self._world.leave(self._pick(staying))

    def _cancelled(self) -> None:
        self._world.cancel(self._pick(self._world.live))

    def _pick(self, requests: list[Asked]) -> Asked:
        if self._rng.random() < _ANY_STATE:
            state = self._rng.choice(sorted({request.state for request in requests}))
            return self._rng.choice([one for one in requests if one.state == state])
        most = max(_CHANCES[request.state] for request in requests)
        return self._rng.choice([one for one in requests if _CHANCES[one.state] == most])

    # what befalls processes and their host

    def _killed(self) -> None:
        worker = self._rng.choice(self._world.workers)
        mine = [request for request in self._world.live if request.worker is worker]
        if mine:
            self._world.befalls("killed", *mine)
            self._world.kill(worker)

    def _power_cut(self) -> None:
        if self._rng.random() < 0.5:
            # In the middle of a write, soon.
            self._world.power.writes_left = self._rng.randint(1, 40)
        else:
            self._power_is_gone()

    def _power_is_gone(self) -> None:
        self._world.befalls("power_cut")
        self._places += 1
        self._world.cut_power(self._world.folder.parent / str(self._places))

    def _stalled(self) -> None:
        self._world.befalls("stalled")
        us = self._rng.choice([500_000, 5_000_000, 40_000_000])
        self._pause(self._world.live, self._world.workers, us)
        self._leap(us)

    def _stopped(self) -> None:
        worker = self._rng.choice(self._world.workers)
        mine = [request for request in self._world.live if request.worker is worker]
        if worker.process.stopped or not mine:
            return
        self._world.befalls("stopped", *mine)
        loop = self._machine.loop
        loop.stop_process(worker.process)

        def go_on() -> None:
            if worker.process.alive and worker.process.stopped:
                loop.continue_process(worker.process)

        self._healing[worker.name] = go_on
        us = self._rng.choice([200_000, 3_000_000, 45_000_000])
        self._pause(mine, [worker], us)
        loop.in_world(us, go_on)

    def _pause(self, requests: list[Asked], workers: list[Worker], us: int) -> None:
        if us > _SIGN_OF_LIFE_US:
            for one in requests:
                one.paused = True
            for worker in workers:
                worker.gone = True

    def _clock_back(self) -> None:
        self._world.befalls("clock_back")
        self._machine.wall_ahead_ns -= self._rng.randint(1, 3_600) * 10**9

    def _clock_forward(self) -> None:
        self._world.befalls("clock_forward")
        self._machine.wall_ahead_ns += self._rng.randint(1, 3_600) * 10**9

    # what operators do

    def _recharged(self) -> None:
        amount = self._rng.choice(["0.01", "0.05", "0.3"])
        self._references += 1
        reference = f"paid-{self._references}"
        account = self._rng.choice(ACCOUNTS)
        self._operate("recharged", lambda book: book.recharge(account, amount, reference=reference))

    def _suspended(self) -> None:
        account = self._rng.choice(ACCOUNTS)
        self._operate("suspended", lambda book: book.set_account(account, suspended=True))

        def let_in() -> None:
            self._operate("let in", lambda book: book.set_account(account, suspended=False))

        self._machine.loop.in_world(self._rng.randint(*_FAULT_US), let_in)

    def _pinned(self) -> None:
        account = self._rng.choice(ACCOUNTS)
        tier = self._rng.choice([None, "Free", "Tier1", "Tier2"])
        self._operate("pinned", lambda book: book.set_account(account, tier=tier))

    def _operate(self, name: str, do: Callable[[Any], Any]) -> None:
        self._world.befalls(name)
        worker = self._rng.choice(self._world.workers)

        async def operating() -> None:
            try:
                done = await do(worker.book)
            except (LedgerUnavailable, BookingRefused):
                return
            if hasattr(done, "request_id"):
                self._world.acknowledged(done.request_id)

        worker.spawn(self._machine.loop, operating())

    # what befalls the server of the limits

    def _store_down(self) -> None:
        server = self._world.server
        self._for_a_while(
            "store_down",
            lambda: setattr(server, "down", True),
            lambda: setattr(server, "down", False),
        )

    def _store_slow(self) -> None:
        server = self._world.server
        slow_us = self._rng.choice([20_000, 150_000, 600_000])
        self._for_a_while(
            "store_slow",
            lambda: setattr(server, "slow_us", slow_us),
            lambda: setattr(server, "slow_us", 0),
        )

    def _reply_lost(self) -> None:
        self._world.befalls("reply_lost")
        self._world.server.lose += 1

    def _connection_reset(self) -> None:
        self._world.befalls("connection_reset")
        self._world.server.reset += self._rng.randint(1, 3)

    def _scripts_forgotten(self) -> None:
        self._world.befalls("scripts_forgotten")
        self._world.server.known.clear()

    def _failed_over(self) -> None:
        self._world.befalls("failed_over")
        self._world.fail_over()
        self._machine.loop.in_world(self._rng.randint(1, 2_000_000), self._world.replicate)

    # what befalls the disk

    def _disk_full(self) -> None:
        self._disk("full")

    def _disk_error(self) -> None:
        self._disk("error")

    def _disk(self, fault: str) -> None:
        power = self._world.power
        self._for_a_while(
            f"disk_{fault}",
            lambda: setattr(power, "fault", fault),
            lambda: setattr(power, "fault", ""),
        )

    def _disk_slow(self) -> None:
        machine = self._machine
        slow_us = self._rng.choice([50_000, 400_000, 4_000_000])
        self._for_a_while(
            "disk_slow",
            lambda: setattr(machine, "slow_us", slow_us),
            lambda: setattr(machine, "slow_us", 0),
        )

    # what befalls sinks

    def _sink_fails(self) -> None:
        sink = self._rng.choice(list(self._world.sinks.values()))
        self._for_a_while(
            "sink_fails",
            lambda: setattr(sink, "failing", True),
            lambda: setattr(sink, "failing", False),
        )

    def _sink_rejects(self) -> None:
        self._world.befalls("sink_rejects")
        self._rng.choice(list(self._world.sinks.values())).rejecting += 1

    def _sink_slow(self) -> None:
        sink = self._rng.choice(list(self._world.sinks.values()))
        self._for_a_while(
            "sink_slow",
            lambda: setattr(sink, "slow_s", 4.0),
            lambda: setattr(sink, "slow_s", 0.0),
        )


_STORE = frozenset(FAULTS[FAULTS.index("store_down") : FAULTS.index("disk_full")])

assert all(hasattr(Schedule, f"_{fault}") for fault in FAULTS), Broken
