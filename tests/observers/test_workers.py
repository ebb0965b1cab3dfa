"""Several workers of one server: any of them tells the metrics of all, and none of the dead."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Barrier, Thread

import httpx
import pytest
from prometheus_client import Metric
from prometheus_client.multiprocess import MultiProcessCollector

from inf_middleware.observers.prometheus import exposition, forget_dead_workers
from tests.kit import CHAT
from tests.observers.scraping import Scrape
from tests.processes import Running, free_ports, wait_until

_ROOT = Path(__file__).parents[2]
_AUTH = {"authorization": "Bearer sk"}

# Gauges of the other worker are a sample old; slow machines may need some of them.
TIMEOUT_S = 60.0


class Workers:
    """A uvicorn with two workers; each request goes to whichever takes the connection."""

    def __init__(self, folder: Path) -> None:
        (port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{port}"
        shared = folder / "prometheus"
        shared.mkdir()
        command = [sys.executable, "-m", "uvicorn", "--factory", "tests.observers.worker_app:build"]
        command += ["--port", str(port), "--workers", "2", "--no-access-log"]
        env = {
            "SUBJECT_FOLDER": str(folder),
            "PYTHONPATH": f"{_ROOT / 'src'}:{_ROOT}",
            "PROMETHEUS_MULTIPROC_DIR": str(shared),
        }
        self.process = Running(command, folder / "uvicorn.txt", env=env)

    def serves(self) -> bool:
        assert self.process.is_alive, self.process.said()
        return self.process.said().count("startup complete") >= 2 and len(self.pids()) == 2

    def pids(self) -> set[int]:
        return {int(self.get("/pid")) for _ in range(20)}

    def get(self, path: str) -> str:
        return httpx.get(self.url + path, timeout=TIMEOUT_S).raise_for_status().text

    def ask(self, path: str = "/v1/chat/completions") -> None:
        httpx.post(
            self.url + path, json={**CHAT, "max_tokens": 20}, headers=_AUTH, timeout=TIMEOUT_S
        )

    def scrape(self) -> Scrape:
        return Scrape(self.get("/metrics/"), "default")


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[Workers]:
    started = Workers(tmp_path)
    try:
        wait_until(started.serves, "two workers", timeout_s=TIMEOUT_S)
        yield started
    finally:
        (tmp_path / "go").touch()
        started.process.stop()


def test_any_worker_tells_what_all_have_done_and_holds_nothing_for_one_that_died(
    workers: Workers, tmp_path: Path
) -> None:
    for _ in range(20):
        workers.ask()
    # Whoever answers: the two together have served twenty, and one of them delivers.
    for _ in range(6):
        found = workers.scrape()
        assert found["inf_middleware_requests_total"] == 20
        assert found["inf_middleware_request_duration_seconds_count"] == 20
        assert found["inf_middleware_tokens_total", {"type": "output"}] == 120
    wait_until(
        lambda: workers.scrape()["inf_middleware_sink_events_total", {"result": "taken"}] == 20,
        "all events are delivered, and told by whoever delivers",
        timeout_s=TIMEOUT_S,
    )
    assert workers.scrape()["inf_middleware_relay"] == 1

    def ask_slowly() -> None:
        with contextlib.suppress(httpx.HTTPError):  # of the worker that is killed
            workers.ask("/v1/slow/chat/completions")

    slow = [Thread(target=ask_slowly) for _ in range(8)]
    for thread in slow:
        thread.start()
    wait_until(
        lambda: workers.scrape()["inf_middleware_reservations_open"] == 8,
        "what both hold",
        timeout_s=TIMEOUT_S,
    )
    (victim, *_) = sorted(int(path.name.split("-")[1]) for path in tmp_path.glob("waiting-*"))
    os.kill(victim, signal.SIGKILL)
    wait_until(
        lambda: workers.scrape()["inf_middleware_reservations_open"] < 8,
        "what the dead one held is gone",
        timeout_s=TIMEOUT_S,
    )
    assert not list((tmp_path / "prometheus").glob(f"gauge_live*_{victim}.db"))
    assert workers.scrape()["inf_middleware_requests_total"] == 20  # what it had counted stays
    (tmp_path / "go").touch()
    for thread in slow:
        thread.join(TIMEOUT_S)
    wait_until(
        lambda: workers.scrape()["inf_middleware_reservations_open"] == 0,
        "nothing is held any more",
        timeout_s=TIMEOUT_S,
    )


def test_scrapes_at_once_drop_what_is_of_the_dead_together(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    failures: list[Exception] = []

    def scrape(barrier: Barrier) -> None:
        barrier.wait()
        try:
            forget_dead_workers(tmp_path)
        except Exception as error:
            failures.append(error)

    for _ in range(50):
        for mode in ("all", "liveall", "livesum", "livemax", "livemin", "livemostrecent"):
            (tmp_path / f"gauge_{mode}_{gone.pid}.db").touch()
        barrier = Barrier(4)
        threads = [Thread(target=scrape, args=[barrier]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []
    assert [path.name for path in tmp_path.iterdir()] == [f"gauge_all_{gone.pid}.db"]


def test_a_file_that_goes_while_it_is_read_has_the_others_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    gone = [FileNotFoundError(2, "gone")]

    def collect(_: MultiProcessCollector) -> list[Metric]:
        if gone:
            raise gone.pop()
        return [Metric("there", "", "gauge")]

    monkeypatch.setattr(MultiProcessCollector, "collect", collect)
    body, _ = exposition("")
    assert b"there" in body
