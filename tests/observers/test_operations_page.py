"""The pages and rules say what is: every metric, every field of a line, every alert its runbook."""

import json
import logging
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from inf_middleware.domain.observations import RefusedCall, SettledCall
from inf_middleware.domain.usage import Usage
from inf_middleware.observers.catalogue import CATALOGUE, Metric
from inf_middleware.observers.logs import CallLog

ROOT = Path(__file__).parents[2]
METRICS = (ROOT / "docs" / "metrics.md").read_text("utf-8")
LOGS = (ROOT / "docs" / "logs.md").read_text("utf-8")
OPERATIONS = (ROOT / "docs" / "operations.md").read_text("utf-8")
RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((ROOT / "examples" / "prometheus-alerts.yml").read_text())["groups"]
    for rule in group["rules"]
]
SERIES = {
    "counter": ("_total",),
    "histogram": ("_bucket", "_count", "_sum"),
    "gauge": ("",),
}


def series_of(metric: Metric) -> set[str]:
    return {metric.name + end for end in SERIES[metric.kind]}


def test_the_page_tells_every_metric_by_both_names_with_its_labels() -> None:
    for metric in CATALOGUE:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        row = f"| `{metric.name}` | `{metric.otel}` | {metric.kind} | {labels} | {metric.help} |"
        assert row in METRICS


@pytest.mark.parametrize("rule", RULES, ids=[rule["alert"] for rule in RULES])
def test_an_alert_asks_for_series_and_labels_that_there_are(rule: dict[str, Any]) -> None:
    known = {name: metric for metric in CATALOGUE for name in series_of(metric)}
    asked = re.findall(r"\b(inf_middleware_\w+)(?:\{([^}]*)\})?", rule["expr"])
    assert asked
    metrics = [known[name] for name, _ in asked]
    for metric, (_, selected) in zip(metrics, asked, strict=True):
        assert set(re.findall(r"(\w+)=", selected)) <= {*metric.labels, "deployment"}
    of_scrape = {"deployment", "instance", "le"}
    for labels in re.findall(r"by \(([^)]*)\)", rule["expr"]):
        for label in re.findall(r"\w+", labels):
            assert label in of_scrape or all(label in metric.labels for metric in metrics), label


@pytest.mark.parametrize("rule", RULES, ids=[rule["alert"] for rule in RULES])
def test_an_alert_says_what_it_means_and_where_to_read_what_to_do(rule: dict[str, Any]) -> None:
    name = rule["alert"]
    assert rule["labels"]["severity"] in ("page", "ticket")
    assert rule["annotations"]["summary"]
    assert rule["annotations"]["runbook"] == f"docs/operations.md#{name.lower()}"
    runbook = re.search(rf"^### {name}\n\n(.+?)(?=\n### |\Z)", OPERATIONS, re.DOTALL | re.MULTILINE)
    assert runbook is not None
    assert len(runbook[1].split()) > 15


def test_every_runbook_has_its_alert() -> None:
    assert re.findall(r"^### (\w+)$", OPERATIONS, re.MULTILINE) == [rule["alert"] for rule in RULES]


def test_codes_that_alerts_ask_for_are_answered_somewhere() -> None:
    source = "".join(p.read_text("utf-8") for p in (ROOT / "src").rglob("*.py"))
    for rule in RULES:
        for values in re.findall(r'(?:code|outcome|basis)=~?"([^"]*)"', rule["expr"]):
            for value in values.split("|"):
                assert f'"{value}"' in source, value


def test_the_page_tells_every_field_of_a_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "inf_middleware.calls")
    log = CallLog()
    log.settled(
        SettledCall(
            "id", "/v1", "d", "m", "m", "a", "Free", Usage(), 0, "CNY", "complete", True, None, 0, 0
        )
    )
    log.refused(RefusedCall("id", "/v1", "d", "m", None, "a", "Free", 429, "code"))
    own = set(vars(logging.makeLogRecord({}))) | {"message", "asctime"}
    fields = {name for record in caplog.records for name in vars(record)} - own
    assert len(fields) > 15
    for field in fields:
        assert f"`{field}`" in LOGS, field


def test_the_formatter_of_the_page_writes_a_line_of_json_for_a_call() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", LOGS, re.DOTALL)
    program = f"""{block}
from inf_middleware.domain.observations import RefusedCall
from inf_middleware.observers.logs import CallLog
CallLog().refused(RefusedCall("id", "/v1", "d", "m\\n{{", None, "客户", "Free", 429, "some_code"))
"""
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    (line,) = ran.stderr.splitlines()
    told = json.loads(line)
    assert (told["logger"], told["level"]) == ("inf_middleware.calls", "INFO")
    assert (told["account"], told["model"], told["code"]) == ("客户", r"m\n{", "some_code")
