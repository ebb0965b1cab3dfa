"""What it costs a request that somebody watches: ratios to nobody, in one run.

    python -m benchmarks.observing          # about half a minute of a processor

Targets, of what a request costs a meter and a limiter around an app that answers at once: with
Prometheus at most 1.5 times that; with OpenTelemetry twice, most of which is its SDK's.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from typing import Any

from inf_middleware import TierLimiter, Tiers, TokenMeter
from inf_middleware.domain.tiers import Tier
from tests.apps import JsonApp, StreamApp, completion, delta, event, usage_chunk, usage_of
from tests.driver import post

ROUNDS = 5
CALLS = 300  # a round

PLAIN = {"model": "inf-chat-v1", "messages": [{"role": "user", "content": "Hello"}]}
STREAM = {**PLAIN, "stream": True}
CHUNKS = [event(delta("word ")) for _ in range(64)]
APPS: dict[str, tuple[Any, dict[str, Any]]] = {
    "json": (JsonApp(completion(usage=usage_of(5, 6))), PLAIN),
    "stream": (StreamApp([*CHUNKS, event(usage_chunk(5, 64)), event("[DONE]")]), STREAM),
}
WATCHED: dict[str, dict[str, Any]] = {
    "nobody": {},
    "prometheus": {"metrics": ["prometheus"]},
    "otel": {"metrics": ["otel"]},
}


def stack(app: Any, options: dict[str, Any]) -> Any:
    """A meter and a limiter that refuses nobody."""
    tiers = Tiers([Tier("bench", 1_000, 10**9, 10**9)])
    return TokenMeter(TierLimiter(app, tiers=tiers, anonymous="bench"), **options)


async def _us(app: Any, body: bytes) -> float:
    began = time.process_time()
    for _ in range(CALLS):
        await post(app, body)
    return (time.process_time() - began) / CALLS * 1e6


async def _measure() -> dict[str, float]:
    apps = {
        (kind, who): (stack(app, options), json.dumps(body).encode())
        for kind, (app, body) in APPS.items()
        for who, options in WATCHED.items()
    }
    found: dict[tuple[str, str], list[float]] = {key: [] for key in apps}
    for number in range(ROUNDS + 1):
        for key, (app, body) in apps.items():
            took_us = await _us(app, body)
            if number:  # the first warms up
                found[key].append(took_us)
    return {f"{kind} {who}": min(us) for (kind, who), us in found.items()}


def _sdk() -> None:
    from opentelemetry import metrics  # noqa: PLC0415 - before anybody asks for a meter
    from opentelemetry.sdk.metrics import MeterProvider  # noqa: PLC0415 - the same
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader  # noqa: PLC0415 - the same

    metrics.set_meter_provider(MeterProvider([InMemoryMetricReader()]))


def main() -> None:
    """Measure with the client in one process and in several, and print ratios."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--child", action="store_true", help="measure once and print JSON")
    if parser.parse_args().child:
        _sdk()
        print(json.dumps(asyncio.run(_measure())))
        return
    for title, shared in (("one process", False), ("PROMETHEUS_MULTIPROC_DIR", True)):
        with tempfile.TemporaryDirectory() as folder:
            env = {**os.environ, **({"PROMETHEUS_MULTIPROC_DIR": folder} if shared else {})}
            command = [sys.executable, "-m", "benchmarks.observing", "--child"]
            ran = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE)  # noqa: S603 - ourselves
        found = json.loads(ran.stdout)
        print(title)
        for name, us in found.items():
            ratio = us / found[f"{name.split()[0]} nobody"]
            print(f"  {name:20} {us:8.1f} µs  x{ratio:.2f}")


if __name__ == "__main__":
    main()
