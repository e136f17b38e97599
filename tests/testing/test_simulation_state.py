"""State in the simulation: RocksDB that is real and decides nothing, savepoints, going back, files that are left."""

import datetime as dt
import random
from collections import Counter
from pathlib import Path

import pytest

import streamactors as sa
from streamactors.checkpoint import manifest
from streamactors.checkpoint.manifest import FileHandle, KeyedHandle, Manifest, NodeState, SubtaskState
from streamactors.testing import Faults, SimulationResult, simulate
from streamactors.testing.simulation import MODES, TOPOLOGIES, local_state, scenario
from streamactors.testing.simulation.broker import Broker
from streamactors.testing.simulation.disk import File, Folder
from streamactors.testing.simulation.leaks import leaked
from streamactors.testing.simulation.timeline import SAVEPOINTS, Timeline
from tests.testing import simulated_flows as flows

pytestmark = pytest.mark.slow


def run_on_disk(topology: str, mode: str, seed: int) -> SimulationResult:
    made = scenario(topology, mode)
    return simulate(made, seed=seed, faults=Faults.from_options("backends=rocksdb", made.faults))


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where simulated processes have their local files."""
    monkeypatch.setattr(local_state, "IN_MEMORY", str(tmp_path))
    return tmp_path


# -------------------------------------------------------------------------------------------------------------- RocksDB
def test_with_rocksdb_too_a_seed_gives_the_same_run() -> None:
    hashes = [
        [run_on_disk(topology, list(MODES)[place % len(MODES)], place).trace_hash for place, topology in of_all]
        for of_all in [list(enumerate(TOPOLOGIES))] * 2
    ]
    assert hashes[0] == hashes[1]


def test_checkpoints_cross_backends_and_share_files(local: Path) -> None:
    counts = Counter[str]()
    for seed in range(12):
        result = simulate(scenario("pipeline", list(MODES)[seed % len(MODES)]), seed=seed)
        counts.update({"switches": result.backend_switches, "reused": result.reused_files})
    assert counts["switches"] > 1 and counts["reused"] > 5
    assert list(local.iterdir()) == [], "local state outlives its run"


def test_rocksdb_as_configured_is_simulated_too(local: Path) -> None:
    config = sa.Config(
        checkpoints=sa.Checkpoints("file:///simulation", interval=dt.timedelta(seconds=0.1)),
        restart=sa.Restart.exponential(),
        state_backend="rocksdb",
        max_parallelism=8,
    )
    results = [simulate(flows.totals, seed=seed, config=config) for seed in range(12)]
    assert sum(result.restores for result in results) > 2
    assert list(local.iterdir()) == []


# ----------------------------------------------------------------------------------------------- savepoints, going back
def test_savepoints_are_taken_and_gone_back_to() -> None:
    counts = Counter[str]()
    for seed in range(16):
        result = simulate(scenario("two-input", list(MODES)[seed % len(MODES)]), seed=seed)
        counts.update({"savepoints": result.savepoints, "rewinds": result.faults.get("rewinds", 0)})
    assert counts["savepoints"] > 1 and counts["rewinds"] > 1


def complete(root: Folder, folder: str, checkpoint: int, *names: str) -> Manifest:
    """A checkpoint's folder with empty files of these names."""
    at = root
    for part in folder.strip("/").split("/"):
        at.names.setdefault(part, Folder())
        found = at.names[part]
        assert isinstance(found, Folder)
        at = found
    at.names.update({name: File() for name in ("manifest", *names)})
    return Manifest(
        flow="flow", run=1, attempt=1, checkpoint=checkpoint, time_ms=0, operators=(), subtasks=(), requires=()
    )


def test_only_what_is_of_this_history_and_decided_is_gone_back_to() -> None:
    root = Folder()
    timeline = Timeline(root)
    timeline.attempt_begins()
    for checkpoint in (1, 2, 3):
        folder = f"/simulation/chk-{checkpoint}"
        names = ["committed"] if checkpoint < 3 else []
        timeline.published(complete(root, folder, checkpoint, *names), f"{folder}/manifest")
    savepoint = timeline.new_savepoint()
    timeline.published(complete(root, f"{SAVEPOINTS}/1", 4), f"{SAVEPOINTS}/1/manifest")
    assert possible(timeline) == {1, 2, 3}, "nobody was told of the savepoint yet"
    timeline.told(savepoint)
    assert possible(timeline) == {1, 2, 3, 4}
    timeline.attempt_begins()
    assert possible(timeline) == {1, 2}, "what the others list, the start that came since has fenced"
    draw = random.Random(1)
    while (start := timeline.go_back(draw)) is not None and start.checkpoint != 1:
        pass
    assert possible(timeline) == {1}, "what came after it is of another history now"


def possible(timeline: Timeline) -> set[int]:
    return {number for folder, (number, _) in timeline._published.items() if timeline._possible(folder)}


def test_going_back_takes_what_came_later_out_of_the_log() -> None:
    broker = Broker()
    for checkpoint in (1, 2):
        session = broker.init_producer(f"id-{checkpoint}", 60, now=0)
        broker.append("out", [checkpoint], session, now=0)
        broker.prepared(session, checkpoint)
        broker.end(session, commit=True, now=0)
    open_one = broker.init_producer("id-3", 60, now=0)
    broker.append("out", [3], open_one, now=0)
    broker.append("out", [0], None, now=0)
    broker.go_back(1)
    assert broker.read_committed("out") == [1, 0] and broker.undecided("out") == [3]


def test_a_flow_of_a_users_own_survives_rewinds() -> None:
    faults = Faults(rewinds=4, kills=6)
    results = [simulate(flows.totals, seed=seed, faults=faults) for seed in range(20)]
    assert sum(result.faults.get("rewinds", 0) for result in results) > 2


# -------------------------------------------------------------------------------------------------------- what is left
def flow_folder(*paths: str, retained: int = 1) -> Folder:
    root = Folder()
    handle = FileHandle("run-1/attempt-1/chk-1/0001-state", 0, b"0" * 16)
    node = NodeState("count", keyed=(KeyedHandle(handle, ()),))
    for checkpoint in range(2, 2 + retained):
        content = Manifest(
            flow="flow",
            run=1,
            attempt=1,
            checkpoint=checkpoint,
            time_ms=0,
            operators=(),
            subtasks=(SubtaskState("count", 0, (node,)),),
            requires=(),
        )
        put(root, f"run-1/attempt-1/chk-{checkpoint}/manifest", manifest.encode_manifest(content))
    for path in ("owner.lock", "used-7", "run-1/epoch", "run-1/attempt-1/widest", handle.path, *paths):
        put(root, path, b"")
    return root


def put(root: Folder, path: str, content: bytes) -> None:
    *folders, name = path.split("/")
    at = root
    for part in folders:
        found = at.names.setdefault(part, Folder())
        assert isinstance(found, Folder)
        at = found
    at.names[name] = File(bytearray(content), content)


def test_what_retained_checkpoints_refer_to_is_no_leak() -> None:
    assert leaked(flow_folder("run-1/attempt-1/chk-2/committed", "run-1/base.committed"), 1) == []


@pytest.mark.parametrize(
    "path",
    ["run-1/attempt-1/chk-1/0002-state", "run-1/attempt-1/chk-3/0001-state", "run-1/attempt-1/chk-3/.manifest.1.tmp"],
)
def test_what_nobody_refers_to_is_a_leak(path: str) -> None:
    assert leaked(flow_folder(path), 1) == [path]


def test_more_checkpoints_than_are_retained_are_a_leak() -> None:
    assert leaked(flow_folder(retained=3), 3) == []
    assert leaked(flow_folder(retained=3), 2) == [f"run-1/attempt-1/chk-{number}" for number in (2, 3, 4)]
    assert leaked(flow_folder("run-1/base", retained=3), 2) == []
