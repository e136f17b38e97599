"""The registry of running jobs: who is found, who is gone, and which folders are not trusted."""

import fcntl
import os
import socket
import stat
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path

import pytest

from streamactors.errors import AmbiguousJob, ControlUnavailable, NoSuchJob
from streamactors.observe import registry
from streamactors.observe.registry import Entry, RunningJob
from tests.programs import ROOT

ENTRY = Entry(flow="orders", pid=os.getpid(), started_ms=7, storage="file:///stored", target="jobs:flow")


def names(folder: Path) -> list[str]:
    return sorted(path.suffix for path in folder.iterdir())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def found() -> list[RunningJob]:
    jobs, refused = registry.running()
    assert refused == []
    return jobs


def test_a_job_is_found_for_as_long_as_it_runs(registry_folder: Path) -> None:
    assert found() == []
    with registry.place("0123456789") as place, place.listen() as listener:
        assert found() == []  # it does not answer yet
        place.publish(ENTRY)
        (job,) = found()
        assert job.entry == ENTRY and job.socket == listener.getsockname()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(job.socket)
    assert found() == [] and names(registry_folder) == []


def test_nobody_else_can_look_or_connect(registry_folder: Path) -> None:
    before = os.umask(0)
    try:
        with registry.place("0123456789") as place, place.listen():
            place.publish(ENTRY)
            assert mode(registry_folder) == 0o700
            assert {mode(path) for path in registry_folder.iterdir()} == {0o600}
    finally:
        os.umask(before)


def leave_stale(folder: Path, name: str, content: bytes) -> None:
    """As a killed process does."""
    folder.mkdir(mode=0o700, exist_ok=True)
    (folder / f"{name}.json").write_bytes(content)
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(folder / f"{name}.sock"))


@pytest.mark.parametrize("content", [b"", b"{", b'{"flow": "orders", "pid": 1, "started_ms": 1}'])
def test_what_a_killed_job_has_left_is_removed(registry_folder: Path, content: bytes) -> None:
    leave_stale(registry_folder, "1-abc", content)
    assert found() == [] and names(registry_folder) == []


def test_the_next_job_removes_it_too(registry_folder: Path) -> None:
    leave_stale(registry_folder, "1-abc", b"")
    with registry.place("0123456789"):
        assert names(registry_folder) == [".json"]  # its own


def test_an_entry_that_is_taken_for_stale_while_it_is_made_is_made_again(
    registry_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = fcntl.flock
    entries: list[int] = []

    def lock_late(file: int, how: int) -> None:
        if how == fcntl.LOCK_EX:
            entries.append(file)
            if len(entries) == 1:
                assert found() == []  # somebody looks before the lock is taken
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", lock_late)
    with registry.place("0123456789") as place, place.listen():
        place.publish(ENTRY)
        assert len(entries) == 2
        assert [job.entry for job in found()] == [ENTRY]


def test_whoever_looked_before_that_removes_nothing(registry_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has opened the entry that was removed, and goes on when there is another of the same name."""
    lock, opened = fcntl.flock, list[int]()

    def lock_late(file: int, how: int) -> None:
        if how == fcntl.LOCK_EX and not opened:
            [entry] = registry_folder.iterdir()
            opened.append(os.open(entry, os.O_RDONLY))
            assert found() == []  # another looks, and removes it
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", lock_late)
    with registry.place("0123456789") as place, place.listen():
        place.publish(ENTRY)
        [entry] = registry_folder.glob("*.json")
        with registry._opened(registry_folder, create=False) as directory, monkeypatch.context() as late:
            late.setattr(os, "open", lambda *args, **options: opened[0])
            assert registry._read(registry_folder, directory, entry.name) is None
        assert [job.entry for job in found()] == [ENTRY]


FORKS = """
import os, signal, sys
from streamactors.observe import registry

with registry.place("0123456789") as place, place.listen():
    place.publish(registry.Entry(flow="orders", pid=os.getpid(), started_ms=7))
    if os.fork() == 0:
        place.withdraw()  # whatever a child does: the files are not its own
        print("forked", flush=True)
        sys.stdin.read()  # outlives its parent, until the test closes the pipe
        os._exit(0)
    signal.pause()
"""


@pytest.mark.kill
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_forked_child_does_not_keep_a_dead_job_alive(registry_folder: Path) -> None:
    """Such as a worker of a process pool that was orphaned by SIGKILL."""
    with subprocess.Popen(
        [sys.executable, "-c", FORKS], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == b"forked\n"
        assert [job.entry.pid for job in found()] == [process.pid]
        process.kill()
        process.wait()
        assert found() == [] and names(registry_folder) == []


def test_files_of_others_in_the_folder_are_left_alone(registry_folder: Path) -> None:
    registry_folder.mkdir(mode=0o700)
    (registry_folder / "notes.txt").touch()
    assert found() == [] and names(registry_folder) == [".txt"]


# ------------------------------------------------------------------------------------------------------------- folders
@pytest.fixture
def temporary(registry_folder: Path) -> Path:
    return Path(tempfile.gettempdir()) / f"streamactors-{os.geteuid()}"


def refusal() -> str:
    """Why the session's folder is not used; the job goes to the temporary one, and is found there."""
    with registry.place("0123456789") as place, place.listen() as listener:
        place.publish(ENTRY)
        jobs, refused = registry.running()
        assert [job.socket for job in jobs] == [listener.getsockname()]
        assert Path(jobs[0].socket).is_relative_to(tempfile.gettempdir())
    (reason,) = refused
    return reason


def test_a_folder_open_to_others_is_refused(registry_folder: Path) -> None:
    registry_folder.mkdir()
    registry_folder.chmod(0o750)
    assert "is open to other users (mode 750): chmod 700" in refusal()
    assert names(registry_folder) == []


def test_a_folder_of_another_user_is_refused(registry_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry_folder.mkdir(mode=0o700)
    another = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: another)
    with pytest.raises(ControlUnavailable) as refused, registry.place("0123456789"):
        pass
    assert f"{registry_folder} belongs to another user" in str(refused.value)
    jobs, (reason, _) = registry.running()
    assert jobs == [] and "belongs to another user" in reason


@pytest.mark.parametrize(
    ("mode", "owner", "refused"),
    [(0o700, 54321, True), (0o755, 0, False), (0o700, os.geteuid(), False), (0o1777, 54321, False)],
)
def test_who_may_own_a_parent(mode: int, owner: int, refused: bool) -> None:
    """XDG_RUNTIME_DIR is that of the user before, after a plain `su`."""
    found = os.stat_result((stat.S_IFDIR | mode, 1, 1, 1, owner, 1, 1, 1, 1, 1))
    with pytest.raises(ControlUnavailable, match="belongs to another user") if refused else nullcontext():
        registry._check_parent(Path("/run/user/54321"), found)


def test_a_link_is_not_followed(registry_folder: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    registry_folder.symlink_to(tmp_path)
    assert "is a link" in refusal()
    assert names(tmp_path) == []


def test_an_entry_that_is_a_link_is_not_followed(registry_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "target").write_text("content")
    registry_folder.mkdir(mode=0o700)
    (registry_folder / "1-abc.json").symlink_to(tmp_path / "target")
    jobs, (reason,) = registry.running()
    assert jobs == [] and "1-abc.json" in reason
    assert (tmp_path / "target").read_text() == "content"


def test_a_parent_in_which_everybody_may_replace_things_is_refused(registry_folder: Path) -> None:
    registry_folder.parent.chmod(0o777)
    assert "chmod +t" in refusal()
    registry_folder.parent.chmod(0o1777)
    with registry.place("0123456789"):
        assert names(registry_folder) == [".json"]


def test_a_path_too_long_for_a_socket_is_not_used(
    registry_folder: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = registry_folder.parent / ("a" * 90)
    long.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(long))
    with registry.place("0123456789") as place, place.listen() as listener:
        assert Path(listener.getsockname()).parent == temporary
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with pytest.raises(ControlUnavailable, match="too long for a socket's path"), registry.place("0123456789"):
        pass


def test_the_sessions_folder_is_enough_where_nothing_temporary_can_be_written(
    registry_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none() -> str:
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    with registry.place("0123456789") as place, place.listen():
        place.publish(ENTRY)
        jobs, _ = registry.running()
        assert [Path(job.socket).parent for job in jobs if job.entry == ENTRY] == [registry_folder]


def test_a_job_started_outside_the_session_is_found_from_inside(
    registry_folder: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as outside:
        outside.delenv("XDG_RUNTIME_DIR")
        place = registry.place("0123456789")
        job = place.__enter__()
    job.publish(ENTRY)
    assert [Path(job.socket).parent for job in found()] == [temporary]
    place.__exit__(None, None, None)


# ------------------------------------------------------------------------------------------------------------- choosing
def job_of(flow: str, pid: int, storage: str) -> RunningJob:
    return RunningJob(Entry(flow=flow, pid=pid, started_ms=pid, storage=storage), f"/run/{pid}.sock")


ORDERS = [job_of("orders", 11, "file:///a"), job_of("orders", 12, "file:///b")]
USERS = job_of("users", 13, "file:///c")


@pytest.mark.parametrize(("wanted", "pid"), [("users", 13), ("11", 11), ("file:///b", 12)])
def test_a_job_is_known_by_name_process_and_storage(wanted: str, pid: int) -> None:
    assert registry.find(wanted, [*ORDERS, USERS]).entry.pid == pid


def test_a_storage_may_be_told_as_it_was_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    jobs = [USERS, job_of("orders", 11, (tmp_path / "stored").as_uri())]
    for typed in (str(tmp_path / "stored"), "./stored", "../" + tmp_path.name + "/stored/"):
        assert registry.find(typed, jobs).entry.pid == 11
    for typed in ("stored", "./other", "x://stored"):  # a name is none of a folder
        with pytest.raises(NoSuchJob, match="there is no job"):
            registry.find(typed, jobs)


def test_the_only_job_needs_no_name() -> None:
    assert registry.find(None, [USERS]) is USERS


@pytest.mark.parametrize(
    ("wanted", "jobs", "told"),
    [
        (None, [], "no job runs here"),
        ("orders", [], "job 'orders' does not run here"),
        ("visits", [USERS], "no job 'visits'. What runs:\n  users (pid 13, storage file:///c)"),
        (None, [*ORDERS, USERS], "several jobs run"),
        ("orders", [*ORDERS, USERS], "2 jobs are called 'orders'"),
    ],
)
def test_who_is_meant_must_be_clear(wanted: str | None, jobs: list[RunningJob], told: str) -> None:
    with pytest.raises(NoSuchJob) as refused:
        registry.find(wanted, jobs)
    assert told in str(refused.value)
    assert isinstance(refused.value, AmbiguousJob) == told.startswith(("several", "2 jobs"))
    if wanted == "orders" and jobs:
        assert "pid 11" in str(refused.value) and "pid 13" not in str(refused.value)
