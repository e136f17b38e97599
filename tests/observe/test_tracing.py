"""Traces of real jobs, as OpenTelemetry's own SDK gets them; exporters that hang and fail; a collector."""

import http.server
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import streamactors as sa
from streamactors.errors import InvalidConfig, MissingExtra
from streamactors.launch import run_until_signalled
from streamactors.observe import exporting, tracing
from streamactors.observe.exporting import endpoint, exporters, traced_if_configured
from streamactors.observe.tracing import Aside
from streamactors.runtime.events import JobEvent, Moment
from streamactors.service import traced
from tests.observe.jobs import config, flow_of
from tests.programs import PATIENCE, streamactors
from tests.runtime.feeds import Feed, until


def provider_of(exporter: SpanExporter) -> TracerProvider:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider


class Spans:
    """What an exporter has got."""

    def __init__(self, exporter: InMemorySpanExporter) -> None:
        self.all = exporter.get_finished_spans()

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.all if span.name == name]

    def below(self, parent: ReadableSpan) -> list[ReadableSpan]:
        return [span for span in self.all if span.parent is not None and span.parent.span_id == _id(parent)]


def _id(span: ReadableSpan) -> int:
    context = span.get_span_context()
    assert context is not None
    return context.span_id


def told(span: ReadableSpan) -> dict[str, Any]:
    return {name.removeprefix("streamactors."): value for name, value in (span.attributes or {}).items()}


async def test_checkpoints_a_savepoint_and_a_recovery_of_a_real_job(tmp_path: Path) -> None:
    exporter, feed = InMemorySpanExporter(), Feed(2)
    async with (
        sa.start(flow_of(feed), config(tmp_path), on_exit="cancel") as job,
        traced(job, provider_of(exporter), closing=PATIENCE),
    ):
        feed.put(1, 2, 3)
        first = await job.checkpoint()
        await job.savepoint(str(tmp_path / "saved"))
        feed.fail(ValueError("no such line"))
        await until(lambda: job.restarts == 1 and job.status == "running")
        await job.checkpoint()
    spans = Spans(exporter)

    checkpoint, *_ = spans.named("checkpoint")
    assert checkpoint.parent is None
    assert told(checkpoint)["checkpoint.id"] == first.id and told(checkpoint)["checkpoint.trigger"] == "request"
    assert told(checkpoint)["checkpoint.outcome"] == "completed"
    assert told(checkpoint)["checkpoint.state_bytes"] == first.state_bytes > 0
    parts = spans.below(checkpoint)
    assert {told(part)["subtask"] for part in parts} == {part.subtask for part in first.subtasks}
    assert all(_within(part, checkpoint) for part in parts)

    (savepoint,) = spans.named("savepoint")
    assert told(savepoint)["checkpoint.uri"].endswith("/saved") and spans.below(savepoint)

    (recovery,) = spans.named("recovery")
    assert recovery.parent is None and recovery.status.status_code is trace.StatusCode.UNSET
    assert told(recovery)["outcome"] == "running" and told(recovery)["attempt"] == 2
    assert told(recovery)["restored.checkpoint.id"] >= first.id
    (failure,) = recovery.events
    assert failure.name == "exception" and failure.attributes is not None
    assert "no such line" in str(failure.attributes["exception.message"])
    assert "ValueError: no such line" in str(failure.attributes["exception.stacktrace"])
    assert [phase.name for phase in spans.below(recovery)] == ["restart delay", "restore"]
    assert all(_within(phase, recovery) for phase in spans.below(recovery))
    traces = {span.get_span_context().trace_id for span in (checkpoint, savepoint, recovery)}  # type: ignore[union-attr]
    assert len(traces) == 3


def _within(inner: ReadableSpan, outer: ReadableSpan) -> bool:
    assert inner.start_time and inner.end_time and outer.start_time and outer.end_time
    return outer.start_time <= inner.start_time <= inner.end_time <= outer.end_time


async def test_a_rescale(tmp_path: Path) -> None:
    exporter, feed = InMemorySpanExporter(), Feed(2)
    async with (
        sa.start(flow_of(feed), config(tmp_path), on_exit="cancel") as job,
        traced(job, provider_of(exporter), closing=PATIENCE),
    ):
        feed.put(1, 2, 3)
        await job.rescale(parallelism={"sum": 1})
    spans = Spans(exporter)
    (rescale,) = spans.named("rescale")
    assert told(rescale)["outcome"] == "rescaled" and "sum: 2 → 1" in told(rescale)["changes"]
    assert [phase.name for phase in spans.below(rescale)] == ["restore"]
    assert {told(one)["checkpoint.trigger"] for one in spans.named("checkpoint")} == {"rescale"}
    assert not spans.named("recovery") and not spans.named("start")


async def test_a_job_that_fails_for_good(tmp_path: Path) -> None:
    exporter, feed = InMemorySpanExporter(), Feed(2)
    feed.put(1, -1)
    settings = sa.Config(restart=sa.Restart.none())
    code = await run_until_signalled(
        flow_of(feed), settings, beside=lambda handle: traced(handle, provider_of(exporter), closing=PATIENCE)
    )
    assert code == 1
    spans = Spans(exporter)
    (start,) = spans.named("start")
    assert told(start) == {"job.name": "sums", "attempt": 1, "outcome": "running"}
    (recovery,) = spans.named("recovery")
    assert recovery.status.status_code is trace.StatusCode.ERROR
    assert recovery.status.description == "the job has failed"
    assert not spans.named("checkpoint")


class Hanging(SpanExporter):
    """Until it is let go."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.let_go = threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.begun.set()
        self.let_go.wait()
        return SpanExportResult.SUCCESS


async def test_an_exporter_that_hangs_holds_nothing_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing, "MOST_WAITING", 2)
    exporter, feed = Hanging(), Feed(2)
    try:
        async with (
            sa.start(flow_of(feed), config(tmp_path), on_exit="cancel") as job,
            traced(job, provider_of(exporter), closing=0.01),
        ):
            await job.checkpoint()
            await until(exporter.begun.is_set)
            for _ in range(4):
                await job.checkpoint()
            assert len(job.checkpoints) == 5
    finally:
        exporter.let_go.set()
    assert "traces wait for their exporter" in caplog.text
    assert "traces are lost" in caplog.text and "2 traces were lost" in caplog.text


class Broken:
    """A provider whose spans can't be made."""

    def get_tracer(self, name: str, version: str | None = None) -> Any:
        return self

    def start_span(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError("out of order")


async def test_an_exporter_that_fails_is_told_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with (
        sa.start(flow_of(Feed(2)), config(tmp_path), on_exit="cancel") as job,
        traced(job, Broken(), closing=PATIENCE),
    ):
        await job.checkpoint()
        await job.checkpoint()
    assert caplog.text.count("a trace could not be handed on (said once): out of order") == 1


async def test_a_listener_that_fails_harms_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    heard: list[JobEvent] = []

    def fails(event: JobEvent, at: Moment) -> None:
        raise RuntimeError("deaf")

    async with sa.start(flow_of(Feed(2)), config(tmp_path), on_exit="cancel") as job:
        with job.listening(fails), job.listening(lambda event, at: heard.append(event)):
            await job.checkpoint()
        await job.checkpoint()
    assert [type(event).__name__ for event in heard] == ["CheckpointTriggered", "CheckpointCompleted"]
    assert "a listener has failed on CheckpointTriggered" in caplog.text and "deaf" in caplog.text


async def test_without_opentelemetry_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    async with sa.start(flow_of(Feed(2)), config(tmp_path), on_exit="cancel") as job:
        with pytest.raises(MissingExtra, match=r"streamactors\[otel\]"):
            async with traced(job):
                pass


# ------------------------------------------------------------------------------------------------------- the program's
@pytest.fixture
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if nobody on this machine had said where traces go; and a slow machine has time to send them."""
    monkeypatch.setattr(exporting, "CLOSING", PATIENCE)
    for name in ("OTEL_TRACES_EXPORTER", "OTEL_SDK_DISABLED", *exporting._ENDPOINTS, *exporting._PROTOCOLS):
        monkeypatch.delenv(name, raising=False)


class Collector:
    """Speaks OTLP over HTTP."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, ExportTraceServiceRequest]] = []
        collector = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                collector.requests.append((self.path, ExportTraceServiceRequest.FromString(body)))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                return None

        self._server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def spans(self) -> dict[str, list[str]]:
        """Names of spans by service."""
        found: dict[str, list[str]] = {}
        for _, request in self.requests:
            for resource in request.resource_spans:
                (service,) = [a.value.string_value for a in resource.resource.attributes if a.key == "service.name"]
                names = [span.name for scope in resource.scope_spans for span in scope.spans]
                found.setdefault(service, []).extend(names)
        return found


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


@pytest.mark.usefixtures("no_settings")
async def test_the_environment_says_where_traces_go(
    tmp_path: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    monkeypatch.setenv("OTEL_SERVICE_NAME", "shop")
    async with sa.start(flow_of(Feed(2)), config(tmp_path), on_exit="cancel") as job, traced_if_configured(job):
        await job.checkpoint()
    assert {path for path, _ in collector.requests} == {"/v1/traces"}
    assert "checkpoint" in collector.spans["shop"]


@pytest.mark.usefixtures("no_settings")
async def test_what_the_program_has_set_up_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    exporter = InMemorySpanExporter()
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider_of(exporter))
    async with sa.start(flow_of(Feed(2)), config(tmp_path), on_exit="cancel") as job, traced_if_configured(job):
        await job.checkpoint()
    assert Spans(exporter).named("checkpoint")


@pytest.mark.usefixtures("no_settings")
async def test_without_any_word_there_are_no_traces_and_no_thread(tmp_path: Path) -> None:
    before = threading.active_count()
    async with sa.start(flow_of(Feed(2)), config(tmp_path), on_exit="cancel") as job:
        open_files = threading.active_count()
        async with traced_if_configured(job):
            assert threading.active_count() == open_files >= before


@pytest.mark.usefixtures("no_settings")
async def test_what_is_missing_is_an_error_only_where_traces_were_asked_for_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.resources", None)
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
    async with sa.start(flow_of(Feed(2)), config(tmp_path), on_exit="cancel") as job:
        async with traced_if_configured(job):
            assert "no traces, though the environment asks for them" in caplog.text
        with pytest.raises(MissingExtra, match=r"streamactors\[otel\]"):
            async with traced_if_configured(job, "http://127.0.0.1:4318"):
                pass


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, []),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, ["otlp"]),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"}, ["otlp"]),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_TRACES_EXPORTER": "none"}, []),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_SDK_DISABLED": "True"}, []),
        ({"OTEL_TRACES_EXPORTER": "otlp, console"}, ["otlp", "console"]),
    ],
)
def test_exporters_of_an_environment(environ: dict[str, str], expected: list[str]) -> None:
    assert exporters(environ) == expected


def test_the_address_of_a_collector() -> None:
    assert endpoint("http://127.0.0.1:4318") == "http://127.0.0.1:4318/v1/traces"
    assert endpoint("https://collector/tenant/v1/traces") == "https://collector/tenant/v1/traces"
    for wrong in ("127.0.0.1:4318", "ftp://collector", "http://", "http://[::1"):
        with pytest.raises(InvalidConfig, match="address of a collector"):
            endpoint(wrong)


async def test_a_thread_that_is_waited_for_no_longer() -> None:
    let_go = threading.Event()
    aside = Aside(let_go.wait)
    assert not await aside.ended(0.01)
    let_go.set()
    assert await aside.ended(PATIENCE)


FLOW = """
import streamactors as sa
from connectors.memory import ListSink, ListSource

flow = sa.Dataflow("lines")
flow.source("in", ListSource([1, 2, 3])).sink("out", ListSink())
"""


@pytest.mark.slow
@pytest.mark.usefixtures("no_settings", "registry_folder")
def test_the_command_line_sends_traces(tmp_path: Path, collector: Collector) -> None:
    (tmp_path / "jobs.py").write_text(FLOW)
    command = ("run", "jobs:flow", "--storage", "stored", "--interval", "1h", "--otlp", collector.url)
    with streamactors(*command, cwd=tmp_path) as program:
        assert program.end() == 0, program.stderr
    assert {"start", "restore", "checkpoint", "subtask checkpoint"} <= set(collector.spans["lines"])
