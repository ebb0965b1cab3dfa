"""Compare a wheel with the one that the sdist gives, and look at what is in them.

python .ci/compare_packages.py WHEEL WHEEL_OF_SDIST SDIST
"""

import sys
import tarfile
import zipfile

DATA = [
    "py.typed",
    "__init__.pyi",
    "domain/tiers.toml",
    "domain/prices.toml",
    "domain/event.schema.json",
    "ledgers/postgres-2.sql",
    "ledgers/sqlite-2.sql",
    "stores/lua/admit.lua",
    "tokens/ranks/o200k_base.xz",
    "tokens/ranks/LICENSE-tiktoken",
]
BESIDE = [
    "README.md",
    "README.zh-CN.md",
    "LICENSE",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "Makefile",
    "mkdocs.yml",
    "docs/index.md",
    "examples/demo.py",
    "tests/driver.py",
]


def contents(wheel: str) -> dict[str, bytes]:
    """Return the files of a wheel."""
    with zipfile.ZipFile(wheel) as file:
        return {name: file.read(name) for name in file.namelist()}


def main(wheel: str, wheel_of_sdist: str, sdist: str) -> None:
    """Say what is wrong, if anything is."""
    ours, again = contents(wheel), contents(wheel_of_sdist)
    differing = [name for name in sorted({*ours, *again}) if ours.get(name) != again.get(name)]
    stray = [name for name in ours if not name.startswith(("inf_middleware/", "inf_middleware-"))]
    missing = [name for name in DATA if f"inf_middleware/{name}" not in ours]
    with tarfile.open(sdist) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    missing += [name for name in BESIDE if name not in names]
    if differing or stray or missing:
        sys.exit(f"differs from the sdist's: {differing}; stray: {stray}; missing: {missing}")


if __name__ == "__main__":
    main(*sys.argv[1:])
