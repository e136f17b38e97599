"""Jobs on a real Ray of several nodes: the same results, whoever is killed."""

import json
import os
import platform
import re
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.deploy.ray_cluster import COORDINATOR, DETACHED, HERE, WORKER, Nodes, processes_under, short_folder, until
from tests.programs import Program

pytestmark = [pytest.mark.ray, pytest.mark.slow]

PAGE = (HERE.parents[1] / "docs" / "scale-out.md").read_text()
TOLD = re.findall(r"^\$ streamactors run --detach .*\n((?:.+\n)+?)```", PAGE, re.MULTILINE)[0]
"""What the document says that is printed."""


class Shop:
    """The script's job, its orders and the totals that are visible."""

    def __init__(self, folder: Path, nodes: Nodes, environ: dict[str, str]) -> None:
        self.folder = folder
        self.environ = nodes.environ | {"CLUSTER": nodes.address, "SHOP": str(folder)} | environ
        self.ordered: Counter[str] = Counter()

    def order(self, count: int) -> None:
        customers = [f"c{number % 7}" for number in range(count)]
        self.ordered.update(customers)
        with (self.folder / "orders.jsonl").open("a") as file:
            file.writelines(json.dumps({"customer": customer}) + "\n" for customer in customers)

    def start(self) -> Program:
        return Program(str(HERE / "shop.py"), cwd=self.folder, environ=self.environ)

    def command(self, *args: str) -> Program:
        """Of `streamactors`, as by somebody of another machine: who has no registry of this one's jobs."""
        elsewhere = self.folder / "elsewhere"
        elsewhere.mkdir(mode=0o700, exist_ok=True)
        away = {"XDG_RUNTIME_DIR": str(elsewhere), "TMPDIR": str(elsewhere)}
        return Program("-m", "streamactors", *args, cwd=HERE, environ=self.environ | away)

    def detach(self, restart: str, *options: str) -> Program:
        storage = (self.folder / "checkpoints").as_uri()
        checkpoints = ("--storage", storage, "--interval", "300ms", "--set", f"restart.strategy={restart}")
        ray = ("deployment=ray", "ray.workers=2", f"ray.address={self.environ['CLUSTER']}")
        settings = [option for setting in ray for option in ("--set", setting)]
        return self.command("run", "--detach", "--quiet", "shop:flow", *settings, *checkpoints, *options)

    def knows(self, *args: str) -> bool:
        with self.command(*args, "--ray", self.environ["CLUSTER"]) as program:
            return program.end() == 0

    def told(self, *args: str) -> dict[str, Any]:
        """By a command that finds the job through the cluster."""
        with self.command(*args, "--json", "--ray", self.environ["CLUSTER"]) as program:
            assert program.end() == 0, program.stderr
        told: dict[str, Any] = json.loads(program.stdout)
        return told

    @property
    def totals(self) -> list[tuple[str, int]]:
        parts = [path for path in self.folder.glob("totals/*") if not path.name.startswith(".")]
        lines = [json.loads(line) for path in parts for line in path.read_text().splitlines()]
        return sorted((line["customer"], line["orders"]) for line in lines)

    @property
    def expected(self) -> list[tuple[str, int]]:
        return sorted((customer, total + 1) for customer, orders in self.ordered.items() for total in range(orders))

    def all_counted(self, program: Program) -> None:
        until(lambda: len(self.totals) >= self.ordered.total(), "all is counted", program)
        assert self.totals == self.expected


@pytest.mark.parametrize(
    "environ_of_job",
    [{}, {"ALIGNMENT": "unaligned", "STREAMACTORS_STATE_BACKEND": "rocksdb"}],
    ids=["aligned-heap", "unaligned-rocksdb"],
)
def test_nothing_is_lost_or_doubled_whoever_is_killed(
    nodes: Nodes, tmp_path: Path, environ_of_job: dict[str, str]
) -> None:
    shop = Shop(tmp_path, nodes, environ_of_job)
    shop.order(300)
    with shop.start() as driver:
        shop.all_counted(driver)
        for victim in (WORKER, COORDINATOR):
            shop.order(200)
            nodes.kill(victim)
            shop.order(200)
            shop.all_counted(driver)
        shop.order(200)
        driver.signal(signal.SIGKILL)
    until(lambda: not nodes.pids(WORKER) and not nodes.pids(COORDINATOR), "the job has ended with its driver")
    assert "may live on" not in driver.stderr, "a worker was waited for that was killed on a node that lives"
    shop.order(200)
    with shop.start() as driver:
        shop.all_counted(driver)
        driver.signal(signal.SIGTERM)
        assert driver.end() == 0, driver.stderr
    until(lambda: not nodes.pids(WORKER) and not nodes.pids(COORDINATOR), "nothing is left of it")
    assert shop.totals == shop.expected


def test_a_detached_job_outlives_its_driver_and_its_coordinators(nodes: Nodes, tmp_path: Path) -> None:
    shop = Shop(tmp_path, nodes, {})
    shop.order(200)
    options = ("--set", "restart.delay=0s", "--set", "restart.attempts=100")
    with shop.detach("fixed", *options) as driver:
        assert driver.end() == 0, driver.stderr
    assert driver.stdout == TOLD.replace("orders", "shop").replace(" auto", f" {nodes.address}")
    shop.all_counted(nodes.program)
    for victim, how in ((DETACHED, signal.SIGKILL), (WORKER, signal.SIGKILL), (DETACHED, signal.SIGSTOP)):
        shop.order(200)
        nodes.kill(victim, how)
        shop.order(200)
        shop.all_counted(nodes.program)
    with shop.detach("fixed", *options) as driver:
        assert driver.end() == 2
    assert "'shop' runs on this cluster already" in driver.stderr
    savepoint = (tmp_path / "savepoint").as_uri()
    assert shop.told("savepoint", "shop", savepoint)["uri"] == savepoint
    shop.order(200)
    ended = shop.told("stop", "shop")
    assert ended["status"] == "finished" and shop.totals == shop.expected
    until(lambda: not nodes.pids(WORKER) and not nodes.pids(DETACHED), "nothing is left of it")
    last = shop.told("status", "shop")
    assert (last["status"], last["error"], last["last_checkpoint"]) == ("finished", None, ended["checkpoint"])


def test_a_detached_job_that_could_not_go_on_says_so(nodes: Nodes, tmp_path: Path) -> None:
    shop = Shop(tmp_path, nodes, {})
    shop.order(20)
    with shop.detach("none", "--restore", (tmp_path / "nowhere").as_uri()) as driver:
        assert driver.end() != 0
    assert "nowhere" in driver.stderr
    until(lambda: not nodes.pids(WORKER) and not nodes.pids(DETACHED), "nothing is left of it")
    with shop.detach("none") as driver:
        assert driver.end() == 0, driver.stderr
    shop.all_counted(nodes.program)
    nodes.kill(DETACHED)
    until(lambda: not nodes.pids(WORKER) and not nodes.pids(DETACHED), "it is gone for good")
    until(lambda: shop.knows("status", "shop"), "the cluster knows that it is gone")
    told = shop.told("status", "shop")
    assert told["status"] == "failed" and "was killed, or has died where restarts" in told["error"]


def test_who_is_interrupted_while_detaching_leaves_nothing(nodes: Nodes, tmp_path: Path) -> None:
    shop = Shop(tmp_path, nodes, {})
    shop.order(20)
    with shop.detach("none") as driver:
        until(lambda: nodes.pids(DETACHED) or not driver.alive, "there is a coordinator")
        driver.signal(signal.SIGINT)
        code = driver.end()
    if "nothing of it is left on the cluster" in driver.stderr:
        assert code == 130
    else:  # it ran already
        assert shop.told("stop", "shop")["status"] == "finished"
    until(lambda: not nodes.pids(WORKER) and not nodes.pids(DETACHED), "nothing is left of it")


def told_by(scene: str, folder: Path, environ: dict[str, str]) -> dict[str, Any]:
    with Program(str(HERE / "ray_handle.py"), scene, str(folder), cwd=folder, environ=environ) as program:
        until(lambda: not program.alive or "}\n" in program.stdout, f"{scene} is told")
        assert program.end() == 0, program.stderr
    told: dict[str, Any] = json.loads(next(line for line in program.stdout.splitlines() if line.startswith("{")))
    return told


def lines_in(folder: Path) -> list[int]:
    parts = [path for path in folder.iterdir() if not path.name.startswith(".")]
    return sorted(int(line) for path in parts for line in path.read_text().splitlines())


def sums(values: range) -> list[int]:
    """Running totals by the remainder of 4."""
    totals: Counter[int] = Counter()
    found = []
    for value in values:
        totals[value % 4] += value
        found.append(totals[value % 4])
    return sorted(found)


def test_a_handle_has_everything_that_it_has_in_one_process(nodes: Nodes, tmp_path: Path) -> None:
    told = told_by("handle", tmp_path, nodes.environ | {"CLUSTER": nodes.address})
    assert told == {
        "query": sum(range(1, 100, 4)),
        "subtasks": ["in[0]", "in[1]", "sum[0]", "sum[1]"],
        "savepoint": (tmp_path / "savepoint").as_uri(),
        "rescaled": 4,
        "subscribed": sum(range(0, 100, 4)) + 1000,
        "stopped": told["stopped"],
        "status": "finished",
        "restarts": 0,
    }
    assert lines_in(tmp_path / "out") == sorted([*sums(range(100)), sum(range(0, 100, 4)) + 1000])


def test_it_is_rescaled_by_itself_and_outlives_a_worker_then(nodes: Nodes, tmp_path: Path) -> None:
    told = told_by("autoscaled", tmp_path, nodes.environ | {"CLUSTER": nodes.address})
    assert told == {"status": "finished", "restarted": True, "numbers": told["numbers"]}
    assert lines_in(tmp_path / "out") == sums(range(told["numbers"]))


def test_what_is_collected_comes_to_the_driver_once(nodes: Nodes, tmp_path: Path) -> None:
    told = told_by("collected", tmp_path, nodes.environ | {"CLUSTER": nodes.address})
    assert told == {"values": list(range(1000))}
    until(lambda: not nodes.pids(WORKER) and not nodes.pids("ray::StreamactorsCollector"), "nothing is left of it")


def test_what_a_cluster_refuses_is_named(nodes: Nodes, tmp_path: Path) -> None:
    told = told_by("refusals", tmp_path, nodes.environ | {"CLUSTER": nodes.address})
    assert re.match(
        "JobFailed: .*operator 'sum' failed, key 3, record .*in.jsonl:2: ValueError: -1 is negative", told["failing"]
    )
    assert re.match("ClusterUnfit: 50 workers with CPU=1 each don't fit: there is room for ", told["too small"])
    assert re.match(
        "ClusterUnfit: 2 workers with CPU=1, GPU=1 each don't fit: there is room for 0", told["no such resource"]
    )
    assert re.match("ClusterUnfit: the flow's own code .*'only_in_the_driver'", told["not there"])
    assert re.match("InvalidConfig: the job 'summing' runs on this cluster already", told["twice"])


@contextmanager
def other_node(nodes: Nodes, packages: Path, *, cpus: int = 0) -> Iterator[Program]:
    other = (str(HERE / "ray_other_node.py"), nodes.address, str(packages), str(cpus))
    with Program(*other, cwd=HERE, environ=nodes.environ) as node:
        try:
            yield node
        finally:  # else its processes would outlive it
            node.signal(signal.SIGTERM)
            node.end()


def test_a_node_with_another_version_of_a_package_is_named(nodes: Nodes, tmp_path: Path) -> None:
    information = tmp_path / "packages" / "msgspec-99.9.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: msgspec\nVersion: 99.9\n")
    with other_node(nodes, information.parent):
        told = told_by("other versions", tmp_path, nodes.environ | {"CLUSTER": nodes.address})
    here = re.escape(f"msgspec {msgspec.__version__} on node {platform.node()!r}: install the same on every node")
    who = r"(worker \d|the coordinator) runs with msgspec 99\.9 on node '.*', and (the coordinator|its driver) with "
    assert re.search(f"{who}{here}", told["other"])
    until(lambda: not nodes.pids(WORKER) and not nodes.pids(COORDINATOR), "nothing is left of it")


def test_the_worker_whose_node_lacks_a_module_is_named(nodes: Nodes, tmp_path: Path) -> None:
    package = tmp_path / "packages" / "tests" / "deploy"
    package.mkdir(parents=True)
    for folder in (package.parent, package):
        (folder / "__init__.py").touch()
    with other_node(nodes, package.parents[1], cpus=2):
        told = told_by("not everywhere", tmp_path, nodes.environ | {"CLUSTER": nodes.address})
    who = r"(?:worker \d|the coordinator) on node '.+'"
    found = re.match(rf".*: the flow's own code can't be loaded by {who} \((.*?)\)", told["missing"])
    assert found is not None and found[1] == "No module named 'tests.deploy.prices'", told
    until(lambda: not nodes.pids(WORKER) and not nodes.pids(COORDINATOR), "nothing is left of it")


def test_room_is_waited_for_as_told(nodes: Nodes, tmp_path: Path) -> None:
    """That of a node to come, and that which others have; not beyond the patience."""
    environ = nodes.environ | {"CLUSTER": nodes.address}
    with (
        ExitStack() as added,
        Program(str(HERE / "ray_handle.py"), "room", str(tmp_path), cwd=HERE, environ=environ) as job,
    ):
        waits = r"2 workers with CPU=0, other=1 each don't fit: there is room for 0 .*; waiting"
        until(lambda: re.search(waits, job.stderr), "the first job waits for a node", job)
        added.enter_context(other_node(nodes, tmp_path))
        waits = r"counting: 2 of 2 workers with .* have not started: .*other=0 of 2.*; waiting"
        until(lambda: re.search(waits, job.stderr), "another one waits for what the first one has", job)
        added.enter_context(other_node(nodes, tmp_path))
        assert job.end() == 0, job.stderr
    told = json.loads(next(line for line in job.stdout.splitlines() if line.startswith("{")))["taken"]
    assert told.startswith(
        "JobFailed: job 'counting' failed: 2 of 2 workers with CPU=0, other=1 each have not started: "
    )
    assert "room for 0, and the rest is taken (free on the nodes: " in told and "other=0 of 2" in told
    assert told.endswith("| ClusterUnfit"), "it was tried again"
    assert lines_in(tmp_path / "counted") == [1, 2, 3]
    until(lambda: not nodes.pids(WORKER) and not nodes.pids(COORDINATOR), "nothing is left of it")


def test_what_ray_says_of_another_python_is_passed_on(nodes: Nodes, tmp_path: Path) -> None:
    told = told_by("another python", tmp_path, nodes.environ | {"CLUSTER": nodes.address})
    said = r"Version mismatch: .* Python: 3\.99\.0 .*: run the job with the cluster.s own Ray and Python"
    assert re.match(f"ClusterUnfit: ray.address = .*: {said}", told["python"])


def test_a_stop_by_a_signal_may_take_its_time(nodes: Nodes, tmp_path: Path) -> None:
    assert told_by("terminated", tmp_path, nodes.environ | {"CLUSTER": nodes.address}) == {"seconds": "0.0"}


def test_an_address_that_answers_nothing_is_refused(tmp_path: Path, environ: dict[str, str]) -> None:
    told = told_by("unreachable", tmp_path, environ)
    assert re.match("ClusterUnfit: ray.address = '127.0.0.1:1': no Ray cluster answers there", told["127.0.0.1:1"])
    assert re.match("ClusterUnfit: .*jobs don't run over Ray Client", told["ray://127.0.0.1:1"])


def test_a_ray_of_its_own_ends_with_the_job(tmp_path: Path) -> None:
    with short_folder() as folder:
        told_by("alone", tmp_path, {"RAY_TMPDIR": folder})
        assert lines_in(tmp_path / "out") == sums(range(1000))
        until(lambda: not [pid for pid in all_pids() if folder.encode() in command_line(pid)], "its processes are gone")


def all_pids() -> list[int]:
    return [int(each.name) for each in Path("/proc").iterdir() if each.name.isdigit()]


def command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def titles_under(raylet: int) -> set[str]:
    """Of workers and coordinators."""
    commands = processes_under(raylet).values()
    return {title for title in (WORKER, COORDINATOR) if any(command.startswith(title) for command in commands)}


# The last one: the cluster is smaller afterwards.
def test_it_goes_on_when_a_node_is_lost(nodes: Nodes, tmp_path: Path) -> None:
    shop = Shop(tmp_path, nodes, {})
    shop.order(300)
    with shop.start() as driver:
        shop.all_counted(driver)
        opened = r"\(worker-\d.*\).* INFO +streamactors\.operator totals\[\d\]: ready for orders\n"
        until(lambda: re.search(opened, driver.stderr), "what an operator logs has come to the driver", driver)
        victims = [pid for pid in nodes.raylets if titles_under(pid) == {WORKER}]
        shop.order(200)
        os.kill(victims[0], signal.SIGKILL)
        shop.order(200)
        shop.all_counted(driver)
        until(lambda: "is gone, or may live on" in driver.stderr, "its worker may not be dead", driver)
        driver.signal(signal.SIGTERM)
        assert driver.end() == 0, driver.stderr
    assert shop.totals == shop.expected
