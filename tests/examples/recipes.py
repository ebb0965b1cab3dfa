"""What the tests of recipes share: a recipe by its own command, and the requests of its clients."""

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

from tests.processes import Running, free_ports, wait_until

EXAMPLES = Path(__file__).parent.parent.parent / "examples"

# Servers that import a machine-learning library or start processes of their own, on a busy machine.
START_TIMEOUT_S = 120.0

MESSAGES = [{"role": "user", "content": "Tell me about tea."}]


class Recipe:
    """A running recipe."""

    def __init__(self, url: str, server: Running) -> None:
        self.url = url
        self.server = server

    def post(
        self,
        key: str | None,
        path: str = "/v1/chat/completions",
        *,
        headers: Mapping[str, str] | None = None,
        **body: Any,
    ) -> httpx.Response:
        """Send one request, over a connection of its own: any process of the server may take it."""
        given = dict(headers or {})
        if key is not None:
            given["authorization"] = f"Bearer {key}"
        asked = {"model": "inf-chat-v1", "messages": MESSAGES, **body}
        return httpx.post(self.url + path, json=asked, headers=given, timeout=120, trust_env=False)

    def preflight(self, origin: str = "https://chat.example") -> httpx.Response:
        """Send what a browser asks before a request of another origin."""
        headers = {
            "origin": origin,
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization, content-type",
        }
        return httpx.options(
            f"{self.url}/v1/chat/completions", headers=headers, timeout=120, trust_env=False
        )


@contextlib.contextmanager
def running(
    command: Sequence[str], folder: Path, *, ready: str = "/v1/models", **env: str
) -> Iterator[Recipe]:
    """Run a recipe by its command, `{port}` in it a free one, until it answers at a path."""
    (port,) = free_ports(1)
    told = [sys.executable, *(part.format(port=port) for part in command)]
    server = Running(told, folder / "out.txt", env=env)
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        assert server.is_alive, server.said()
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(url + ready, timeout=10, trust_env=False).status_code < 500
        return False

    try:
        wait_until(answers, "the recipe's server answers", timeout_s=START_TIMEOUT_S)
        yield Recipe(url, server)
    finally:
        server.stop()


def events_of(answer: httpx.Response) -> list[dict[str, Any]]:
    """The JSON of a stream's events."""
    told = (line.removeprefix("data: ") for line in answer.text.splitlines() if "data: {" in line)
    return [json.loads(event) for event in told]


def texts_of(answer: httpx.Response) -> str:
    """The text of a stream's events."""
    choices = (choice for event in events_of(answer) for choice in event["choices"])
    return "".join(choice["delta"].get("content") or "" for choice in choices)
