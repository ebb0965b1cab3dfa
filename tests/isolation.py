"""Keeps what tests count apart from each other."""

import uuid

import pytest


@pytest.fixture(autouse=True)
def limits_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each test count for itself, in a deployment of its own.

    Stacks of one process share their store, also those that were dropped, until they are collected.
    """
    monkeypatch.setenv("INF_MIDDLEWARE_DEPLOYMENT", f"test-{uuid.uuid4().hex[:8]}")
