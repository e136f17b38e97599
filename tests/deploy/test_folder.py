"""Processes of a job work where it was started."""

import os
from pathlib import Path

import pytest

from streamactors.deploy.folder import go_to


@pytest.fixture(autouse=True)
def back_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_relative_paths_mean_the_same(tmp_path: Path) -> None:
    (tmp_path / "orders").mkdir()
    go_to(str(tmp_path / "orders"))
    assert Path(os.getcwd()).samefile(tmp_path / "orders")


def test_a_node_without_the_folder_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    go_to(str(tmp_path / "gone"))
    assert Path(os.getcwd()).samefile(tmp_path)
    assert f"can't work in {tmp_path / 'gone'}, where the job was started" in caplog.text
    assert f"lie below {os.getcwd()} here" in caplog.text
