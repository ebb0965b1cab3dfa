"""What all tests of the routes have."""

import uuid

import pytest


@pytest.fixture(autouse=True)
def _limits_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Count each test for itself: stacks share the memory of a process until they are collected."""
    monkeypatch.setenv("INF_MIDDLEWARE_DEPLOYMENT", f"test-{uuid.uuid4().hex[:8]}")
