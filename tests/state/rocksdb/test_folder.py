"""The folder of RocksDB's local files belongs to one process, and to no child of it."""

import subprocess
import sys
from pathlib import Path

import pytest

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
