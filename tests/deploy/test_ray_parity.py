"""The same flow, unchanged, gives the same on a real Ray as in one process."""

from collections import Counter
from pathlib import Path

import pytest

from tests.deploy.ray_cluster import HERE
from tests.programs import Program

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def results(folder: Path) -> dict[str, Counter[str]]:
    """By sink."""
    return {
        sink.name: Counter(line for part in sink.glob("[!.]*") for line in part.read_text().splitlines())
        for sink in folder.iterdir()
    }


def test_steps_of_every_kind_give_the_same(tmp_path: Path, environ: dict[str, str]) -> None:
    with Program(str(HERE / "ray_parity.py"), str(tmp_path), cwd=HERE, environ=environ) as program:
        assert program.end() == 0, program.stderr
    here, there = results(tmp_path / "here"), results(tmp_path / "there")
    assert here.keys() == there.keys()
    for sink, lines in here.items():
        assert lines, sink
        assert there[sink] == lines, sink
