"""Known vulnerabilities and licences of what is installed with the library: make audit."""

import json
import subprocess
import sys
import tempfile
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any

from tests.supply_chain.runtime import declared, installed, is_allowed, licence_of

# The service is asked about some forty packages: a network that swallows packets ends here.
AUDIT_TIMEOUT_S = 180


def licences(packages: list[Distribution]) -> list[str]:
    """Return a line for each package whose licence is not on the list."""
    return [
        f"{package.name} {package.version}: {licence_of(package) or 'no licence stated'}"
        for package in packages
        if not is_allowed(licence_of(package))
    ]


def report_of(packages: list[Distribution]) -> list[dict[str, Any]] | None:
    """Ask the vulnerability service of PyPI; None where it gave no answer."""
    with tempfile.TemporaryDirectory() as scratch:
        listed = Path(scratch) / "installed.txt"
        listed.write_text("".join(f"{p.name}=={p.version}\n" for p in packages), "utf-8")
        command = [sys.executable, "-m", "pip_audit", "--requirement", str(listed)]
        command += ["--no-deps", "--disable-pip", "--format", "json", "--progress-spinner", "off"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=AUDIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return None
    if "No module named pip_audit" in done.stderr:
        raise SystemExit("pip-audit is not installed here: run make audit")
    try:
        found: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        print(done.stderr.strip()[-500:])
        return None
    return found


def vulnerabilities(report: list[dict[str, Any]]) -> list[str]:
    """Return a line for each known vulnerability of a report."""
    return [
        f"{entry['name']} {entry['version']}: {known['id']}, mended in "
        f"{', '.join(known['fix_versions']) or 'no version yet'}"
        for entry in report
        for known in entry.get("vulns", ())
    ]


def main() -> int:
    """Print what was looked at and what was found; 1 where something has to be done."""
    packages, missing = installed(r for requirements in declared().values() for r in requirements)
    print(f"{len(packages)} packages are what the library and its extras install")
    wrong = []
    if missing:
        wrong.append("not installed here, so not looked at: " + ", ".join(missing))
    wrong += [f"licence outside the list: {line}" for line in licences(packages)]
    report = report_of(packages)
    if report is None:
        print("vulnerabilities: NOT LOOKED AT, the service could not be reached from here")
    else:
        unknown = [e["name"] for e in report if "skip_reason" in e]
        print(f"vulnerabilities: {len(report) - len(unknown)} packages were looked at")
        if unknown:
            print("NOT LOOKED AT, the service does not answer for: " + ", ".join(unknown))
        wrong += [f"known vulnerability: {line}" for line in vulnerabilities(report)]
    print("\n".join(wrong) if wrong else "nothing to mend in what was looked at")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
