"""What the package offers is what can be imported from it, and only what is used is imported."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import inf_middleware

STUB = Path(inf_middleware.__file__).with_suffix(".pyi")


def test_all_is_sorted_and_importable() -> None:
    assert inf_middleware.__all__ == sorted(inf_middleware.__all__)
    for name in inf_middleware.__all__:
        assert hasattr(inf_middleware, name)
    assert set(inf_middleware.__all__) <= set(dir(inf_middleware))


def test_public_classes_and_functions_say_what_they_are() -> None:
    for name in inf_middleware.__all__:
        thing = getattr(inf_middleware, name)
        assert thing.__doc__, name


def test_type_checkers_see_each_name_where_it_is_imported_from() -> None:
    """The stub imports from the very modules that the facade imports from."""
    seen = {
        alias.name: node.module
        for node in ast.parse(STUB.read_text("utf-8")).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    homes = vars(inf_middleware)["_HOMES"]
    assert seen == {name: f"inf_middleware.{home}" for name, home in homes.items()}
    assert sorted(seen) == inf_middleware.__all__
    for name in seen:
        assert getattr(inf_middleware, name).__module__.startswith("inf_middleware.")


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Gatter'"):
        _ = inf_middleware.Gatter


# Beside these: what a model server has loaded already (asyncio, anyio, starlette), and msgspec.
HEAVY = {"asyncpg", "click", "fastapi", "httpx", "jwt", "limits", "redis", "tokenizers", "uvicorn"}


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import inf_middleware", HEAVY | {"apsw", "asyncio", "msgspec", "starlette", "tiktoken"}),
        ("from inf_middleware import CostLedger, Gate, TierLimiter, TokenMeter", HEAVY),
    ],
)
def test_heavy_packages_wait_until_they_are_needed(statement: str, absent: set[str]) -> None:
    told = subprocess.run(
        [sys.executable, "-c", f"{statement}\nimport sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert absent & set(told.stdout.split()) == set()
