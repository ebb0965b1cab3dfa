"""The proxy's own metrics: on a path of their own, where one is given, and nowhere else."""

import httpx
import pytest

from inf_middleware.proxy import app_from
from tests.apps import JsonApp, completion, usage_of
from tests.kit import CHAT
from tests.observers.scraping import Scrape
from tests.servers import serving


def test_the_proxy_tells_its_metrics_on_a_path_only_where_that_is_asked_for(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = JsonApp(completion(usage=usage_of(5, 6)))
    with serving(model, lifespan="off") as upstream:
        monkeypatch.setenv("INF_MIDDLEWARE_UPSTREAM", upstream)
        monkeypatch.setenv("INF_MIDDLEWARE_LEDGER", f"sqlite:///{tmp_path}/l.db")
        monkeypatch.setenv("INF_MIDDLEWARE_METRICS", "prometheus")
        monkeypatch.setenv("INF_MIDDLEWARE_DEPLOYMENT", "proxied")
        with serving(app_from(), lifespan="on") as hidden:
            assert httpx.get(f"{hidden}/metrics").content == model.answer  # the upstream's own
        monkeypatch.setenv("INF_MIDDLEWARE_METRICS_PATH", "/gate/metrics")
        with serving(app_from(), lifespan="on") as told:
            assert httpx.post(f"{told}/v1/chat/completions", json=CHAT).status_code == 200
            assert httpx.get(f"{told}/metrics").content == model.answer
            found = Scrape(httpx.get(f"{told}/gate/metrics").text, "proxied")
    assert found["inf_middleware_requests_total", {"model": "inf-chat-v1"}] == 1
    assert found["inf_middleware_reservations_open"] == 0
