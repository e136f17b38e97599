"""What is told of an extra that is not installed, without importing it."""

from importlib.util import find_spec
from typing import Final

NO_METRICS: Final = "metrics need prometheus-client: pip install 'streamactors[metrics]'"


def metrics_missing() -> str | None:
    """What to do before /metrics can tell anything; None where it can."""
    return NO_METRICS if find_spec("prometheus_client") is None else None
