"""Fuzzes the readers, guided by what of them is covered: python -m tests.fuzz SECONDS [TARGET ...]

Each target has its share of the time, in a process of its own. It begins with the corpus that is
kept, and with the answers that the tests know; what it finds beyond is minimised and kept beside. A
failure stops its target, says which input it was, and leaves that in build/fuzz.
"""

import shutil
import subprocess
import sys
from pathlib import Path

from tests.fuzz.corpus import FOLDER, keep, kept, seeds
from tests.fuzz.targets import TARGETS

WORK = Path("build/fuzz")

# Longer inputs say nothing new, and take longer.
INPUT_BYTES_MAX = 1024


def _run(target: str, *arguments: str) -> int:
    # A file that can be executed: to minimise, libFuzzer starts itself again by its name.
    script = WORK.absolute() / f"{target}.sh"
    script.write_text(
        f'#!/bin/sh\nexec "{sys.executable}" -m tests.fuzz.guided {target} "$0" "$@"\n', "utf-8"
    )
    script.chmod(0o755)
    return subprocess.run([str(script), *arguments], check=False).returncode


def fuzz(target: str, seconds: int) -> bool:
    """Fuzz one target for some seconds; tell whether all held."""
    found, fewer = WORK / target, WORK / f"{target}-fewer"
    for folder in (found, fewer):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    for number, data in enumerate([*kept(target), *seeds(target)]):
        (found / f"{number:06}").write_bytes(data)
    limits = [f"-max_len={INPUT_BYTES_MAX}", f"-artifact_prefix={WORK}/{target}-failed-"]
    failed = _run(target, f"-max_total_time={seconds}", "-print_final_stats=1", *limits, str(found))
    if failed or _run(target, "-merge=1", *limits, str(fewer), str(found)):
        return False
    keep(target, [path.read_bytes() for path in sorted(fewer.iterdir())])
    print(f"{target}: {len(kept(target))} inputs kept in {FOLDER}")
    return True


def main(seconds: int, *targets: str) -> None:
    """Fuzz targets, by turns."""
    chosen = targets or tuple(TARGETS)
    each = max(seconds // len(chosen), 1)
    failed = [target for target in chosen if not fuzz(target, each)]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; the inputs are in {WORK}")


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
