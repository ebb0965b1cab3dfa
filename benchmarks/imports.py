"""What importing costs, beside Python itself and Starlette: python -m benchmarks.imports.

Processor time of fresh processes, so that other work on the machine counts little; medians, and the
ratio to Starlette's own, which a server has loaded anyway. Bytecode is written first.
"""

import os
import statistics
import subprocess
import sys

ROUNDS = 15

CASES = {
    "python alone": "pass",
    "starlette": "import starlette.applications",
    "inf_middleware": "import inf_middleware",
    "the three": "from inf_middleware import CostLedger, TierLimiter, TokenMeter",
    "starlette, then the three": (
        "import starlette.applications\n"
        "from inf_middleware import CostLedger, TierLimiter, TokenMeter"
    ),
}


def cost_ms(code: str) -> float:
    """Return the processor time of a Python that runs some code, in milliseconds."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, code
    return (used.ru_utime + used.ru_stime) * 1000


def main() -> None:
    """Measure all cases in turn, and print a table."""
    found: dict[str, list[float]] = {name: [] for name in CASES}
    for code in CASES.values():
        cost_ms(code)
    for _ in range(ROUNDS):
        for name, code in CASES.items():
            found[name].append(cost_ms(code))
    base = statistics.median(found["starlette"])
    print(f"{'':<26} {'median':>10} {'least':>10} {'× starlette':>12}")
    for name, times in found.items():
        middle = statistics.median(times)
        print(f"{name:<26} {middle:>7.0f} ms {min(times):>7.0f} ms {middle / base:>12.2f}")


if __name__ == "__main__":
    main()
