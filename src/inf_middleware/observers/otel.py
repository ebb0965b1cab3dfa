"""Metrics for OpenTelemetry, through its API alone: the SDK that exports them is the user's."""

from collections.abc import Mapping
from typing import Any

from opentelemetry import metrics

from inf_middleware.observers.catalogue import CATALOGUE, Metric
from inf_middleware.observers.metrics import MetricsObserver

# What an operation is called there; the others go by the name of their dialect.
# Source: the same, attribute gen_ai.operation.name.
_OPERATIONS = {
    "openai.chat": "chat",
    "openai.responses": "chat",
    "anthropic.messages": "chat",
    "ollama.chat": "chat",
    "cohere.chat": "chat",
    "openai.completions": "text_completion",
    "ollama.generate": "text_completion",
    "llama_cpp.completion": "text_completion",
    "sglang.generate": "text_completion",
    "tgi.generate": "text_completion",
    "tgi.generate_stream": "text_completion",
    "openai.embeddings": "embeddings",
    "ollama.embed": "embeddings",
    "cohere.embed": "embeddings",
}

# Not one of the well-known providers: who stands here serves the model themselves.
_PROVIDER = "inf_middleware"

_ATTRIBUTES = {"model": "gen_ai.request.model", "type": "gen_ai.token.type"}


class OtelObserver(MetricsObserver):
    """Measures with the meter of the global provider."""

    def __init__(self, deployment: str, *, by_account: bool) -> None:
        super().__init__(by_account=by_account)
        self._deployment = deployment
        meter = metrics.get_meter("inf_middleware")
        self._instruments = {metric.name: _instrument(meter, metric) for metric in CATALOGUE}
        self._attributes: dict[tuple[str, ...], Mapping[str, str]] = {}

    def add(self, metric: Metric, amount: float, *labels: str) -> None:
        """Add to a counter."""
        self._instruments[metric.name].add(amount, self._attributes_of(metric, labels))

    def record(self, metric: Metric, value: float, *labels: str) -> None:
        """Record a value of a histogram."""
        self._instruments[metric.name].record(value, self._attributes_of(metric, labels))

    def set(self, metric: Metric, value: float, *labels: str) -> None:
        """Set a gauge."""
        self._instruments[metric.name].set(value, self._attributes_of(metric, labels))

    def _attributes_of(self, metric: Metric, labels: tuple[str, ...]) -> Mapping[str, str]:
        key = (metric.name, *labels)
        found = self._attributes.get(key)
        if found is None:
            found = self._attributes[key] = _attributes(metric, self._deployment, labels)
        return found


def _attributes(metric: Metric, deployment: str, labels: tuple[str, ...]) -> dict[str, str]:
    named = dict(zip(metric.labels, labels, strict=True))
    attributes = {"inf_middleware.deployment": deployment}
    if metric.otel.startswith("gen_ai."):
        dialect = named["endpoint"]
        attributes["gen_ai.operation.name"] = _OPERATIONS.get(dialect, dialect)
        attributes["gen_ai.provider.name"] = _PROVIDER
        if named.get("outcome", "complete") != "complete":
            attributes["error.type"] = named["outcome"]
    for name, value in named.items():
        attributes[_ATTRIBUTES.get(name, f"inf_middleware.{name}")] = value
    return attributes


def _instrument(meter: metrics.Meter, metric: Metric) -> Any:
    if metric.kind == "counter":
        return meter.create_counter(metric.otel, metric.unit, metric.help)
    if metric.kind == "gauge":
        return meter.create_gauge(metric.otel, metric.unit, metric.help)
    return meter.create_histogram(
        metric.otel,
        metric.unit,
        metric.help,
        explicit_bucket_boundaries_advisory=metric.buckets,
    )
