"""Which extra each exporter of metrics needs, and whether it is installed."""

import importlib.util

from inf_middleware.domain.errors import ConfigError

# Exporter (and extra) → the module it stands on, and who distributes that.
_NEEDS = {
    "prometheus": ("prometheus_client", "prometheus-client"),
    "otel": ("opentelemetry.metrics", "opentelemetry-api"),
}

EXPORTERS = tuple(_NEEDS)


def check_installed(exporter: str) -> None:
    """See that an exporter's package is there; nothing is imported.

    Raises:
        ConfigError: It is not; says how to install it.
    """
    module, package = _NEEDS[exporter]
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:  # not even the package around it
        found = None
    if found is None:
        raise ConfigError(
            f"metrics for {exporter} need {package}: pip install 'inf-middleware[{exporter}]'"
        )
