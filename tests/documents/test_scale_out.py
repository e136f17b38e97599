"""docs/scale-out.md: its settings, its log line, and what it shows of the workers."""

import dataclasses
import datetime as dt
import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

import streamactors as sa
from streamactors import sources
from streamactors.cli.commands import app
from streamactors.durations import parse_duration
from tests.programs import ROOT
from tests.runtime.autoscaled import counts, orders, planned
from tests.runtime.test_autoscaling import at_once, decided
from tests.structure.test_docs import snippets

PAGE = (ROOT / "docs" / "scale-out.md").read_text()
FLOW = """
import streamactors as sa
from connectors.memory import ListSink, ListSource


class Totals(sa.KeyedOperator[int, int, int]):
    def process(self, value: int, ctx: sa.Context[int, int]) -> None:
        ctx.emit(value)


flow = sa.Dataflow("orders")
totals = flow.source("orders", ListSource([1])).key_by(lambda order: order).process("totals", Totals)
totals.sink("out", ListSink(), parallelism=1)
"""


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def test_python_and_toml_say_the_same(tmp_path: Path) -> None:
    names: dict[str, Any] = {"sa": sa, "dt": dt, "sources": sources, "Order": int, "Mapping": Mapping, "Any": Any}
    for _, code in snippets(PAGE):
        exec(compile(code, "scale-out.md", "exec"), names)
    toml, on_ray, _ = blocks("toml")
    (tmp_path / "job.toml").write_text(toml)
    (tmp_path / "ray.toml").write_text(on_ray)
    deployment = sa.Ray(workers=4, address="auto", resources={"CPU": 2})
    assert sa.Config.from_toml(tmp_path / "ray.toml") == sa.Config(deployment=deployment)
    assert names["on_ray"]("file:///var/lib/orders").deployment == sa.Ray(workers=4)
    assert sa.Config.from_toml(tmp_path / "job.toml") == names["config"]("file:///var/lib/orders")
    assert issubclass(names["TableReader"], sources.SplitReader)


def test_every_setting_is_listed_with_its_default() -> None:
    table = re.search(r"^\| `autoscale.*?\n\n", PAGE, re.MULTILINE | re.DOTALL)
    assert table is not None
    listed = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", table[0], re.MULTILINE))
    defaults = {field.name: getattr(sa.Autoscale(), field.name) for field in dataclasses.fields(sa.Autoscale)}
    told = {"max_parallelism": "the job's", "steps": "all"}
    assert listed == {name: told.get(name, _shown(value, listed[name])) for name, value in defaults.items()}


def _shown(value: object, listed: str) -> str:
    if isinstance(value, dt.timedelta):
        assert parse_duration(listed.replace(" min", "m").replace(" ", "")) == value
        return listed
    return f"{value:g}" if isinstance(value, float) else str(value).lower()


def test_the_log_line_is_one_that_it_writes() -> None:
    made = planned(orders(), totals=2, out=2)
    source = counts(10, 0.1, records=2400, held_back=1 - 1 / 1.65)
    decision = decided(made, at_once(), orders=source, totals=counts(10, 0.98, 0.98, records=2400, nodes=2))
    assert f"orders: autoscaler: rescaling: {decision.reason}\n" in blocks("text")


@pytest.fixture
def flow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "orders.py").write_text(FLOW)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "orders", raising=False)


@pytest.mark.usefixtures("flow")
def test_the_commands_show_what_is_shown() -> None:
    shown, drawn = (
        CliRunner().invoke(app, [command, "orders:flow", "--parallelism", "2", "--workers", "2"])
        for command in ("explain", "graph")
    )
    sys.modules.pop("orders")
    assert shown.exit_code == drawn.exit_code == 0
    assert shown.output.endswith("\n\n" + blocks("text")[1])
    assert drawn.output == blocks("mermaid")[1]
    assert all(
        f"streamactors {command} orders:flow --parallelism 2 --workers 2" in PAGE for command in ("explain", "graph")
    )


# ---------------------------------------------------------------------------------------------------------- Kubernetes
# What the resources of KubeRay 1.5 know, by their names there: `kubectl apply` refuses or drops others.
RAY_JOB = {
    *("activeDeadlineSeconds", "backoffLimit", "clusterSelector", "deletionStrategy", "entrypoint"),
    *("entrypointNumCpus", "entrypointNumGpus", "entrypointResources", "jobId", "managedBy", "metadata"),
    *("rayClusterSpec", "runtimeEnvYAML", "shutdownAfterJobFinishes", "submissionMode", "submitterConfig"),
    *("submitterPodTemplate", "suspend", "ttlSecondsAfterFinished"),
}
RAY_CLUSTER = {
    *("authOptions", "autoscalerOptions", "enableInTreeAutoscaling", "gcsFaultToleranceOptions", "headGroupSpec"),
    *("headServiceAnnotations", "managedBy", "rayVersion", "suspend", "upgradeStrategy", "workerGroupSpecs"),
}
HEAD = {"enableIngress", "headService", "labels", "rayStartParams", "resources", "serviceType", "template"}
WORKERS = {
    *("groupName", "idleTimeoutSeconds", "labels", "maxReplicas", "minReplicas", "numOfHosts", "rayStartParams"),
    *("replicas", "resources", "scaleStrategy", "suspend", "template"),
}
POD = {"containers", "terminationGracePeriodSeconds", "volumes"}
CONTAINER = {"env", "envFrom", "image", "name", "resources", "volumeMounts"}


def test_the_ray_job_of_kubernetes_is_one_that_kuberay_knows() -> None:
    found = yaml.safe_load((ROOT / "docs" / "ray-job.yaml").read_text())
    assert (found["apiVersion"], found["kind"], found["metadata"]) == ("ray.io/v1", "RayJob", {"name": "orders"})
    job, cluster = found["spec"], found["spec"]["rayClusterSpec"]
    head, (workers,) = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    for given, known in ((job, RAY_JOB), (cluster, RAY_CLUSTER), (head, HEAD), (workers, WORKERS)):
        assert given.keys() <= known
    assert cluster["authOptions"] == {"mode": "token"}
    assert {"groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"} <= workers.keys()
    assert all(type(given) is str for group in (head, workers) for given in group["rayStartParams"].values())
    pods = [group["template"]["spec"] for group in (head, workers)]
    containers = [container for pod in pods for container in pod["containers"]]
    assert [container["name"] for container in containers] == ["ray-head", "ray-worker"]
    assert all(pod.keys() <= POD for pod in pods) and all(container.keys() <= CONTAINER for container in containers)
    assert len({container["image"] for container in containers}) == 1
    assert all(container["envFrom"] == [{"secretRef": {"name": "orders"}}] for container in containers)
    volumes = {volume["name"] for pod in pods for volume in pod.get("volumes", ())}
    assert {mount["name"] for container in containers for mount in container.get("volumeMounts", ())} == volumes


def test_its_image_its_settings_and_its_room_fit_together(tmp_path: Path) -> None:
    cluster = (job := yaml.safe_load((ROOT / "docs" / "ray-job.yaml").read_text())["spec"])["rayClusterSpec"]
    (dockerfile,) = blocks("dockerfile")
    (tmp_path / "config.toml").write_text(blocks("toml")[2])
    config = sa.Config.from_toml(tmp_path / "config.toml")
    assert isinstance(config.deployment, sa.Ray) and config.deployment.address == "auto"
    (workers,) = cluster["workerGroupSpecs"]
    (container,) = workers["template"]["spec"]["containers"]
    assert workers["replicas"] * int(container["resources"]["requests"]["cpu"]) == config.deployment.workers
    version = cluster["rayVersion"]
    assert f"FROM rayproject/ray:{version}-py311\n" in dockerfile
    assert f"\nray=={version}\n" in (ROOT / "constraints.txt").read_text()
    command = shlex.split(job["entrypoint"])
    assert command[:3] == ["streamactors", "run", "my_orders:live"]
    assert CliRunner().invoke(app, [*command[1:2], "--help"]).exit_code == 0
    copied = re.search(r"^COPY (.+) /app/$", dockerfile, re.MULTILINE)
    assert copied is not None and copied[1].split() == ["my_orders.py", "config.toml"]
    assert command[3:5] == ["--config", "/app/config.toml"] and "ENV PYTHONPATH=/app" in dockerfile
