"""What is installed with the library: its dependencies with and without extras, and theirs."""

import tomllib
from collections.abc import Iterable
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent.parent

# Licences that a service which is sold may be built on without telling its source: each as it is
# written in the metadata that packages carry, in the words of SPDX where they use them.
ALLOWED = {
    "0BSD",
    "Apache License 2.0",
    "Apache Software License",
    "Apache-2.0",
    "BSD License",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "CNRI-Python",
    "ISC License (ISCL)",
    "ISC",
    "MIT License",
    "MIT",
    "MIT-0",
    "Mozilla Public License 2.0 (MPL 2.0)",
    "MPL-2.0",
    "PSF-2.0",
    "Python Software Foundation License",
    "The Unlicense (Unlicense)",
    "Unlicense",
    "any-OSI",  # apsw: whichever of these the user likes
}


def declared() -> dict[str, list[Requirement]]:
    """Return what pyproject.toml names: for "" what is always needed, and by extra the rest."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    named = {"": project["dependencies"], **project["optional-dependencies"]}
    return {extra: [Requirement(line) for line in lines] for extra, lines in named.items()}


def installed(roots: Iterable[Requirement]) -> tuple[list[Distribution], list[str]]:
    """Return these packages and all that they need in turn, and the names that are not here."""
    found: dict[str, Distribution] = {}
    missing: set[str] = set()
    seen: set[tuple[str, str]] = set()
    waiting = list(roots)
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        for extra in ["", *sorted(wanted.extras)]:
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            try:
                found[name] = distribution(name)
            except PackageNotFoundError:
                missing.add(name)
                continue
            for line in found[name].requires or ():
                needed = Requirement(line)
                if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                    waiting.append(needed)
    return [found[name] for name in sorted(found)], sorted(missing)


def licence_of(package: Distribution) -> str:
    """Return the licence that a package's metadata states: the expression, else classifiers."""
    metadata = package.metadata
    expression = metadata.get("License-Expression")
    if expression:
        return expression
    prefix = "License :: "
    classified = [
        line.rpartition(" :: ")[2]
        for line in metadata.get_all("Classifier") or ()
        if line.startswith(prefix) and line != "License :: OSI Approved"
    ]
    if classified:
        return " AND ".join(classified)
    # Some write the whole text there: its first line is its name.
    return (metadata.get("License") or "").strip().partition("\n")[0].strip()


def is_allowed(licence: str) -> bool:
    """Return whether a licence is one of the list; of an OR one is enough, of an AND all count."""
    # No licence of this list has brackets of an expression in it: what has both is not understood.
    if " AND " in licence:
        return all(part in ALLOWED for part in licence.split(" AND "))
    return any(part in ALLOWED for part in licence.split(" OR "))
