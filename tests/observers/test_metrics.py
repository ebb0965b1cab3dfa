"""Metrics: the same facts for Prometheus and OpenTelemetry, and few values of a label for ever."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import prometheus_client
import pytest
from opentelemetry import metrics as otel_api
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from starlette.applications import Starlette

from inf_middleware import (
    Account,
    BillingEvent,
    ConfigError,
    CostLedger,
    Gate,
    Tier,
    TierLimiter,
    TokenMeter,
    metrics_app,
)
from inf_middleware.observers.catalogue import CATALOGUE
from inf_middleware.observers.metrics import ACCOUNTS_MAX, OTHER, VALUES_MAX, Bounded
from inf_middleware.observing import sample_all
from inf_middleware.ports import Rejected
from tests.apps import JsonApp, StreamApp, completion, delta, event, usage_chunk, usage_of
from tests.driver import post, scope_of
from tests.kit import CHAT, STREAM, Closing, House, Opaque
from tests.observers.scraping import Scrape

MODEL = JsonApp(completion(usage=usage_of(5, 6)))
TEXT = [event(delta("Hel")), event(delta("lo")), event(usage_chunk(3, 2)), event("[DONE]")]

# One provider for all tests of a process: the API takes no second one.
READER = InMemoryMetricReader()
otel_api.set_meter_provider(MeterProvider([READER]))

numbers = iter(range(1_000_000))


@pytest.fixture
def deployment() -> str:
    """A name that no other test counts under: instruments are of the process."""
    return f"d{next(numbers)}"


async def get(app: Any, path: str, method: str = "GET", **headers: str) -> tuple[int, dict, bytes]:
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await app(scope_of(path, method=method, headers=list(headers.items())), receive, send)
    return sent[0]["status"], dict(sent[0]["headers"]), b"".join(m.get("body", b"") for m in sent)


async def scrape(deployment: str) -> Scrape:
    status, headers, body = await get(metrics_app(), "/")
    assert status == 200
    assert headers[b"content-type"].startswith(b"text/plain")
    return Scrape(body.decode(), deployment)


def test_what_calls_came_to_is_counted_by_endpoint_model_level_and_outcome(
    tmp_path: Path, deployment: str
) -> None:
    house = House(MODEL, tmp_path, metrics=["prometheus"], deployment=deployment)

    async def go() -> Scrape:
        for _ in range(5):
            await post(house.app, CHAT, key="sk-free")
        await post(house.app, CHAT, key="sk-wrong")
        found = await scrape(deployment)
        await house.close()
        return found

    found = asyncio.run(go())
    served = {"endpoint": "openai.chat", "model": "inf-chat-v1", "tier": "Free"}
    assert found["inf_middleware_requests_total", {**served, "outcome": "complete"}] == 4
    assert found["inf_middleware_requests_total", {"basis": "reported"}] == 4
    assert found["inf_middleware_tokens_total", {"type": "input", "tier": "Free"}] == 20
    assert found["inf_middleware_tokens_total", {"type": "output"}] == 24
    assert found["inf_middleware_cost_total", {"currency": "CNY"}] == pytest.approx(44 * 10 / 1e6)
    limit = {"code": "requests_limit_exceeded", "tier": "Free"}
    assert found["inf_middleware_refusals_total", limit] == 1
    assert found["inf_middleware_refusals_total", {"code": "invalid_api_key", "tier": "none"}] == 1
    assert found["inf_middleware_request_duration_seconds_count"] == 4
    assert found["inf_middleware_store_seconds_count", {"operation": "admit"}] == 5
    assert found["inf_middleware_store_seconds_count", {"operation": "settle"}] == 4
    assert found["inf_middleware_ledger_seconds_count", {"operation": "settle"}] == 4
    assert found["inf_middleware_unrecorded_total"] == 0


def test_the_parts_of_usage_are_told_by_type(tmp_path: Path, deployment: str) -> None:
    usage = {
        **usage_of(100, 50),
        "prompt_tokens_details": {"cached_tokens": 30},
        "completion_tokens_details": {"reasoning_tokens": 20},
    }
    app = JsonApp(completion(usage=usage))
    house = House(app, tmp_path, metrics=["prometheus"], deployment=deployment)

    async def go() -> Scrape:
        await post(house.app, CHAT, key="sk-one")
        found = await scrape(deployment)
        await house.close()
        return found

    found = asyncio.run(go())
    told = {
        kind: found["inf_middleware_tokens_total", {"type": kind}]
        for kind in ("input", "output", "cached_input", "reasoning")
    }
    assert told == {"input": 100, "output": 50, "cached_input": 30, "reasoning": 20}


def test_streams_tell_their_first_token_and_the_time_of_the_others(
    tmp_path: Path, deployment: str
) -> None:
    house = House(StreamApp(TEXT), tmp_path, metrics=["prometheus"], deployment=deployment)

    async def go() -> Scrape:
        await post(house.app, STREAM, key="sk-one")
        found = await scrape(deployment)
        await house.close()
        return found

    found = asyncio.run(go())
    assert found["inf_middleware_time_to_first_token_seconds_count"] == 1
    assert found["inf_middleware_time_per_output_token_seconds_count"] == 1


def test_nothing_is_done_per_chunk(tmp_path: Path, deployment: str) -> None:
    watching = ("/call/observing.py", "/observers/", "/prometheus_client/", "/opentelemetry/")

    def calls_for(chunks: int) -> int:
        app = StreamApp([event(delta("word ")) for _ in range(chunks)] + TEXT[2:])
        meter = TokenMeter(app, metrics=["prometheus", "otel"], deployment=deployment)
        calls = 0

        def count(frame: Any, kind: str, _: Any) -> None:
            nonlocal calls
            if kind == "call" and any(part in frame.f_code.co_filename for part in watching):
                calls += 1

        async def go() -> None:
            await post(meter, STREAM)  # what is made at first use is made
            sys.setprofile(count)
            try:
                await post(meter, STREAM)
            finally:
                sys.setprofile(None)

        asyncio.run(go())
        return calls

    few, many = calls_for(3), calls_for(300)
    assert few == many > 0


def test_requests_in_progress_and_what_they_reserve_are_seen_by_a_scrape(
    tmp_path: Path, deployment: str
) -> None:
    inside = asyncio.Event()
    go_on = asyncio.Event()

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        inside.set()
        await go_on.wait()
        await MODEL(scope, receive, send)

    house = House(slow, tmp_path, metrics=["prometheus"], deployment=deployment)

    async def go() -> tuple[Scrape, Scrape]:
        call = asyncio.create_task(post(house.app, {**CHAT, "max_tokens": 100}, key="sk-one"))
        await inside.wait()
        during = await scrape(deployment)
        go_on.set()
        await call
        after = await scrape(deployment)
        await house.close()
        return during, after

    during, after = asyncio.run(go())
    assert during["inf_middleware_reservations_open"] == 1
    assert 100 < during["inf_middleware_reserved_tokens"] < 150
    assert after["inf_middleware_reservations_open"] == 0
    assert after["inf_middleware_reserved_tokens"] == 0


def test_stacks_of_one_deployment_are_told_together(tmp_path: Path, deployment: str) -> None:
    go_on = asyncio.Event()

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await go_on.wait()
        await MODEL(scope, receive, send)

    def stack() -> Any:
        return Gate(
            slow,
            accounts={"sk": "tier5"},
            ledger=f"sqlite:///{tmp_path}/l.db",
            sinks={"file": f"jsonl:{tmp_path}/e.jsonl"},
            metrics=["prometheus"],
            deployment=deployment,
        )

    async def until(running: int) -> Scrape:
        for _ in range(600):
            found = await scrape(deployment)
            if found["inf_middleware_reservations_open"] == running:
                return found
            await asyncio.sleep(0.05)
        raise AssertionError(found["inf_middleware_reservations_open"])

    async def go() -> tuple[Scrape, Scrape]:
        one, two = stack(), stack()
        calls = [asyncio.create_task(post(app, CHAT, key="sk")) for app in (one, one, one, two)]
        during = await until(4)
        go_on.set()
        await asyncio.gather(*calls)
        return during, await until(0)

    during, after = asyncio.run(go())
    assert during["inf_middleware_reserved_tokens"] > 4 * 100
    assert during["inf_middleware_relay"] <= 1  # they share one
    assert after["inf_middleware_reserved_tokens"] == 0


@pytest.mark.parametrize("down", [0, 1])
def test_what_waits_for_sinks_of_one_name_is_told_together_though_their_ledgers_differ(
    down: int, tmp_path: Path, deployment: str
) -> None:
    def sink(number: int) -> Any:
        async def send(events: Sequence[BillingEvent]) -> None:
            if number == down:
                raise OSError("away")

        return send

    async def go() -> list[Scrape]:
        stacks = [
            CostLedger(
                Closing(MODEL),
                ledger=f"sqlite:///{tmp_path}/{number}.db",
                sinks={"billing": sink(number)},
                metrics=["prometheus"],
                deployment=deployment,
            )
            for number in range(2)
        ]
        for stack in stacks:
            for _ in range(3):
                await post(stack, CHAT)
        for _ in range(600):
            found = await scrape(deployment)
            if (
                found["inf_middleware_sink_failures_total"] >= 1
                and found["inf_middleware_sink_events_total", {"result": "taken"}] == 3
            ):
                break
            await asyncio.sleep(0.05)
        return [await scrape(deployment) for _ in range(4)]

    for found in asyncio.run(go()):
        assert found["inf_middleware_outbox_events", {"sink": "billing"}] == 3
        assert found["inf_middleware_outbox_oldest_seconds", {"sink": "billing"}] > 0
        assert found["inf_middleware_sink_events_total", {"result": "taken"}] == 3


def test_a_lease_that_was_lost_is_counted(tmp_path: Path, deployment: str) -> None:
    house: Any = None

    async def paused(scope: Any, receive: Any, send: Any) -> None:
        house.clock.now += 60  # nobody has renewed it
        leases = house.app._stack.worker._parts.limiting.leases
        (of_loop,) = leases._of_loops.values()
        await leases._renew(of_loop)
        await MODEL(scope, receive, send)

    house = House(paused, tmp_path, metrics=["prometheus"], deployment=deployment)

    async def go() -> Scrape:
        await post(house.app, CHAT, key="sk-one")
        found = await scrape(deployment)
        await house.close()
        return found

    assert asyncio.run(go())["inf_middleware_leases_lost_total"] == 1


def test_what_waits_for_a_sink_is_told_with_its_age_and_what_came_of_the_rest(
    tmp_path: Path, deployment: str
) -> None:
    refuse: list[str] = ["down"]
    first: list[str] = []
    offered = asyncio.Event()

    async def sink(events: Sequence[BillingEvent]) -> None:
        first.append(events[0].id)
        offered.set()
        if refuse == ["down"]:
            raise OSError("the far end is down")
        raise Rejected({first[0]: "unknown customer"})

    gate = Gate(
        MODEL,
        ledger=f"sqlite:///{tmp_path}/l.db",
        sinks={"billing": sink},
        accounts={"sk": "tier5"},
        metrics=["prometheus"],
        deployment=deployment,
    )

    async def until(seen: Any) -> Scrape:
        for _ in range(600):
            found = await scrape(deployment)
            if seen(found):
                return found
            await asyncio.sleep(0.05)
        raise AssertionError("it was not seen in time")

    async def go() -> tuple[Scrape, Scrape]:
        for _ in range(3):
            await post(gate, CHAT, key="sk")
        await asyncio.wait_for(offered.wait(), 30)
        down = await until(
            lambda found: (
                found["inf_middleware_sink_failures_total"] >= 1
                and found["inf_middleware_outbox_events"] == 3
            )
        )
        refuse[:] = ["picky"]
        up = await until(lambda found: found["inf_middleware_outbox_events"] == 0)
        for _ in range(3):  # what was counted is not counted again by the next look
            up = await scrape(deployment)
        return down, up

    down, up = asyncio.run(go())
    assert down["inf_middleware_relay"] == 1
    assert down["inf_middleware_outbox_oldest_seconds", {"sink": "billing"}] > 0
    assert up["inf_middleware_outbox_oldest_seconds"] == 0
    assert up["inf_middleware_sink_events_total", {"result": "taken"}] == 2
    assert up["inf_middleware_sink_events_total", {"result": "rejected"}] == 1
    assert up["inf_middleware_sink_lag_seconds", {"sink": "billing"}] > 0


def test_what_is_served_and_could_not_be_recorded_is_counted(
    tmp_path: Path, deployment: str
) -> None:
    class Full:
        async def settle(self, event: BillingEvent) -> None:
            from inf_middleware.domain.errors import LedgerUnavailable

            raise LedgerUnavailable("disk full")

        async def aclose(self) -> None: ...

    gate = CostLedger(
        StreamApp(TEXT),
        ledger=Full(),
        on_ledger_error="refuse",
        settle_timeout_s=0,
        metrics=["prometheus"],
        deployment=deployment,
    )

    async def go() -> Scrape:
        await post(gate, STREAM)
        return await scrape(deployment)

    found = asyncio.run(go())
    assert found["inf_middleware_unrecorded_total"] == 1
    assert found["inf_middleware_ledger_seconds_count", {"result": "failed"}] == 1
    assert found["inf_middleware_ledger_away"] == 1


def test_a_caller_cannot_make_series(tmp_path: Path, deployment: str) -> None:
    house = House(
        MODEL,
        tmp_path,
        accounts=None,
        anonymous="tier5",
        metrics=["prometheus"],
        deployment=deployment,
    )

    async def go() -> tuple[Scrape, Scrape]:
        await post(house.app, {**CHAT, "model": "model-first"}, path="/v1/first")
        before = await scrape(deployment)
        for number in range(60):
            await post(
                house.app,
                {**CHAT, "model": f"model-{number}"},
                path=f"/v1/{number}",
                key=f"key-{number}",
                client=(f"10.0.0.{number}", 1),
            )
        found = await scrape(deployment)
        await house.close()
        return before, found

    before, found = asyncio.run(go())
    # The first delivery comes when it likes.
    new = found.samples.keys() - before.samples.keys()
    assert {name for name, _ in new} <= {"inf_middleware_sink_lag_seconds"}
    assert found["inf_middleware_requests_total"] == 61
    assert found.values("model") == {OTHER}
    assert found.values("endpoint") == {"unknown"}


def test_models_that_are_served_by_name_are_labels_and_patterns_are_one(
    tmp_path: Path, deployment: str
) -> None:
    prices = tmp_path / "prices.toml"
    prices.write_text('[[price]]\nmodel = "Qwen/*"\ninput = "1"\noutput = "2"\n')
    gate = Gate(
        MODEL,
        prices=prices,
        ledger=f"sqlite:///{tmp_path}/l.db",
        accounts={"sk": "tier5"},
        metrics=["prometheus"],
        deployment=deployment,
    )
    named = Gate(
        MODEL,
        prices=prices,
        serves=["Qwen/Qwen3-8B"],
        ledger=f"sqlite:///{tmp_path}/n.db",
        accounts={"sk": "tier5"},
        metrics=["prometheus"],
        deployment=f"{deployment}n",
    )

    async def go() -> tuple[Scrape, Scrape]:
        for number in range(5):
            await post(gate, {**CHAT, "model": f"Qwen/{number}"}, key="sk")
        await post(named, {**CHAT, "model": "Qwen/Qwen3-8B"}, key="sk")
        return await scrape(deployment), await scrape(f"{deployment}n")

    patterns, names = asyncio.run(go())
    assert patterns.values("model") == {"Qwen/*"}
    assert names.values("model") == {"Qwen/Qwen3-8B"}


def test_levels_beyond_the_bound_are_told_together(tmp_path: Path, deployment: str) -> None:
    async def accounts(key: str | None, connection: Any) -> Account:
        number = next(numbers)
        return Account(f"a{number}", tier=Tier(f"tier-{number}", 9, 900, 90_000))

    app = TierLimiter(
        MODEL, accounts=accounts, accounts_ttl_s=0, metrics=["prometheus"], deployment=deployment
    )

    async def go() -> Scrape:
        for number in range(VALUES_MAX + 10):
            await post(app, CHAT, key=f"k{number}")
        return await scrape(deployment)

    found = asyncio.run(go())
    assert len(found.values("tier")) == VALUES_MAX + 1
    assert found["inf_middleware_requests_total", {"tier": OTHER}] == 10


def test_accounts_are_told_only_where_that_is_asked_for(tmp_path: Path, deployment: str) -> None:
    def gate(name: str, by_account: bool) -> Any:
        return Gate(
            MODEL,
            ledger=f"sqlite:///{tmp_path}/{name}.db",
            accounts={"sk": Account("acme", tier="free")},
            metrics=["prometheus"],
            metrics_by_account=by_account,
            deployment=name,
        )

    async def go() -> tuple[Scrape, Scrape]:
        for name, by_account in ((f"{deployment}q", False), (f"{deployment}a", True)):
            app = gate(name, by_account)
            for _ in range(5):
                await post(app, CHAT, key="sk")
        return await scrape(f"{deployment}q"), await scrape(f"{deployment}a")

    quiet, asked = asyncio.run(go())
    assert quiet.values("account") == set()
    assert asked["inf_middleware_account_tokens_total", {"account": "acme", "type": "input"}] == 20
    limited = {"account": "acme", "code": "requests_limit_exceeded"}
    assert asked["inf_middleware_account_requests_total", limited] == 1
    assert asked["inf_middleware_account_cost_total"] == pytest.approx(44 * 10 / 1e6)


def test_values_of_a_label_are_bounded_and_printable() -> None:
    bounded = Bounded(ACCOUNTS_MAX)
    seen = {bounded.of(f"account-{number}\ud800") for number in range(ACCOUNTS_MAX + 5)}
    assert len(seen) == ACCOUNTS_MAX + 1
    assert OTHER in seen
    assert all(value.encode() for value in seen)


def test_an_inner_middleware_behind_something_opaque_is_observed(
    tmp_path: Path, deployment: str
) -> None:
    inner = CostLedger(
        MODEL,
        ledger=f"sqlite:///{tmp_path}/l.db",
        metrics=["prometheus"],
        deployment=deployment,
    )

    async def go() -> Scrape:
        await post(TierLimiter(Opaque(inner)), CHAT)
        return await scrape(deployment)

    assert asyncio.run(go())["inf_middleware_cost_total"] > 0


def test_no_metrics_are_told_where_none_are_asked_for(tmp_path: Path, deployment: str) -> None:
    house = House(MODEL, tmp_path, deployment=deployment)

    async def go() -> Scrape:
        await post(house.app, CHAT, key="sk-one")
        found = await scrape(deployment)
        await house.close()
        return found

    assert asyncio.run(go()).samples == {}


def test_metrics_stand_on_a_path_only_where_one_is_given(tmp_path: Path, deployment: str) -> None:
    def app_of(**options: Any) -> Any:
        return TierLimiter(MODEL, metrics=["prometheus"], deployment=deployment, **options)

    async def go() -> list[bytes]:
        given = app_of(metrics_path="/inf/metrics")
        await post(given, CHAT)
        return [
            (await get(given, "/inf/metrics"))[2],
            (await get(app_of(), "/inf/metrics"))[2],
            (await get(given, "/metrics"))[2],
            (await get(given, "/inf/metrics", "HEAD"))[2],
        ]

    told, hidden, other, head = asyncio.run(go())
    assert b"inf_middleware_requests_total" in told
    assert hidden == other == MODEL.answer
    assert head == b""


def test_the_mounted_app_answers_get_and_head_and_nothing_else() -> None:
    app = Starlette()
    app.mount("/metrics", metrics_app())

    async def go() -> list[int]:
        return [(await get(app, "/metrics/", how))[0] for how in ("GET", "HEAD", "DELETE")]

    assert asyncio.run(go()) == [200, 200, 405]


def test_open_metrics_are_told_to_who_accepts_them() -> None:
    _, headers, body = asyncio.run(
        get(metrics_app(), "/", accept="application/openmetrics-text; version=1.0.0")
    )
    assert headers[b"content-type"].startswith(b"application/openmetrics-text")
    assert body.endswith(b"# EOF\n")


def test_an_exporter_that_is_not_installed_is_named_with_what_to_install(tmp_path: Path) -> None:
    # In a process of its own, in which the packages cannot be found.
    program = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("prometheus_client", "opentelemetry"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
from inf_middleware import ConfigError, Gate, metrics_app
for make in (
    lambda: Gate(None, metrics=["prometheus"]),
    lambda: Gate(None, metrics=["otel"]),
    lambda: Gate(None, metrics=["prometheus"], metrics_path="/metrics"),
    metrics_app,
):
    try:
        make()
    except ConfigError as error:
        print(error)
Gate(None)
"""
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    first, second, third, fourth = ran.stdout.splitlines()
    assert first == (
        "metrics for prometheus need prometheus-client: pip install 'inf-middleware[prometheus]'"
    )
    assert second.endswith("pip install 'inf-middleware[otel]'")
    assert first == third == fourth


def otel_points(deployment: str) -> Iterator[tuple[str, str, Any]]:
    data = READER.get_metrics_data()
    assert data is not None
    for resource in data.resource_metrics:
        for scope in resource.scope_metrics:
            if scope.scope.name != "inf_middleware":
                continue  # other libraries of the process tell theirs
            for metric in scope.metrics:
                for point in metric.data.data_points:
                    if point.attributes["inf_middleware.deployment"] == deployment:
                        yield metric.name, metric.unit, point


def test_opentelemetry_is_told_the_same_by_the_names_of_its_conventions(
    tmp_path: Path, deployment: str
) -> None:
    house = House(StreamApp(TEXT), tmp_path, metrics=["otel"], deployment=deployment)
    failing = House(
        JsonApp(b"{}", status=500), tmp_path / "f", metrics=["otel"], deployment=f"{deployment}f"
    )
    (tmp_path / "f").mkdir()

    async def go() -> None:
        for _ in range(5):
            await post(house.app, STREAM, key="sk-free")
        await sample_all()
        await post(failing.app, CHAT, key="sk-one")
        await house.close()
        await failing.close()

    asyncio.run(go())
    points: dict[str, list[Any]] = {}
    for name, _, point in otel_points(deployment):
        points.setdefault(name, []).append(point)
    (duration,) = points["gen_ai.server.request.duration"]
    assert duration.count == 4
    assert duration.explicit_bounds[:3] == (0.01, 0.02, 0.04)
    assert duration.attributes["gen_ai.operation.name"] == "chat"
    assert duration.attributes["gen_ai.provider.name"] == "inf_middleware"
    assert duration.attributes["gen_ai.request.model"] == "inf-chat-v1"
    assert "error.type" not in duration.attributes
    tokens = {p.attributes["gen_ai.token.type"]: p for p in points["gen_ai.client.token.usage"]}
    assert (tokens["input"].sum, tokens["output"].sum) == (12, 8)
    assert points["gen_ai.server.time_to_first_token"][0].count == 4
    assert points["gen_ai.server.time_per_output_token"][0].count == 4
    (refusal,) = points["inf_middleware.refusals"]
    assert refusal.attributes["inf_middleware.code"] == "requests_limit_exceeded"
    assert refusal.attributes["inf_middleware.tier"] == "Free"
    (cost,) = points["inf_middleware.cost"]
    assert cost.value == pytest.approx(20 * 10 / 1e6)
    assert points["inf_middleware.reservations.open"][0].value == 0
    failed = {name: point for name, _, point in otel_points(f"{deployment}f")}
    duration = failed["gen_ai.server.request.duration"]
    assert duration.attributes["error.type"] == "upstream_error"


def test_both_exporters_at_once_hear_the_same(tmp_path: Path, deployment: str) -> None:
    house = House(MODEL, tmp_path, metrics=["prometheus", "otel"], deployment=deployment)

    async def go() -> Scrape:
        await post(house.app, CHAT, key="sk-one")
        found = await scrape(deployment)
        await house.close()
        return found

    assert asyncio.run(go())["inf_middleware_requests_total"] == 1
    told = {name: p for name, _, p in otel_points(deployment)}
    assert told["inf_middleware.requests"].value == 1


def test_names_are_unique_and_follow_the_rules_of_both() -> None:
    names = [metric.name for metric in CATALOGUE]
    assert len(set(names)) == len(names) == len({metric.otel for metric in CATALOGUE})
    for metric in CATALOGUE:
        assert metric.name.startswith("inf_middleware_")
        assert metric.otel.startswith(("inf_middleware.", "gen_ai."))
        assert not metric.name.endswith(("_total", "_count", "_sum"))
        if metric.unit == "s":
            assert metric.name.endswith("_seconds"), metric
    assert prometheus_client.REGISTRY is not None


def test_a_path_without_metrics_is_an_error_when_the_stack_is_built() -> None:
    with pytest.raises(ConfigError, match=r'add metrics = \["prometheus"\]'):
        asyncio.run(post(Gate(MODEL, metrics_path="/metrics"), CHAT))


def test_wrong_settings_are_refused_in_words() -> None:
    for options, words in (
        ({"metrics": "prometheus"}, 'must be a list of "prometheus", "otel"'),
        ({"metrics": ["statsd"]}, 'must be a list of "prometheus", "otel"'),
        ({"metrics_path": "metrics"}, 'must be a path such as "/metrics"'),
        ({"metrics_path": "/"}, 'must be a path such as "/metrics"'),
        ({"metrics_by_account": "yes"}, "must be true or false"),
    ):
        with pytest.raises(ConfigError) as caught:
            Gate(MODEL, **options)
        assert words in str(caught.value)
