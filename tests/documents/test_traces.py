"""The snippet of docs/metrics.md that traces a job in a service, and whether the page tells of all that is sent."""

import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import streamactors as sa
from tests.observe.jobs import config, flow_of
from tests.programs import ROOT
from tests.runtime.feeds import Feed, until

PAGE = (ROOT / "docs" / "metrics.md").read_text()


async def test_in_a_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exporter, provider, feed = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False), Feed(2)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)

    async def steps(job: sa.JobHandle) -> None:
        feed.put(1)
        await job.checkpoint()
        feed.fail(ValueError("once"))
        await until(lambda: job.restarts == 1 and job.status == "running")
        await job.rescale(parallelism={"sum": 1})
        await job.stop()

    _, snippet = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    code = snippet.replace("    ...\n", "    await steps(job)\n")
    names: dict[str, Any] = {"sa": sa, "flow": flow_of(feed), "config": config(tmp_path), "steps": steps}
    exec(f"async def example():\n{textwrap.indent(code, '    ')}", names)
    await names["example"]()

    spans = exporter.get_finished_spans()
    assert {span.name for span in spans} >= {"checkpoint", "subtask checkpoint", "recovery", "restart delay", "restore"}
    table = PAGE[PAGE.index("| Span |") :]
    for span in spans:
        assert f"`{span.name}`" in table
        for name in span.attributes or {}:
            short = name.removeprefix("streamactors.")
            assert f"`{short}`" in table or f"`.{short.removeprefix('checkpoint.')}`" in table, name
