"""Puts each deliberate fault into a copy of the package and runs the test that must catch it.

`python -m tests.mutants` runs all, `python -m tests.mutants WORD` those whose names contain a word.
First the tests are run on the package as it is: what fails without a fault catches none. Ends with
1 where a fault survived.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.mutants import of_answers, of_deliveries, of_ledgers, of_limits
from tests.mutants.fault import Fault

ROOT = Path(__file__).parent.parent.parent
FAULTS: list[Fault] = [
    *of_limits.FAULTS,
    *of_answers.FAULTS,
    *of_ledgers.FAULTS,
    *of_deliveries.FAULTS,
]

# A test that hangs on a fault has noticed it; the slowest take half a minute on a busy machine.
TIMEOUT_S = 180.0


def main(words: Sequence[str]) -> int:
    """Try the faults, and say of each what became of it."""
    faults = [fault for fault in FAULTS if all(word in fault.name for word in words)]
    if not faults:
        print(f"no fault is named like {' '.join(words)!r}")
        return 2
    if unfit := misfits(faults):
        print("\n".join(unfit))
        return 1
    begun = time.monotonic()
    tests = list(dict.fromkeys(fault.caught_by for fault in faults))
    print(f"{len(tests)} tests on the package as it is ...", flush=True)
    sound, said = _run(ROOT / "src", tests)
    if sound != 0:
        print(said)
        return 1
    survived = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for number, (fault, why) in enumerate(zip(faults, pool.map(_try, faults), strict=True), 1):
            print(
                f"{number:3}/{len(faults)} {'killed  ' if why is None else 'SURVIVED'}"
                f" {fault.name}",
                flush=True,
            )
            if why is not None:
                survived.append((fault, why))
    for fault, why in survived:
        print(f"\n{fault.name}\n  in {fault.file}, by {fault.caught_by}\n{why}")
    killed = len(faults) - len(survived)
    print(f"{killed} of {len(faults)} faults killed in {time.monotonic() - begun:.0f} s")
    return 1 if survived else 0


def misfits(faults: Sequence[Fault]) -> list[str]:
    """Return what is wrong with each fault that does not fit the code, or names no test."""
    found = []
    for fault in faults:
        file, _, name = fault.caught_by.partition("::")
        if f"def {name.partition('[')[0]}(" not in (ROOT / file).read_text("utf-8"):
            found.append(f"{fault.name}: no test is {fault.caught_by}")
        try:
            fault.put_into((ROOT / "src" / "inf_middleware" / fault.file).read_text("utf-8"))
        except (ValueError, OSError) as error:
            found.append(f"{fault.name}: {error}")
    return found


def _try(fault: Fault) -> str | None:
    """Return None where a fault was caught, else why not."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        source = Path(folder) / "src"
        shutil.copytree(ROOT / "src", source, ignore=shutil.ignore_patterns("__pycache__"))
        file = source / "inf_middleware" / fault.file
        file.write_text(fault.put_into(file.read_text("utf-8")), "utf-8")
        code, said = _run(source, [fault.caught_by])
    # 1 is pytest's for tests that failed; anything else is a fault of this list.
    return None if code == 1 and " failed" in said else said[-2000:]


def _run(source: Path, tests: Sequence[str]) -> tuple[int, str]:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    environment = {
        **os.environ,
        "PYTHONPATH": str(source),  # before the installed package
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    ran = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env=environment,
    )
    try:
        said, _ = ran.communicate(timeout=TIMEOUT_S if len(tests) == 1 else None)
    except subprocess.TimeoutExpired:
        ran.kill()
        said, _ = ran.communicate()
        return 1, f"{said}\n1 failed: it hung for {TIMEOUT_S:g} s"
    return ran.returncode, said


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
