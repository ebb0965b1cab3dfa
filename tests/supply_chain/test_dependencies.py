"""What is installed with the library is documented as it is declared, and may be sold with it."""

import re
from importlib.metadata import distribution

import pytest
from packaging.requirements import Requirement

from tests.supply_chain.__main__ import licences, vulnerabilities
from tests.supply_chain.runtime import ROOT, declared, installed, is_allowed, licence_of

ROW = re.compile(
    r"^\| (?:`([a-z]+)` \| )?`([^`]+[<>=][^`]+)` \| .+ \| ([^|]+) \| [^|]+ \|$", re.MULTILINE
)


def documented() -> list[tuple[str, str, str]]:
    """Return extra, package and licence of each row of the page."""
    page = (ROOT / "docs" / "dependencies.md").read_text("utf-8")
    return [(extra, package, licence) for extra, package, licence in ROW.findall(page)]


def test_the_page_of_dependencies_is_what_pyproject_names() -> None:
    named = [(extra, str(r)) for extra, wanted in declared().items() for r in wanted]
    assert sorted((extra, package) for extra, package, _ in documented()) == sorted(named)


def test_the_page_of_dependencies_tells_the_licences_of_the_packages() -> None:
    for _, package, licence in documented():
        assert licence_of(distribution(Requirement(package).name)) == licence, package


def test_all_that_is_installed_with_the_library_may_be_sold_with_it() -> None:
    packages, missing = installed(r for wanted in declared().values() for r in wanted)
    assert missing == []
    assert len(packages) > 30
    assert licences(packages) == []


@pytest.mark.parametrize(
    "licence",
    [
        "",
        "GPL-3.0-only",
        "MIT AND GPL-3.0-only",
        "GNU Affero General Public License v3",
        "Other/Proprietary License",
        "MIT AND (GPL-2.0-only OR GPL-3.0-only)",
        "(MIT OR Apache-2.0) AND AGPL-3.0-only",
        "MIT OR GPL-2.0-only AND Elastic-2.0",
    ],
)
def test_a_licence_outside_the_list_is_refused(licence: str) -> None:
    assert not is_allowed(licence)


def test_of_licences_to_choose_from_one_is_enough() -> None:
    assert is_allowed("MIT")
    assert is_allowed("GPL-2.0-only OR MIT")
    assert is_allowed("Apache-2.0 AND CNRI-Python")


def test_a_known_vulnerability_is_told_with_the_version_that_mends_it() -> None:
    report = [
        {"name": "fine", "version": "1", "vulns": []},
        {"name": "unknown", "skip_reason": "not found"},
        {
            "name": "holed",
            "version": "1.0",
            "vulns": [{"id": "PYSEC-1", "fix_versions": ["1.1"], "aliases": []}],
        },
    ]
    assert vulnerabilities(report) == ["holed 1.0: PYSEC-1, mended in 1.1"]


def test_the_lock_holds_all_that_is_declared_by_hashes_and_names_no_host() -> None:
    lock = (ROOT / "requirements-dev.lock").read_text("utf-8")
    blocks = re.split(r"\n(?=[a-z0-9])", lock)
    pinned = {
        match[1]: block for block in blocks if (match := re.match(r"([a-z0-9.-]+)==\S+", block))
    }
    for wanted in declared().values():
        for requirement in wanted:
            version = re.match(r"[^=]+==(\S+)", pinned[requirement.name.lower()])
            assert version is not None
            assert requirement.specifier.contains(version[1], prereleases=True), requirement
    assert all("--hash=sha256:" in block for block in pinned.values())
    assert not re.search(r"index-url|find-links|://", lock)
