"""The metrics of a real job at a real endpoint, and the dashboard's queries over them."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from streamactors.observe import model
from streamactors.observe.prometheus import FAMILIES, MOST_NAMES, exposition
from streamactors.observe.reading import Reading
from tests.observe.jobs import Api, running, taken
from tests.observe.promql import Query, Scrape, Vector
from tests.runtime.feeds import Feed

pytestmark = pytest.mark.slow

DASHBOARD = Path(__file__).parents[2] / "docs" / "grafana.json"


async def scrape(api: Api, time: float) -> Scrape:
    answer = await api.client.get("/metrics")
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/plain; version=")
    return Scrape.of(time, answer.text)


async def two_scrapes(folder: Path) -> tuple[Scrape, Scrape]:
    """Ten seconds apart, between which fifty records are processed and a checkpoint is taken."""
    feed = Feed(2)
    async with running(folder, feed) as (job, api):
        feed.put(1, 2)
        await taken(job, 2)
        before = await scrape(api, 1_700_000_100.0)
        feed.put(*range(3, 28))
        feed.put(*range(1, 26), split=1)
        await taken(job, 52)
        await job.checkpoint()
        return before, await scrape(api, 1_700_000_110.0)


def by(vector: Vector, *labels: str) -> dict[Any, float]:
    return {tuple(dict(key)[label] for label in labels): value for key, value in vector.items()}


async def test_every_query_of_the_dashboard_has_an_answer(tmp_path: Path) -> None:
    before, now = await two_scrapes(tmp_path)
    answers = {}
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel["targets"]:
            text = target["expr"].replace("$job", "sums").replace("$__rate_interval", "1m")
            answers[panel["title"], target["refId"]] = vector = Query(text, before, now).value()
            assert vector, f"{panel['title']}: no series for {text}"
            legend = [part.partition("}}")[0] for part in target["legendFormat"].split("{{")[1:]]
            assert all(set(legend) <= dict(labels).keys() for labels in vector), panel["title"]
    assert by(answers["Records taken each second", "A"], "operator")["sum",] == pytest.approx(5.0)
    assert by(answers["Status", "A"], "status") == {("running",): 1.0}
    assert by(answers["Restarts in an hour", "A"], "job") == {("sums",): 0.0}
    assert by(answers["What operators count", "A"], "operator", "name")["sum", "seen"] == pytest.approx(5.0)
    assert by(answers["What operators observe: 99 of 100 are below", "A"], "name")["size",] == 5.0
    assert by(answers["Watermark skew", "A"], "operator")["numbers",] == 2.0
    assert by(answers["State", "A"], "operator")["sum",] > 0
    assert 64 <= by(answers["State: the largest key group over the mean", "A"], "operator")["sum",] < 128  # of two keys


async def test_names_and_labels(tmp_path: Path) -> None:
    """As they are documented: dashboards and alerts of others are written by them."""
    _, now = await two_scrapes(tmp_path)
    documented = (DASHBOARD.parent / "metrics.md").read_text()
    for name, series in now.series.items():
        base = name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count")
        assert f"`{base}`" in documented, f"{base} is not in docs/metrics.md"
        for labels in series:
            assert dict(labels).keys() <= {"job", "operator", "subtask", "name", "status", "le"}
    assert (
        now.series["streamactors_records_in_total"][frozenset({("job", "sums"), ("operator", "sum"), ("subtask", "0")})]
        + now.series["streamactors_records_in_total"][
            frozenset({("job", "sums"), ("operator", "sum"), ("subtask", "1")})
        ]
        == 52
    )
    assert not {"broken"} & {dict(labels)["name"] for labels in now.series["streamactors_operator_gauge"]}


async def test_openmetrics_where_it_is_asked_for(tmp_path: Path) -> None:
    async with running(tmp_path, Feed()) as (_, api):
        answer = await api.client.get("/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.text.endswith("# EOF\n")


async def test_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "streamactors.observe.prometheus")
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    monkeypatch.setitem(sys.modules, "prometheus_client.core", None)
    async with running(tmp_path, Feed()) as (_, api):
        answer = await api.client.get("/metrics")
        assert (await api.get())["status"] == "running"
    assert answer.status_code == 501 and "streamactors[metrics]" in answer.json()["error"]["message"]


def reading(counters: dict[str, float | None]) -> Reading:
    node = model.Node(records_in=1, records_out=1, counters=counters)
    subtask = model.Subtask(
        id="a[0]", queued=0, capacity=1, blocked=[], unsent=0, nodes={'a"\n\\': node}, vertex="a", index=0
    )
    status = model.JobStatus(
        name="j",
        status="running",
        stopping=False,
        pid=1,
        started_ms=0,
        uptime_seconds=0.0,
        restarts=0,
        storage=None,
        target=None,
        last_checkpoint=None,
        last_failure=None,
        operators=[],
        subtasks=[subtask],
    )
    return Reading(status, model.Checkpoints(checkpoints=[]))


def test_names_of_the_user_are_bounded_and_quoted() -> None:
    text, _ = exposition([reading({f"counter {number}\n": 1.0 for number in range(1000)})])
    series = Scrape.of(0.0, text.decode()).series["streamactors_operator_counter_total"]
    assert len(series) == MOST_NAMES
    assert {dict(labels)["operator"] for labels in series} == {'a"\n\\'}


def test_long_names_that_become_one_are_told_once() -> None:
    long = {"x" * 200 + str(number): float(number) for number in range(3)}
    text, _ = exposition([reading({**long})])
    assert len(Scrape.of(0.0, text.decode()).series["streamactors_operator_counter_total"]) == 1


def test_families_have_names_of_their_own() -> None:
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)
