"""One page of headless Chromium, told what to do and watched over its debugging pipe."""

import base64
import contextlib
import itertools
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.browser import _FLAGS, chromium

# A cold start on a busy machine of two cores took 6 s, and others may be busier.
_TIMEOUT_S = 90.0

# Puts the two ends of the pipe where Chromium looks for them.
_AS_3_AND_4 = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4);"
    " os.execv(sys.argv[3], sys.argv[3:])"
)


class Page:
    """A page: what it logs and asks for is kept in `logged` and `asked`.

    `password` is what it gives where it is asked for one, as a person would; None gives none.
    """

    def __init__(self, to: int, of: int) -> None:
        self.password: str | None = None
        self.logged: list[str] = []
        self.asked: list[str] = []
        self._gave: set[str] = set()
        self._to = to
        self._numbers = itertools.count(1)
        self._answers: dict[int, queue.Queue[dict[str, Any]]] = {}
        self._loaded: queue.Queue[None] = queue.Queue()
        self._session: str | None = None
        self._reader = threading.Thread(target=self._read, args=(of,), daemon=True)
        self._reader.start()
        target = self.do("Target.createTarget", url="about:blank")["targetId"]
        attached = self.do("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.do(f"{domain}.enable")
        self.do("Fetch.enable", handleAuthRequests=True)

    def do(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command, and wait for its answer."""
        number = self._send(method, params)
        answer = self._answers[number].get(timeout=_TIMEOUT_S)
        del self._answers[number]
        assert "error" not in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    def show(
        self, url: str, *, width: int, height: int = 900, dark: bool = False, language: str = "en"
    ) -> None:
        """Load a page in a window of a size, in a scheme of colours and a language."""
        self.do(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.do("Emulation.setEmulatedMedia", features=[scheme])
        agent = self.run("navigator.userAgent")
        self.do("Emulation.setUserAgentOverride", userAgent=agent, acceptLanguage=language)
        while not self._loaded.empty():
            self._loaded.get()
        self.do("Page.navigate", url=url)
        self._loaded.get(timeout=_TIMEOUT_S)

    def run(self, script: str) -> Any:
        """Return what an expression is in the page; a promise is waited for."""
        told = self.do("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    def picture(self) -> bytes:
        """Return the whole page as PNG."""
        height = self.run("document.documentElement.scrollHeight")
        width = self.run("window.innerWidth")
        self.do(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        size = self.do("Page.getLayoutMetrics")["cssContentSize"]
        clip = {**{name: size[name] for name in ("x", "y", "width", "height")}, "scale": 1}
        taken = self.do("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        return base64.b64decode(taken["data"])

    def _send(self, method: str, params: dict[str, Any]) -> int:
        number = next(self._numbers)
        self._answers[number] = queue.Queue()
        command = {"id": number, "method": method, "params": params}
        if self._session is not None:
            command["sessionId"] = self._session
        os.write(self._to, json.dumps(command).encode() + b"\0")
        return number

    def _read(self, of: int) -> None:
        rest = b""
        while piece := os.read(of, 65536):
            *messages, rest = (rest + piece).split(b"\0")
            for message in messages:
                self._take(json.loads(message))

    def _take(self, message: dict[str, Any]) -> None:
        if "id" in message:
            if message["id"] in self._answers:
                self._answers[message["id"]].put(message)
            return
        kind, told = message["method"], message.get("params", {})
        if kind == "Page.loadEventFired":
            self._loaded.put(None)
        elif kind == "Network.requestWillBeSent":
            self.asked.append(told["request"]["url"])
        elif kind == "Log.entryAdded":
            self.logged.append(told["entry"]["text"])
        elif kind in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown"):
            self.logged.append(str(told))
        elif kind == "Fetch.requestPaused":
            self._send("Fetch.continueRequest", {"requestId": told["requestId"]})
        elif kind == "Fetch.authRequired":
            gives = {"response": "CancelAuth"}
            # Once: who has given a wrong one gives up.
            if self.password is not None and told["requestId"] not in self._gave:
                self._gave.add(told["requestId"])
                gives = {
                    "response": "ProvideCredentials",
                    "username": "key",
                    "password": self.password,
                }
            answer = {"requestId": told["requestId"], "authChallengeResponse": gives}
            self._send("Fetch.continueWithAuth", answer)


@contextlib.contextmanager
def a_page(profile: Path) -> Iterator[Page]:
    """Start a browser with a page."""
    its_in, our_out = os.pipe()
    our_in, its_out = os.pipe()
    command = [chromium(), *_FLAGS, "--remote-debugging-pipe", f"--user-data-dir={profile}"]
    process = subprocess.Popen(
        [sys.executable, "-c", _AS_3_AND_4, str(its_in), str(its_out), *command],
        pass_fds=(its_in, its_out),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    os.close(its_in)
    os.close(its_out)
    page = None
    try:
        page = Page(our_out, our_in)
        yield page
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(our_out)
        if page is not None:
            page._reader.join(_TIMEOUT_S)
        os.close(our_in)
