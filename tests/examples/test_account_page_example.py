"""The example of an account's page, run as a user runs it, by the commands that it prints."""

import contextlib
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import httpx

from tests.processes import Running, free_ports, wait_until

EXAMPLE = Path(__file__).parents[2] / "examples" / "account_page.py"

_TIMEOUT_S = 60.0


def test_what_it_prints_works(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    output = tmp_path / "output"
    ledger = f"sqlite:///{tmp_path}/ledger.db"
    command = [sys.executable, str(EXAMPLE), "--port", str(port), "--ledger", ledger]
    server = Running(command, output)
    try:
        url = f"http://127.0.0.1:{port}"

        def answers() -> bool:
            with contextlib.suppress(httpx.TransportError):
                return httpx.get(f"{url}/account", timeout=_TIMEOUT_S).status_code == 401
            return False

        wait_until(answers, "the example serves", timeout_s=_TIMEOUT_S)
        printed = output.read_text()
        look, use, recharge = re.findall(r"curl .*?(?=\n\n)", printed + "\n\n", re.DOTALL)
        assert said(look)["tier"]["name"] == "Tier1"
        assert said(use)["usage"]["total_tokens"] > 0
        first = said(recharge)
        assert (first["repeated"], first["account"]["tier"]) == (False, "Tier2")
        assert said(recharge)["repeated"] is True
        assert said(look)["tier"]["name"] == "Tier2"
        wait_until(  # a report is remembered for a second
            lambda: said(look)["usage"]["total"]["requests"] == 1, "usage is shown"
        )
        (key,) = re.findall(r"key: (\S+)", printed)
        page = httpx.get(
            f"{url}/account", auth=("me", key), headers={"accept": "text/html"}, timeout=_TIMEOUT_S
        )
        assert "Tier2" in page.text
    finally:
        server.stop()


def said(command: str) -> Any:
    """What curl would be told; not every machine has it."""
    url, *rest = shlex.split(command.replace("\\\n", " "))[2:]
    given = dict(zip(rest[::2], rest[1::2], strict=True))
    header, _, value = given["-H"].partition(": ")
    method, body = ("POST", given["-d"]) if "-d" in given else ("GET", None)
    answer = httpx.request(method, url, content=body, headers={header: value}, timeout=_TIMEOUT_S)
    assert answer.is_success, answer.text
    return answer.json()
