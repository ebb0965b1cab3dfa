"""Headless Chromium, installed where it is missing: what a page may see, a real browser decides."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from tests.servers import serving

_INSTALL = ["apt-get", "install", "-y", "--no-install-recommends", "chromium"]
_INSTALL_TIMEOUT_S = 300.0
_PAGE_TIMEOUT_S = 60.0  # a cold start on a busy machine of two cores took 6 s

_FLAGS = [
    "--headless",
    "--no-sandbox",  # it runs as root in containers
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

_PAGE = """<!doctype html><meta charset="utf-8"><script>
(async () => {
  let result;
  try { result = await (async () => { %s })(); } catch (error) { result = {error: String(error)}; }
  await fetch("/result", {method: "POST", body: JSON.stringify(result)});
})();
</script>"""


def chromium() -> str:
    """Return the path of Chromium, installed by apt where it is missing."""
    found = shutil.which("chromium")
    if found is None and shutil.which("apt-get") and os.geteuid() == 0:
        subprocess.run(_INSTALL, check=True, capture_output=True, timeout=_INSTALL_TIMEOUT_S)
        found = shutil.which("chromium")
    assert found, f"a browser is needed; install it with: {' '.join(_INSTALL)}"
    return found


def in_a_page(script: str, profile: Path) -> Any:
    """Run an async function's body in a page of an origin of its own; returns what it returns."""
    results: list[Any] = []
    arrived = threading.Event()

    async def page(request: Request) -> Response:
        return HTMLResponse(_PAGE % script)

    async def result(request: Request) -> Response:
        results.append(json.loads(await request.body()))
        arrived.set()
        return Response()

    app = Starlette(
        routes=[Route("/", page), Route("/result", result, methods=["POST"])],
    )
    with serving(app) as url:
        process = subprocess.Popen(
            [chromium(), *_FLAGS, f"--user-data-dir={profile}", f"{url}/"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            assert arrived.wait(_PAGE_TIMEOUT_S), "the page told nothing in time"
        finally:
            # The whole session: Chromium's own children outlive a parent that is killed.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return results[0]
