"""The example of prepaid accounts, run as a user runs it."""

import re
import subprocess
import sys
from pathlib import Path

from tests.kit import records_of

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "prepaid.py"


def test_money_first_then_a_cut_then_a_higher_level_while_it_runs(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    command = [sys.executable, str(EXAMPLE), "--ledger", f"sqlite:///{path}"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    shown = ran.stdout
    assert "402 insufficient_balance: The balance does not cover this request: 0 CNY" in shown
    assert "finish_reason=length" in shown
    assert "the ledger says Tier1" in shown
    assert "the server allows 20 requests per minute" in shown
    assert set(re.findall(r"held (\d+)", shown)) == {"0"}
    usage = [record for record in records_of(path) if record["kind"] == "usage"]
    assert [call["outcome"] for call in usage[:2]] == ["complete", "balance_exhausted"]
    assert usage[0]["tier"] == "Free"
    assert usage[-1]["tier"] == "Tier1"
