"""Metrics for Prometheus, by its own client; with several workers through files that they share.

Instruments are of the process, as the client wants it: all stacks share them, told apart by the
label `deployment`.
"""

import os
import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import prometheus_client as client
from prometheus_client import multiprocess
from prometheus_client.exposition import choose_encoder

from inf_middleware.observers.catalogue import CATALOGUE, Metric
from inf_middleware.observers.metrics import MetricsObserver

# Names the folder in which the workers of a host keep their values (prometheus_client).
FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"

_LIVE_GAUGES = re.compile(r"gauge_live\w+_(\d+)\.db")


class PrometheusObserver(MetricsObserver):
    """Measures with the client's default registry, so that an existing /metrics has all of it."""

    def __init__(self, deployment: str, *, by_account: bool) -> None:
        super().__init__(by_account=by_account)
        self._deployment = deployment
        self._instruments = _instruments()
        # The client looks a child up under a lock, by labels that it checks each time.
        self._children: dict[tuple[str, ...], Callable[[float], None]] = {}

    def add(self, metric: Metric, amount: float, *labels: str) -> None:
        """Add to a counter."""
        self._child(metric, "inc", labels)(amount)

    def record(self, metric: Metric, value: float, *labels: str) -> None:
        """Record a value of a histogram."""
        self._child(metric, "observe", labels)(value)

    def set(self, metric: Metric, value: float, *labels: str) -> None:
        """Set a gauge."""
        self._child(metric, "set", labels)(value)

    def _child(self, metric: Metric, how: str, labels: tuple[str, ...]) -> Callable[[float], None]:
        key = (metric.name, *labels)
        child = self._children.get(key)
        if child is None:
            labelled = self._instruments[metric.name].labels(self._deployment, *labels)
            child = self._children[key] = getattr(labelled, how)
        return child


@lru_cache(maxsize=1)
def _instruments() -> dict[str, Any]:
    return {metric.name: _instrument(metric) for metric in CATALOGUE}


def _instrument(metric: Metric) -> Any:
    labels = ("deployment", *metric.labels)
    if metric.kind == "counter":
        return client.Counter(metric.name, metric.help, labels)
    if metric.kind == "gauge":
        return client.Gauge(metric.name, metric.help, labels, multiprocess_mode=metric.across)
    return client.Histogram(metric.name, metric.help, labels, buckets=metric.buckets)


def exposition(accept: str) -> tuple[bytes, str]:
    """Return all metrics in the form that is accepted, and its content type; blocks on files."""
    encode, content_type = choose_encoder(accept)
    folder = os.environ.get(FOLDER_VARIABLE)
    if not folder:
        return encode(client.REGISTRY), content_type
    forget_dead_workers(Path(folder))
    registry = client.CollectorRegistry()
    multiprocess.MultiProcessCollector(registry, path=folder)  # type: ignore[no-untyped-call]
    try:
        return encode(registry), content_type
    except FileNotFoundError:  # it went after the files were listed: now they are without it
        return encode(registry), content_type


def forget_dead_workers(folder: Path) -> None:
    """Drop the gauges of workers that are gone; what they have counted stays.

    A server that can tell of an end calls `mark_process_dead` itself; uvicorn cannot.
    """
    dead: dict[int, bool] = {}
    for path in list(folder.glob("gauge_live*.db")):
        match = _LIVE_GAUGES.fullmatch(path.name)
        if match is None:
            continue
        pid = int(match[1])
        if pid not in dead:
            dead[pid] = not _is_alive(pid)
        if dead[pid]:
            path.unlink(missing_ok=True)  # another scrape may do the same just now


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it is somebody else's
    return True
