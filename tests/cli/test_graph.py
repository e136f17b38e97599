"""`streamactors graph`, and `explain` for programs."""

import json
from pathlib import Path

import pytest

from tests.programs import Program, streamactors

JOBS = """
import streamactors as sa
from connectors.memory import ListSink, ListSource

flow = sa.Dataflow("words")
words = flow.source("words", ListSource(["a", "b", "a"])).key_by(str)
counts = words.reduce("counts", lambda one, other: one + other, parallelism=2)
counts.sink("out", ListSink())
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "jobs.py").write_text(JOBS)
    return tmp_path


def ended(project: Path, *args: str, code: int = 0) -> Program:
    program = streamactors(*args, cwd=project)
    assert program.end() == code, program.stderr
    return program


def test_a_flowchart_is_what_it_prints(project: Path) -> None:
    chart = ended(project, "graph", "jobs:flow").stdout
    assert chart.startswith("flowchart LR\n") and 'n0 -->|"key group"| n1' in chart
    ended(project, "graph", "jobs:flow", "--output", "flow.md")
    assert (project / "flow.md").read_text() == f"```mermaid\n{chart}```\n"
    ended(project, "graph", "jobs:flow", "-o", "flow.mmd")
    assert (project / "flow.mmd").read_text() == chart


def test_as_text_it_has_the_plan(project: Path) -> None:
    text = ended(project, "graph", "jobs:flow", "--text", "--parallelism", "3").stdout
    assert text == ended(project, "explain", "jobs:flow", "--parallelism", "3").stdout
    assert "Physical plan:" in text and "3 subtasks" in text


def test_for_programs(project: Path) -> None:
    told = ended(project, "graph", "jobs:flow", "--json", "--parallelism", "3").stdout
    assert told == ended(project, "explain", "jobs:flow", "--json", "--parallelism", "3").stdout
    graph = json.loads(told)
    assert {node["uid"]: (node["kind"], node["parallelism"]) for node in graph["nodes"]} == {
        "words": ("source", 3),
        "counts": ("reduce", 2),
        "out": ("sink", 3),
    }
    edges = {
        (edge["upstream"], edge["downstream"]): (edge["partitioning"], edge["channels"]) for edge in graph["edges"]
    }
    assert edges == {("words", "counts"): ("key group", 6), ("counts", "out"): ("rebalance", 6)}
    assert (graph["name"], graph["execution"], graph["subtasks"], graph["channels"]) == ("words", "streaming", 8, 12)
    assert graph["mermaid"].startswith("flowchart LR\n")


def test_over_workers_programs_are_told_which_runs_what(project: Path) -> None:
    graph = json.loads(ended(project, "explain", "jobs:flow", "--json", "--parallelism", "2", "--workers", "2").stdout)
    assert graph["workers"] == [["words[0]", "counts[0]"], ["words[1]", "counts[1]"]]
    assert (graph["strategy"], graph["slots"]) == ("spread", 1)


def test_two_forms_at_once_are_refused(project: Path) -> None:
    told = ended(project, "graph", "jobs:flow", "--text", "--json", code=2).stderr
    assert "give one of them" in told
    assert "can't write" in ended(project, "graph", "jobs:flow", "-o", "absent/flow.md", code=2).stderr
