"""The snippets of docs/rest.md and docs/metrics.md, run as they stand there; and what these pages list."""

import contextlib
import io
import re
import textwrap
from pathlib import Path
from typing import Any

import httpx

import streamactors as sa
from connectors.memory import ListSink
from streamactors.observe.control import OPERATIONS
from streamactors.observe.prometheus import FAMILIES
from streamactors.service import served
from tests.observe.jobs import config, flow_of
from tests.programs import ROOT
from tests.runtime.feeds import PATIENCE, Feed, until

REST = (ROOT / "docs" / "rest.md").read_text()
METRICS = (ROOT / "docs" / "metrics.md").read_text()


def snippets(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


async def test_in_a_service(tmp_path: Path) -> None:
    embedded, own = snippets(REST)
    names: dict[str, Any] = {"sa": sa, "flow": flow_of(Feed()), "config": config(tmp_path), "folder": str(tmp_path)}
    exec(embedded, names)
    async with sa.start(names["flow"], names["config"], on_exit="cancel") as job:
        names["jobs"].append(job)
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(names["app"]), base_url="http://localhost"
        ) as client:
            assert (await client.get("/streams/api/v1/jobs")).json()["jobs"][0]["name"] == "sums"
    exec(f"async def example():\n{textwrap.indent(own, '    ')}", names)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        await names["example"]()
    assert printed.getvalue().startswith("http://127.0.0.1:")


async def test_metrics_of_ones_own() -> None:
    names: dict[str, Any] = {"sa": sa}
    own, _ = snippets(METRICS)
    exec(own, names)
    flow, feed, sink = sa.Dataflow("shop"), Feed(), ListSink[float]()
    flow.source("prices", feed).process("priced", names["Priced"]).sink("out", sink)
    async with sa.start(flow, on_exit="cancel") as job, served(job, "127.0.0.1:0") as where:
        feed.put(50.0, 150.0)
        await until(lambda: len(sink.values) == 2)
        async with httpx.AsyncClient(trust_env=False) as client:
            told = (await client.get(f"{where.url}/metrics")).text
    assert 'name="dear_orders",operator="priced",subtask="0"} 1.0' in told
    assert 'name="price",operator="priced",subtask="0"} 200.0' in told


def test_every_operation_is_listed() -> None:
    listed = set(re.findall(r"`((?:GET|POST) /jobs[^`]*)`", REST))
    assert listed == {f"{each.method} {each.path.removeprefix('/v1')}" for each in OPERATIONS} | {
        "GET /jobs",
        "GET /jobs/{name}/events",
    }


def test_every_metric_is_listed_with_its_labels() -> None:
    for family in FAMILIES:
        (row,) = [line for line in METRICS.splitlines() if f"`{family.name}`" in line and line.startswith("| `")]
        assert row.split("|")[2].strip() == ", ".join(family.labels), family.name


def test_the_documented_alerts_are_queries_over_these() -> None:
    names = {family.name for family in FAMILIES}
    alerts = METRICS.partition("## Alerts")[2]
    assert set(re.findall(r"streamactors_\w+", alerts)) <= names


async def test_the_commands_do_what_the_page_says(tmp_path: Path) -> None:
    """The two curl lines, as requests."""
    async with (
        sa.start(flow_of(Feed()), config(tmp_path), on_exit="cancel") as job,
        served(job, "127.0.0.1:0") as where,
        httpx.AsyncClient(trust_env=False, timeout=PATIENCE) as client,
    ):
        for path in re.findall(r"http://127\.0\.0\.1:8077(\S+)", REST.partition("## What")[0]):
            method = "POST" if path.endswith("checkpoints") else "GET"
            headers = {"authorization": f"Bearer {where.token}"}
            answer = await client.request(method, where.url + path.replace("orders", "sums"), headers=headers)
            assert answer.status_code == 200, path
