"""Runs the code of one page, in order, in a folder of its own."""

import ast
import asyncio
import contextlib
import inspect
import json
import os
import re
import textwrap
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import yaml
from fastapi import FastAPI
from starlette.requests import HTTPConnection

import inf_middleware
from inf_middleware.accounts.toml import TomlAccounts
from inf_middleware.domain.prices import Prices
from inf_middleware.domain.tiers import Tiers
from inf_middleware.settings import DEFAULTS, Sources
from tests.apps import completion, usage_of
from tests.documentation.blocks import Block
from tests.documentation.commands import Shell
from tests.servers import serving

_CHAT = {"model": "inf-chat-v1", "messages": [{"role": "user", "content": "Hello"}]}
_REQUEST_TIMEOUT_S = 60.0
_SERVER_ERROR = 500


class Page:
    """The blocks of a page share names, files, servers and the key that was shown last."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self.folder = folder
        self.shell = Shell(folder, stack)
        self.names: dict[str, Any] = {"__name__": "page"}

    def run(self, blocks: Sequence[Block]) -> None:
        """Write the files that the page shows, and run every block, in order."""
        for block in blocks:
            try:
                if block.title is not None:
                    path = self.folder / block.title
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_text(self.shell.translated(block.text), "utf-8")
                self._run(block)
            except Exception as error:
                raise AssertionError(f"{block.where}: {type(error).__name__}: {error}") from error

    def _run(self, block: Block) -> None:
        match block.language:
            case "python":
                self._python(block)
            case "toml":
                self._toml(block)
            case "json":
                json.loads(block.text)
            case "yaml":
                list(yaml.safe_load_all(block.text))
            case "console" | "sh":
                self.shell.run(block)
            case "text" | "file":  # drawings, and what programs say
                pass
            case other:
                raise AssertionError(
                    f"nobody knows how to run {other or 'a block without a language'!r}; use"
                    " python, toml, json, yaml, console, sh, or text for what is no code"
                )

    def _python(self, block: Block) -> None:
        text = textwrap.dedent(block.text)
        if block.not_run is not None:
            _run_imports(ast.parse(text, block.where))
            return
        self.names |= _usual_names()
        given = self.names["app"]
        code = compile(self.shell.translated(text), block.where, "exec", flags=_TOP_LEVEL_AWAIT)
        result = eval(code, self.names)  # noqa: S307 - the page's own code
        if inspect.isawaitable(result):
            asyncio.run(_all_of(result))
        app = self.names["app"]
        if app is not given or getattr(app, "user_middleware", None):
            _answers(app)

    def _toml(self, block: Block) -> None:
        if block.title is None:  # an excerpt of the settings: its names and kinds are right
            excerpt = self.folder / ".excerpt.toml"
            excerpt.write_text(block.text, "utf-8")
            Sources(excerpt)
            return
        name = Path(block.title).name
        path = self.folder / block.title
        if name == "accounts.toml":
            TomlAccounts(path).check_levels(Tiers.default())
        elif name == "tiers.toml":
            Tiers.from_toml(path.read_text("utf-8"), source=block.title)
        elif name == "prices.toml":
            Prices.from_toml(path.read_text("utf-8"), source=block.title)
        elif re.fullmatch(r"inf[\w-]*\.toml", name):
            sources = Sources(path)
            for option in DEFAULTS:
                sources.setting(option)
        else:
            tomllib.loads(block.text)


_TOP_LEVEL_AWAIT = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT


def _usual_names() -> dict[str, Any]:
    """What pages need not repeat: our public names, an app that serves a model, and a sink."""
    app = FastAPI()

    @app.post("/v1/chat/completions")
    async def chat() -> dict[str, Any]:
        return completion(usage=usage_of(9, 3))

    async def send(events: Sequence[inf_middleware.BillingEvent]) -> None:
        """Take what is billed."""

    public = {name: getattr(inf_middleware, name) for name in inf_middleware.__all__}
    return {
        **public,
        "FastAPI": FastAPI,
        "HTTPConnection": HTTPConnection,
        "app": app,
        "send": send,
    }


async def _all_of(awaitable: Any) -> None:
    await awaitable


def _run_imports(tree: ast.AST) -> None:
    """Of a block that cannot run, at least all that it imports from us is there."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("inf_middleware"):
            exec(compile(ast.Module([node], []), "imports", "exec"), {})  # noqa: S102


def _answers(app: Any) -> None:
    """The app is built, and answers a request: it may refuse it, but it does not fail."""
    with serving(app) as url, httpx.Client(trust_env=False, timeout=_REQUEST_TIMEOUT_S) as client:
        answer = client.post(f"{url}/v1/chat/completions", json=_CHAT)
    if answer.status_code >= _SERVER_ERROR:
        raise AssertionError(f"the app answered {answer.status_code}: {answer.text[:500]}")


@contextlib.contextmanager
def working_in(folder: Path) -> Any:
    """Pages name files relative to where they are run."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
