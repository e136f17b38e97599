"""The picture of a flow: boxes that do not overlap, edges between them, names as text."""

import itertools
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import streamactors as sa
from connectors.memory import ListSink, ListSource
from streamactors.cli.commands import app
from streamactors.cli.graph_picture import picture
from streamactors.cli.graph_view import drawn
from streamactors.observe import model

SVG = "{http://www.w3.org/2000/svg}"
Place = tuple[float, float, float, float]


def parsed(text: str) -> ElementTree.Element:
    root = ElementTree.fromstring(text)
    assert root.tag == f"{SVG}svg"
    return root


def boxes(root: ElementTree.Element) -> list[Place]:
    found = [each.attrib for each in root.iter(f"{SVG}rect")]
    return [(float(one["x"]), float(one["y"]), float(one["width"]), float(one["height"])) for one in found]


def overlap(one: Place, other: Place) -> bool:
    return all(one[side] < other[side] + other[side + 2] and other[side] < one[side] + one[side + 2] for side in (0, 1))


def node(uid: str, name: str = "") -> model.GraphNode:
    return model.GraphNode(uid=uid, name=name or uid, kind="map", vertex=uid, parallelism=1, max_parallelism=128)


@given(st.data())
def test_no_box_covers_another_and_records_go_to_the_right(data: st.DataObject) -> None:
    names = [f"step-{number}" * (number % 5 + 1) for number in range(data.draw(st.integers(0, 8)))]
    pairs = list(itertools.combinations(names, 2))
    edges = data.draw(st.lists(st.sampled_from(pairs), unique=True)) if pairs else []
    graph = model.Graph(
        nodes=[node(name) for name in names],
        edges=[model.GraphEdge(upstream=one, downstream=other, partitioning="forward") for one, other in edges],
    )
    root = parsed(picture("flow", graph))
    places = dict(zip(names, boxes(root), strict=True))
    assert not any(overlap(one, other) for one, other in itertools.combinations(places.values(), 2))
    assert all(places[one][0] + places[one][2] < places[other][0] for one, other in edges)
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    assert all(x >= 0 and y >= 0 and x + w <= width and y + h <= height for x, y, w, h in places.values())
    assert len(list(root.iter(f"{SVG}path"))) == len(edges)


def test_names_are_text() -> None:
    evil = '<script>alert("1")</script>&'
    root = parsed(picture(evil, model.Graph(nodes=[node("a", evil)], edges=[])))
    assert not list(root.iter(f"{SVG}script")) and root.findtext(f"{SVG}title") == evil
    assert f"a: {evil}" in [text.text for text in root.iter(f"{SVG}text")]


def test_chained_steps_share_a_box() -> None:
    flow = sa.Dataflow("words")
    words = flow.source("words", ListSource(["a"])).map(str.upper, name="upper").key_by(str)
    words.reduce("counts", lambda one, other: one + other, parallelism=2).sink("out", ListSink(), parallelism=2)
    root = parsed(drawn(flow, sa.Config(parallelism=1)))
    assert len(boxes(root)) == 2
    assert [text.text for text in root.iter(f"{SVG}text")] == [
        "key group",
        "words \u00d71",
        "words (source)",
        "map-1: upper",
        "counts \u00d72",
        "counts (reduce)",
        "out (sink)",
    ]


def test_the_command_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "picture_jobs.py").write_text(
        "import streamactors as sa\nfrom connectors.memory import ListSink, ListSource\n"
        "flow = sa.Dataflow('words')\nflow.source('words', ListSource('ab')).sink('out', ListSink())\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    printed = CliRunner().invoke(app, ["graph", "picture_jobs:flow", "--svg"])
    assert printed.exit_code == 0 and len(boxes(parsed(printed.stdout))) == 1
    assert CliRunner().invoke(app, ["graph", "picture_jobs:flow", "-o", "flow.svg"]).exit_code == 0
    assert (tmp_path / "flow.svg").read_text() == printed.stdout
    assert CliRunner().invoke(app, ["graph", "picture_jobs:flow", "--svg", "--text"]).exit_code == 2
