"""Runs the commands of a page; what cannot run here is held against what it names.

In `console` blocks lines that begin with `$ ` are commands and the rest is what they say, where `…`
stands for anything. In `sh` blocks every line is a command.
"""

import contextlib
import os
import re
import shlex
import socket
import subprocess
import sys
import tomllib
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

import click
from packaging.requirements import Requirement

from examples.model_app import build_app
from inf_middleware.cli import main
from inf_middleware.settings import variables
from tests.documentation.blocks import ROOT, Block
from tests.processes import Running, free_ports, wait_until
from tests.servers import serving

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]

# Where pages say that a model server listens; a small one does, unless the page starts its own.
_MODEL_SERVERS = {"8000", "11434"}

_COMMAND_TIMEOUT_S = 120.0
_LOCAL = re.compile(r"(localhost|127\.0\.0\.1):(\d+)")
_KEY = re.compile(r"sk-[\w-]{20,}")
_ASSIGNMENT = re.compile(r"([A-Z][A-Z0-9_]*)=")


class Shell:
    """A terminal in a page's folder. Ports that pages name are free ones here."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self._folder = self._at = folder
        self._cwd = folder / ".cwd"
        self._stack = stack
        self._ports: dict[str, int] = {}
        self._served: set[str] = set()
        self._exported: dict[str, str] = {}
        self._key: str | None = None

    def translated(self, text: str) -> str:
        """Put this page's own ports, and the key that was shown last, into a text."""
        text = _LOCAL.sub(lambda found: f"127.0.0.1:{self._port(found[2])}", text)
        return text.replace("sk-…", self._key) if self._key else text

    def run(self, block: Block) -> None:
        """Run the commands of a block one by one."""
        for command, said in _commands(block):
            words = shlex.split(command, comments=True)
            if words and words[0] == "export":
                for word in words[1:]:
                    _check_variable(word)
                    name, _, value = word.partition("=")
                    self._exported[name] = self.translated(value)
                continue
            while words and _ASSIGNMENT.match(words[0]):
                _check_variable(words.pop(0))
            if not words:
                continue
            check = _FORMS.get(words[0])
            if check is not None:
                check(words)
            elif block.not_run is not None:
                _check_ours(words)
            elif _is_server(words):
                self._serve(command, words)
            else:
                self._run(command, said)

    def _run(self, command: str, said: Sequence[str]) -> None:
        result = subprocess.run(
            [
                "bash",
                "-c",
                f"{self.translated(command)}\nended=$?; pwd >'{self._cwd}'; exit $ended",
            ],
            cwd=self._at,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_COMMAND_TIMEOUT_S,
        )
        self._at = Path(self._cwd.read_text("utf-8").strip())
        for key in _KEY.findall(result.stdout):
            self._key = key
        if said:
            _compare(said, result.stdout, command)
        elif result.returncode != 0:
            raise AssertionError(f"{command}: exit code {result.returncode}\n{result.stdout}")

    def _serve(self, command: str, words: Sequence[str]) -> None:
        known = "8088" if words[0] == "inf-middleware" else "8000"
        if "--port" in words:
            known = words[words.index("--port") + 1]
            command = re.sub(r"--port[ =]\d+", "", command)
        (port,) = free_ports(1)
        self._ports[known] = port
        command = f"exec {self.translated(command)} --port {port}"
        log = self._folder / f"server-{len(self._served)}.log"
        # A variable before the command is the shell's to set.
        command = re.sub(r"^exec ((?:[A-Z_]+=\S+ )+)", r"\1 exec ", command)
        server = Running(
            ["bash", "-c", f"cd {shlex.quote(str(self._at))}; {command}"],
            log,
            env=self._environment(),
        )
        self._served.add(known)
        self._stack.callback(server.stop)

        def listens() -> bool:
            if not server.is_alive:
                raise AssertionError(f"{command} ended:\n{server.said()}")
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        wait_until(listens, f"{command} listens")

    def _port(self, named: str) -> int:
        if named in _MODEL_SERVERS and named not in self._ports:
            url = self._stack.enter_context(serving(build_app()))
            self._ports[named] = int(url.rpartition(":")[2])
        elif named not in self._ports:
            (self._ports[named],) = free_ports(1)
        return self._ports[named]

    def _environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("INF_MIDDLEWARE_")}
        own = str(Path(sys.executable).parent)
        kept |= self._exported
        return {**kept, "PATH": f"{own}:{kept['PATH']}", "no_proxy": "*", "PYTHONPATH": ""}


def _commands(block: Block) -> list[tuple[str, list[str]]]:
    """Each command with what it says."""
    lines = block.text.replace("\\\n", " ").splitlines()
    if block.language == "sh":
        return [(line, []) for line in lines if line.strip()]
    found: list[tuple[str, list[str]]] = []
    for line in lines:
        if line.startswith("$ "):
            found.append((line[2:], []))
        elif found:
            found[-1][1].append(line)
        else:
            raise AssertionError("the first line of a console block is a command: $ …")
    return found


def _is_server(words: Sequence[str]) -> bool:
    return words[0] == "uvicorn" or list(words[:2]) == ["inf-middleware", "serve"]


def _compare(said: Sequence[str], output: str, command: str) -> None:
    """The lines stand in the output, in this order; `…` is anything, and runs of spaces are one."""
    rest = [" ".join(line.split()) for line in output.splitlines()]
    for line in filter(None, (" ".join(line.split()) for line in said)):
        pattern = re.compile(".*".join(re.escape(part) for part in line.split("…")))
        while rest and not pattern.fullmatch(rest[0]):
            rest.pop(0)
        if not rest:
            raise AssertionError(f"{command} does not say {line!r}, but:\n{output}")
        rest.pop(0)


def _check_variable(word: str) -> None:
    name = word.partition("=")[0]
    if name.startswith("INF_MIDDLEWARE_") and name not in variables.known():
        raise AssertionError(f"there is no variable {name}")


def _check_ours(words: Sequence[str]) -> None:
    """The command of ours exists, and has the options that are given."""
    if words[0] != "inf-middleware":
        return
    command: click.Command = main
    rest = list(words[1:])
    while isinstance(command, click.Group) and rest:
        found = command.commands.get(rest.pop(0))
        assert found is not None, f"no such command: {' '.join(words)}"
        command = found
    options = {name for option in command.params for name in option.opts}
    for word in rest:
        if word.startswith("--"):
            assert word.partition("=")[0] in options, f"no option {word}: {' '.join(words)}"


def _check_pip(words: Sequence[str]) -> None:
    assert words[1] == "install", words
    for word in words[2:]:
        if word.startswith("-"):
            continue
        wanted = Requirement(f"{PROJECT['name']}{word[1:]}" if word.startswith(".") else word)
        if wanted.name == PROJECT["name"]:
            unknown = wanted.extras - set(PROJECT["optional-dependencies"])
            assert not unknown, f"no extra {unknown}"


def _check_make(words: Sequence[str]) -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for target in words[1:]:
        if "=" not in target:
            assert re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE), target


def _check_middlewares(words: Sequence[str]) -> None:
    """What is named to a model server as ours can be imported."""
    for word in words:
        if word.startswith("inf_middleware."):
            module, _, name = word.replace(":", ".").rpartition(".")
            assert hasattr(import_module(module), name), word


def _check_nothing(words: Sequence[str]) -> None:
    """Nothing of ours is in it."""


def _check_python(words: Sequence[str]) -> None:
    """Scripts that the page names are there, and have tests of their own."""
    script = next((word for word in words[1:] if word.endswith(".py")), None)
    if script is not None:
        assert (ROOT / script).exists(), script
    else:
        assert words[1] == "-m", words


# What is not run here, but in other tests, or needs a network or another project's server.
_FORMS: dict[str, Callable[[Sequence[str]], None]] = {
    "pip": _check_pip,
    "make": _check_make,
    "python": _check_python,
    "vllm": _check_middlewares,
    "transformers": _check_middlewares,
    "ollama": _check_nothing,
    "git": _check_nothing,
}
