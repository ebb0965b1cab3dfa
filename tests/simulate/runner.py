"""Runs seeds, each in a process of its own, and tells what they have seen."""

import asyncio
import gc
import hashlib
import json
import os
import selectors
import shutil
import tempfile
import traceback
from argparse import Namespace
from collections import Counter
from pathlib import Path
from time import perf_counter
from typing import Any

from inf_middleware.ledgers.book import LedgerBook
from inf_middleware.ledgers.sqlite import SqliteLedger
from tests.simulate import machine as machines
from tests.simulate.asked import BY_CALL
from tests.simulate.limits_model import Broken
from tests.simulate.rest import come_to_rest
from tests.simulate.schedule import PAIRS, Schedule
from tests.simulate.worker_process import TIERS
from tests.simulate.world import ACCOUNTS, World

# A simulation that has been told to come to rest takes a tenth of this.
_STEPS_MAX = 60_000

# Files that only need to outlive a process: in memory, where the system has such a place.
_MEMORY = Path("/dev/shm")  # noqa: S108


def main(given: Namespace) -> int:
    """Run seeds; 1 where one failed, or a pair was to be visited and was not."""
    first, last = map(int, given.seeds.split(":"))
    folder = Path(tempfile.mkdtemp(dir=_MEMORY if _MEMORY.is_dir() else None))
    try:
        template, keys = _template(folder)
        return _run(given, first, last, folder, template, keys)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(given: Namespace, first: int, last: int, folder: Path, template: Any, keys: Any) -> int:
    began = perf_counter()
    visited: Counter[tuple[str, str]] = Counter()
    totals: Counter[str] = Counter()
    failed: list[int] = []
    seed, running = first, {}
    selector = selectors.DefaultSelector()
    _warm_up(folder, template, keys)
    gc.collect()
    gc.freeze()
    while True:
        is_over = given.first and failed
        while (
            len(running) < given.jobs
            and not is_over
            and (seed < last or (given.seconds and perf_counter() - began < given.seconds))
        ):
            read_end = _start(seed, given, folder / str(seed), template, keys)
            running[read_end] = b""
            selector.register(read_end, selectors.EVENT_READ)
            seed += 1
        if not running:
            break
        for key, _ in selector.select():
            data = os.read(key.fd, 1 << 20)
            running[key.fd] += data
            if data:
                continue
            selector.unregister(key.fd)
            os.close(key.fd)
            os.wait()
            report = json.loads(running.pop(key.fd))
            shutil.rmtree(folder / str(report["seed"]), ignore_errors=True)
            for fault, state, count in report["visited"]:
                visited[fault, state] += count
            totals.update(report["totals"])
            if given.trace or report["failures"]:
                _tell(report, given.trace)
            if report["failures"]:
                failed.append(report["seed"])
    missing = [pair for pair in PAIRS if not visited[pair]]
    seconds = perf_counter() - began
    print(_matrix(visited))
    print(
        f"{seed - first} seeds, {totals['steps']:,} steps ({totals['steps'] / seconds:,.0f}/s),"
        f" {totals['requests']:,} requests, {totals['bills']:,} bills,"
        f" {totals['admissions']:,} admissions and {totals['refusals']:,} refusals,"
        f" {len(PAIRS) - len(missing)} of {len(PAIRS)} pairs, {seconds:.0f} s"
    )
    if missing:
        print("not visited:", ", ".join(f"{fault} while {state}" for fault, state in missing))
    if failed:
        print("failed:", *sorted(failed))
    return 1 if failed or (given.pairs and missing) else 0


def _start(seed: int, given: Namespace, folder: Path, template: Any, keys: Any) -> int:
    read_end, write_end = os.pipe()
    if os.fork():
        os.close(write_end)
        return read_end
    try:
        report = json.dumps(simulate(seed, given.steps, folder, template, keys))
    except BaseException:
        report = json.dumps(_report(seed, [traceback.format_exc()], Counter(), {}, [], ""))
    with os.fdopen(write_end, "w") as out:
        out.write(report)
    os._exit(0)  # nothing is tidied up, least of all what was killed


def _warm_up(folder: Path, template: Any, keys: Any) -> None:
    """Have everything imported and filled that the first requests of a process do."""
    for seed in (0, 3):
        simulate(seed, 200, folder / f"warm-{seed}", template, keys)
    # What the last one left is let go of here, and not in the first step of a seed that is judged.
    machines.run(0)
    gc.enable()
    gc.collect()
    Broken.seen.clear()
    BY_CALL.clear()


def simulate(seed: int, steps: int, folder: Path, template: Any, keys: Any) -> dict[str, Any]:
    """Run one seed, and report."""
    gc.disable()
    folder.mkdir()
    place = folder / "0"
    place.mkdir()
    machine = machines.run(seed)
    loop = machine.loop
    taken = 0
    ending: list[Any] = []
    failures: list[str] = []
    asyncio._set_running_loop(loop)
    world = World(machine, place, template, keys)
    asyncio._set_running_loop(None)
    schedule = Schedule(world, machine)

    def on_step(ready: bool, timeout: float | None) -> None:
        nonlocal taken
        taken += 1
        try:
            world.check()
            if taken < steps:
                schedule.step(not ready)
            elif not ending:
                schedule.heal()
                ending.append(loop.create_task(come_to_rest(world)))
        except Broken:
            pass
        except Exception:
            failures.append(traceback.format_exc())
        if ending and ending[0].done() and not failures and not Broken.seen:
            error = ending[0].exception()
            if error is not None:
                failures.append("".join(traceback.format_exception(error)))
        if taken >= _STEPS_MAX:
            failures.append(f"{_STEPS_MAX} steps, and no rest")
        if failures or Broken.seen or (ending and ending[0].done()):
            loop.stop()

    loop.on_step = on_step
    loop.run_forever()
    failures += Broken.seen
    totals = {
        "steps": taken,
        "requests": len(world.requests),
        "bills": len(world.auditor.rows),
        "admissions": world.limits.admissions,
        "refusals": world.limits.refusals,
    }
    for worker in world.workers:
        totals["admissions"] += worker.memory.model.admissions
        totals["refusals"] += worker.memory.model.refusals
    return _report(seed, failures, world.visited, totals, world.trace, str(world.options))


def _report(
    seed: int, failures: list[str], visited: Any, totals: Any, trace: list[str], options: str
) -> dict[str, Any]:
    return {
        "seed": seed,
        "failures": failures,
        "visited": [(*pair, count) for pair, count in visited.items()],
        "totals": totals,
        "trace": trace,
        "options": options,
    }


def _tell(report: dict[str, Any], whole: bool) -> None:
    trace = report["trace"]
    digest = hashlib.sha256("\n".join(trace).encode()).hexdigest()[:16]
    print(f"seed {report['seed']}: {report['options']}")
    print("\n".join(trace if whole else trace[-12:]))
    print(f"seed {report['seed']}: {len(trace)} things happened, {digest}")
    for failure in report["failures"]:
        steps = report["totals"].get("steps", 0)
        print(f"seed {report['seed']} FAILED after {steps} steps: {failure}", flush=True)


def _matrix(visited: Counter[tuple[str, str]]) -> str:
    faults = list(dict.fromkeys(fault for fault, _ in PAIRS))
    states = list(dict.fromkeys(state for _, state in PAIRS))
    lines = [" " * 18 + "".join(f"{state:>12}" for state in states)]
    lines += [
        f"{fault:18}" + "".join(f"{visited[fault, state]:12}" for state in states)
        for fault in faults
    ]
    return "\n".join(lines)


def _template(folder: Path) -> tuple[dict[str, bytes], dict[str, str]]:
    """Make the ledger that every seed begins with."""
    machine = machines.run(0)
    keys: dict[str, str] = {}

    async def make() -> None:
        book = LedgerBook(SqliteLedger(folder / "l.db"), tiers=TIERS)
        for account in ACCOUNTS:
            await book.create_account(account, credit_limit="0.001")
            keys[account] = (await book.issue_key(account)).key or ""
            await book.recharge(account, "0.04", reference=f"first of {account}")
        await book.aclose()

    machine.loop.run_until_complete(make())
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    return {name: data for name, data in files.items() if name.startswith("l.db")}, keys
