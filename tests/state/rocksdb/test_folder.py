"""The folder of RocksDB's local files belongs to one process, and to no child of it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from streamactors.state.rocksdb import folder
from streamactors.state.rocksdb.folder import LocalFolder
from tests.programs import ROOT

FORKS = """
import os, signal, sys
from streamactors.state.rocksdb.folder import LocalFolder

folder = LocalFolder.make(sys.argv[1], lambda: "parent")
if os.fork() == 0:
    folder.delete()  # not the child's to delete
    os.write(1, b"forked\\n")
    sys.stdin.read()  # outlives its parent, until the test closes the pipe
    os._exit(0)
signal.pause()
"""


@pytest.mark.kill
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_forked_child_does_not_keep_the_folder_of_a_dead_process(tmp_path: Path) -> None:
    """Such as a worker of a process pool that was orphaned by SIGKILL."""
    with subprocess.Popen(
        [sys.executable, "-c", FORKS, str(tmp_path)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == b"forked\n"
        assert list(tmp_path.iterdir()) != []
        process.kill()
        process.wait()
        LocalFolder.make(str(tmp_path), lambda: "successor").delete()
        assert list(tmp_path.iterdir()) == []


class Died(BaseException):
    """Killed here: nothing more is done."""


def dies(monkeypatch: pytest.MonkeyPatch, module: object, name: str, after: int) -> None:
    """At the call after so many to it."""
    real: Callable[..., object] = getattr(module, name)
    left = after

    def call(*args: object, **options: object) -> object:
        nonlocal left
        left -= 1
        if left < 0:
            raise Died
        return real(*args, **options)

    monkeypatch.setattr(module, name, call)


def test_nothing_stays_of_one_that_was_killed_while_it_made_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        dies(patch, os, "open", 0)
        with pytest.raises(Died):
            LocalFolder.make(str(tmp_path), lambda: "killed")
    assert len(list(tmp_path.iterdir())) == 1
    LocalFolder.make(str(tmp_path), lambda: "successor").delete()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("removed", range(5))
def test_nothing_stays_of_one_that_was_killed_while_it_deleted_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, removed: int
) -> None:
    """Whatever had gone by then."""
    made = LocalFolder.make(str(tmp_path), lambda: "killed")
    for name in ("a", "z"):
        (made.path / name).mkdir()
        (made.path / name / "rows").write_bytes(b"rows")
        (made.path / f"{name}-file").write_bytes(b"rows")
    [lock] = made._lock
    with monkeypatch.context() as patch:
        dies(patch, os, "unlink", removed)
        with pytest.raises(Died):
            made.delete()
    os.close(lock)
    LocalFolder.make(str(tmp_path), lambda: "successor").delete()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("locked", [False, True])
def test_a_folder_that_another_takes_for_left_behind_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locked: bool
) -> None:
    """Who sweeps came before the lock's file was there, or before it was locked."""
    real, tokens = folder._acquire, iter(["first", "second", "third"])
    swept = False

    def acquire(path: Path, *, create: bool) -> int | None:
        nonlocal swept
        if create and not swept:
            swept = True
            if locked:
                path.touch()
            folder._sweep(tmp_path)
            if locked:
                shutil.rmtree(path.parent, ignore_errors=True)
        return real(path, create=create)

    monkeypatch.setattr(folder, "_acquire", acquire)
    made = LocalFolder.make(str(tmp_path), lambda: next(tokens))
    assert swept and [path.name for path in tmp_path.iterdir()] == [made.path.name] == ["streamactors-state-second"]
    made.delete()
    assert list(tmp_path.iterdir()) == []
