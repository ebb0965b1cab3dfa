"""The machine that the library runs on in a simulation: clocks, threads, processes, chance.

`boot` is called in a process of its own, before anything of the library is imported, and puts in
the place of the operating system's clocks, threads and randomness those of a seed; the library
itself is not touched, and neither is what a later version of it may come to use of them. Time only
passes where somebody waits. A thread is a greenlet that runs from one wait to the next.

Every handle of the event loop belongs to the process in whose context it was made: so processes of
one loop are killed (nothing of theirs ever runs again, and nothing is tidied up) and stopped (all
of theirs waits, while time goes on).
"""

import asyncio
import concurrent.futures
import contextvars
import heapq
import os
import queue
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import greenlet

# A moment of the wall clock at which simulations begin: 2026-11-24T00:00:00Z.
WALL_NS = 1_795_478_400 * 10**9

# What a look at the wall clock takes, so that no two request ids are of one moment.
LOOK_NS = 1_000

# How long a thread takes to wake and do its work: as an fsync, or as a scheduler that has others.
WAKE_US = (50, 2_000)


class Process:
    """One start of one worker process."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.alive = True
        self.stopped = False
        self.held: list[asyncio.Handle] = []  # what would run now, were it not stopped
        self.timers: list[asyncio.TimerHandle] = []
        self.buried: list[Any] = []  # what a dead process had: kept, so that nothing tidies up


OWNER: contextvars.ContextVar[Process | None] = contextvars.ContextVar("owner", default=None)


class Machine:
    """Time and chance of one simulation; `slow_us` is added to what threads take."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.now_us = 1_000_000_000
        self.wall_ahead_ns = 0
        self.looks = 0
        self.slow_us = 0
        self.loop = Loop(self)
        self._ids = random.Random(seed ^ 0x5EED)

    def monotonic(self) -> float:
        return self.now_us / 1e6

    def wall_ns(self) -> int:
        self.looks += 1
        return WALL_NS + self.now_us * 1000 + self.wall_ahead_ns + self.looks * LOOK_NS

    def sleep(self, seconds: float) -> None:
        self.now_us += round(seconds * 1e6)

    def urandom(self, count: int) -> bytes:
        return self._ids.randbytes(count)

    def wake_us(self) -> int:
        return self.rng.randint(*WAKE_US) + (
            self.rng.randrange(self.slow_us) if self.slow_us else 0
        )


class Loop(asyncio.BaseEventLoop):
    """An event loop in virtual time; `on_step` is called before each of its turns."""

    def __init__(self, machine: Machine) -> None:
        super().__init__()
        self._machine = machine
        self._selector = self
        self._clock_resolution = 1e-9
        self.set_task_factory(_keep_task)
        self.on_step: Callable[[bool, float | None], None] = lambda ready, timeout: None

    def time(self) -> float:
        return self._machine.now_us / 1e6

    def select(self, timeout: float | None) -> list[Any]:
        """Decide what happens next, in the place of the kernel: the step of a simulation."""
        self.on_step(bool(self._ready), timeout)
        if not self._ready and self._scheduled:
            due_us = -int(-self._scheduled[0].when() * 1e6 // 1)
            self._machine.now_us = max(self._machine.now_us, due_us)
        return []

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:
        pool = executor or ThreadPoolExecutor(1)
        return asyncio.wrap_future(pool.submit(func, *args), loop=self)

    def in_world(self, delay_us: int, callback: Callable[..., Any], *args: Any) -> Any:
        """Call something that belongs to no process, later."""
        return self.call_later(delay_us / 1e6, callback, *args, context=_WORLD)

    def stop_process(self, process: Process) -> None:
        """Let nothing of a process run: SIGSTOP."""
        process.stopped = True
        ready, timers = self._take(process)
        process.held += ready
        process.timers += timers

    def continue_process(self, process: Process) -> None:
        """Let it run on: SIGCONT."""
        process.stopped = False
        held, process.held = process.held, []
        timers, process.timers = process.timers, []
        self._ready.extend(held)
        for timer in timers:
            timer._scheduled = True
            heapq.heappush(self._scheduled, timer)

    def kill_process(self, process: Process) -> None:
        """End a process where it stands: SIGKILL."""
        process.alive = False
        process.buried += [*self._take(process), process.held, process.timers]
        process.held, process.timers = [], []

    def _take(self, process: Process) -> tuple[list[Any], list[Any]]:
        def is_of(handle: Any) -> bool:
            return handle._context.get(OWNER) is process

        ready = [handle for handle in self._ready if is_of(handle)]
        timers = [timer for timer in self._scheduled if is_of(timer)]
        kept = [handle for handle in self._ready if not is_of(handle)]
        self._ready.clear()
        self._ready.extend(kept)
        for timer in timers:
            timer._scheduled = False
        self._scheduled = [timer for timer in self._scheduled if not is_of(timer)]
        heapq.heapify(self._scheduled)
        return ready, timers

    def _call_soon(self, callback: Any, args: Any, context: Any) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        owner = handle._context.get(OWNER)
        if owner is None or not (owner.stopped or not owner.alive):
            self._ready.append(handle)
        else:
            owner.held.append(handle)
        return handle

    def _process_events(self, event_list: list[Any]) -> None: ...

    def _write_to_self(self) -> None: ...


def _keep_task(loop: Any, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
    # Else a dead process' tasks would be found by the garbage collector, and tidy up after all.
    task: asyncio.Task[Any] = asyncio.Task(coroutine, loop=loop, **options)
    context = options.get("context")
    owner = OWNER.get() if context is None else context.get(OWNER)
    if owner is not None:
        owner.buried.append(task)
    return task


class Thread:
    """A thread as a greenlet: it runs until it waits in a `SimpleQueue`."""

    def __init__(
        self,
        group: None = None,
        target: Callable[..., Any] = lambda: None,
        name: str | None = None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        *,
        daemon: bool | None = None,
    ) -> None:
        self.name, self.daemon = name or "thread", daemon
        self.timed_out = False
        self._greenlet = greenlet.greenlet(lambda: target(*args, **(kwargs or {})))
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        self._context = contextvars.copy_context()
        self._greenlet.gr_context = contextvars.copy_context()
        owner = OWNER.get()
        if owner is not None:
            owner.buried.append(self)
        self.wake()

    def wake(self, after_s: float | None = None) -> None:
        """Run on after a while, or after `after_s` because nothing came."""
        if self._timer is not None:
            self._timer.cancel()
        machine = _machine()
        delay_s = machine.wake_us() / 1e6 if after_s is None else after_s
        self._timer = machine.loop.call_later(
            delay_s, self._run_on, after_s is not None, context=self._context
        )

    def wait(self, timeout_s: float | None) -> bool:
        """Let others run until this is woken; False where nobody did in time."""
        if timeout_s is not None:
            self.wake(timeout_s)
        self._greenlet.parent.switch()
        return not self.timed_out

    def join(self, timeout: float | None = None) -> None:
        assert self._greenlet.dead, "joined a thread that has not ended"

    def _run_on(self, timed_out: bool) -> None:
        self._timer = None
        self.timed_out = timed_out
        self._greenlet.thread = self
        self._greenlet.switch()


class SimpleQueue:
    """A queue between the loop and a thread, or between threads."""

    def __init__(self) -> None:
        self._items: deque[Any] = deque()
        self._waiter: Thread | None = None

    def put(self, item: Any) -> None:
        self._items.append(item)
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            waiter.wake()

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        while not self._items:
            thread: Thread = greenlet.getcurrent().thread
            self._waiter = thread
            if not thread.wait(timeout):
                self._waiter = None
                raise queue.Empty
        return self._items.popleft()

    def get_nowait(self) -> Any:
        if not self._items:
            raise queue.Empty
        return self._items.popleft()


class ThreadPoolExecutor(concurrent.futures.Executor):
    """A pool whose one thread does one thing after another."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self._free_s = 0.0

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        machine = _machine()
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        begins_s = max(machine.loop.time(), self._free_s + 1e-6)
        self._free_s = begins_s + machine.wake_us() / 1e6
        machine.loop.call_at(self._free_s, self._do, future, fn, args, kwargs)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None: ...

    def _do(self, future: Any, fn: Any, args: Any, kwargs: Any) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            result = fn(*args, **kwargs)
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(result)


_WORLD = contextvars.Context()
_running: list[Machine] = []


def _machine() -> Machine:
    return _running[-1]


def boot() -> None:
    """Put the simulated machine below all that is imported from now on."""
    time.monotonic = lambda: _machine().monotonic()
    time.monotonic_ns = lambda: _machine().now_us * 1000
    time.time = lambda: _machine().wall_ns() / 1e9
    time.time_ns = lambda: _machine().wall_ns()
    time.sleep = lambda seconds: _machine().sleep(seconds)
    os.urandom = lambda count: _machine().urandom(count)
    threading.Thread = Thread  # type: ignore[assignment,misc]
    queue.SimpleQueue = SimpleQueue  # type: ignore[assignment,misc]
    concurrent.futures.ThreadPoolExecutor = ThreadPoolExecutor  # type: ignore[misc]
    _running.append(Machine(0))


def run(seed: int) -> Machine:
    """Start the machine anew with a seed."""
    _running[:] = [Machine(seed)]
    random.seed(seed)
    asyncio.set_event_loop(_running[0].loop)
    return _running[0]
