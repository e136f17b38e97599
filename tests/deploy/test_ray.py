"""Jobs on a real Ray of several nodes: the same results, whoever is killed."""

import json
import os
import re
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.programs import Program

pytestmark = [pytest.mark.ray, pytest.mark.slow]

PATIENCE = 120.0
"""Seconds for what takes a few on an idle machine."""
HERE = Path(__file__).parent
WORKER, COORDINATOR = "ray::StreamactorsWorker", "ray::StreamactorsCoordinator"


def until(condition: Callable[[], object], what: str, *programs: Program) -> None:
    give_up = time.monotonic() + PATIENCE
    while not condition():
        told = "\n".join(f"{program.stdout}\n{program.stderr}" for program in programs)
        assert all(program.alive for program in programs), f"ended before {what}:\n{told}"
        assert time.monotonic() < give_up, f"still not {what}:\n{told}"
        time.sleep(0.02)


def processes_under(pid: int) -> dict[int, str]:
    """Command lines of all that it has started, directly or not."""
    parents: dict[int, int] = {}
    for each in Path("/proc").iterdir():
        if each.name.isdigit():
            try:
                parents[int(each.name)] = int((each / "stat").read_text().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue  # it has just ended
    found, below = {}, [pid]
    while below:
        parent = below.pop()
        for child in [child for child, its in parents.items() if its == parent]:
            below.append(child)
            try:
                found[child] = Path(f"/proc/{child}/cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
            except (FileNotFoundError, ProcessLookupError):
                continue
    return found


@dataclass(frozen=True)
class Nodes:
    program: Program
    address: str
    raylets: list[int]
    environ: dict[str, str]

    def pids(self, title: str) -> list[int]:
        return [pid for pid, command in processes_under(self.program.pid).items() if command.startswith(title)]

    def kill(self, title: str) -> None:
        """One of them, which may just be replaced by another."""

        def killed() -> bool:
            for pid in self.pids(title)[:1]:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    return True
            return False

        until(killed, f"a {title} is killed")


@pytest.fixture(scope="module")
def environ() -> Iterator[dict[str, str]]:
    """Sockets need a short path; and nothing listens but on the loopback."""
    with short_folder() as folder:
        yield {"RAY_TMPDIR": folder, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}


@contextmanager
def short_folder() -> Iterator[str]:
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)  # a log may still be written


@pytest.fixture(scope="module")
def nodes(environ: dict[str, str]) -> Iterator[Nodes]:
    with Program(str(HERE / "ray_nodes.py"), "3", cwd=HERE, environ=environ) as program:
        until(lambda: program.stdout.endswith("\n"), "the cluster is up", program)
        address, *raylets = program.stdout.split()
        yield Nodes(program, address, [int(pid) for pid in raylets], environ)
        program.signal(signal.SIGTERM)
        program.end()


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
    shop.order(200)
    with shop.start() as driver:
        shop.all_counted(driver)
        driver.signal(signal.SIGTERM)
        assert driver.end() == 0, driver.stderr
    until(lambda: not nodes.pids(WORKER) and not nodes.pids(COORDINATOR), "nothing is left of it")
    assert shop.totals == shop.expected


def told_by(scene: str, folder: Path, environ: dict[str, str]) -> dict[str, str]:
    with Program(str(HERE / "ray_handle.py"), scene, str(folder), cwd=folder, environ=environ) as program:
        until(lambda: not program.alive or "}\n" in program.stdout, f"{scene} is told")
        assert program.end() == 0, program.stderr
    told: dict[str, str] = json.loads(next(line for line in program.stdout.splitlines() if line.startswith("{")))
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


# The last one: the cluster is smaller afterwards.
def test_it_goes_on_when_a_node_is_lost(nodes: Nodes, tmp_path: Path) -> None:
    shop = Shop(tmp_path, nodes, {})
    shop.order(300)
    with shop.start() as driver:
        shop.all_counted(driver)
        with_worker = [pid for pid in nodes.raylets if any(WORKER in title for title in processes_under(pid).values())]
        shop.order(200)
        os.kill(with_worker[0], signal.SIGKILL)
        shop.order(200)
        shop.all_counted(driver)
        driver.signal(signal.SIGTERM)
        assert driver.end() == 0, driver.stderr
    assert shop.totals == shop.expected
