"""Where the traces of a program that runs a job go to, as OpenTelemetry's environment variables or an address say.

Invariant: what the program (or `opentelemetry-instrument`) has set up itself comes first, and is left alone at the end.
"""

import functools
import logging
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from importlib.metadata import entry_points
from typing import Any, Final
from urllib.parse import urlsplit

from streamactors.errors import InvalidConfig, MissingExtra
from streamactors.launch import JobHandle
from streamactors.observe.tracing import CLOSING, EXTRA, Aside, traced
from streamactors.settings import redacted

log = logging.getLogger("streamactors.traces")

_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_PATH: Final = "/v1/traces"
_UNNAMED: Final = "unknown_service"


@asynccontextmanager
async def traced_if_configured(handle: JobHandle, otlp: str | None = None) -> AsyncIterator[None]:
    """As `traced`, by what the program has set up; else to the collector at `otlp` (a URL), or where the environment
    (`OTEL_…`) says; without any of them, nowhere. Raises MissingExtra, InvalidConfig for `otlp`; for the environment,
    which may be that of a whole cluster, the log says what is missing."""
    if otlp is None and _set_up_already():
        async with traced(handle, closing=CLOSING):
            yield
        return
    provider = _provider(handle.name, otlp)
    if provider is None:
        yield
        return
    try:
        async with traced(handle, provider, closing=CLOSING):
            yield
    finally:
        if not await Aside(provider.shutdown).ended(CLOSING):
            log.warning("%s: traces may be lost: the collector has not taken them within %.3g s", handle.name, CLOSING)


def _set_up_already() -> bool:
    """Nobody can have, without its import."""
    trace = sys.modules.get("opentelemetry.trace")
    return trace is not None and not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)


def _provider(job: str, otlp: str | None) -> Any:
    names = ["otlp"] if otlp is not None else exporters(os.environ)
    if not names:
        return None
    try:
        return _provider_of(job, names, None if otlp is None else endpoint(otlp))
    except ImportError as error:
        missing = f"traces need {error.name or error}: {EXTRA}"
        if otlp is not None:
            raise MissingExtra(missing) from error
        log.warning("%s: no traces, though the environment asks for them (OTEL_…): %s", job, missing)
        return None


def _provider_of(job: str, names: list[str], otlp: str | None) -> Any:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource.create()
    if str(resource.attributes.get("service.name", _UNNAMED)).startswith(
        _UNNAMED
    ):  # the environment has no name for it
        resource = resource.merge(Resource({"service.name": job}))
    made = [_exporter(name, otlp) for name in names]
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    for exporter in made:
        provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider


def _exporter(name: str, otlp: str | None) -> Any:
    if name == "otlp":
        name = "otlp_proto_grpc" if _said(_PROTOCOLS, os.environ) == "grpc" and otlp is None else "otlp_proto_http"
    found = next(iter(entry_points(group="opentelemetry_traces_exporter", name=name)), None)
    if found is None:
        raise ImportError(name=f"the exporter {name!r}")
    make = found.load()
    return make() if otlp is None else functools.partial(make, endpoint=otlp)()


def exporters(environ: Mapping[str, str]) -> list[str]:
    """Those that the environment asks for; without a name, it is enough to say where a collector is."""
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return []
    named = environ.get("OTEL_TRACES_EXPORTER", "otlp" if _said(_ENDPOINTS, environ) else "")
    return [name for part in named.split(",") if (name := part.strip()) not in ("", "none")]


def _said(variables: tuple[str, ...], environ: Mapping[str, str]) -> str:
    return next((value for variable in variables if (value := environ.get(variable, "").strip())), "")


def endpoint(otlp: str) -> str:
    """The address of a collector may leave out the path. Raises InvalidConfig."""
    try:
        parts = urlsplit(otlp)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        usable = False
    if not usable:
        raise InvalidConfig(
            f"{redacted(otlp)!r} is no address of a collector of traces: give one such as http://127.0.0.1:4318"
        )
    return parts._replace(path=_PATH).geturl() if parts.path in ("", "/") else otlp
