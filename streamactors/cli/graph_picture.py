"""A flow's graph as an SVG picture: a box for each chain of steps, the chains from left to right. Pure: text comes out.

Names are text in it and nothing else, and it refers to nothing outside, so that it may be put on any page.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from xml.sax.saxutils import escape, quoteattr

from streamactors.observe import model

LINE: Final = 18
LETTER: Final = 7.3
"""Pixels: the height of a line, and the width of a letter of the font."""
PAD: Final = 10
ALONG: Final = 110
ACROSS: Final = 26
MARGIN: Final = 12
LONGEST: Final = 40
STYLE: Final = """
  text { font: 12px ui-monospace, monospace; fill: #1b2230; }
  .title { font-weight: bold; } .name { fill: #566074; text-anchor: middle; font-size: 11px; }
  .box { fill: #e6ecf5; stroke: #566074; } .edge { fill: none; stroke: #566074; stroke-width: 1.5; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6eaf2; } .name { fill: #a3adbf; }
    .box { fill: #263040; stroke: #a3adbf; } .edge { stroke: #a3adbf; }
  }
"""


@dataclass(frozen=True, slots=True)
class Box:
    """A chain, where it is."""

    lines: Sequence[str]
    x: float
    y: float
    width: float
    height: float

    @property
    def middle(self) -> float:
        return self.y + self.height / 2


def picture(name: str, graph: model.Graph) -> str:
    chain = {node.uid: node.vertex for node in graph.nodes}
    between = [edge for edge in graph.edges if chain[edge.upstream] != chain[edge.downstream]]
    boxes = _placed(_lines(graph), [(chain[edge.upstream], chain[edge.downstream]) for edge in between])
    drawn = [_edge(edge, boxes[chain[edge.upstream]], boxes[chain[edge.downstream]]) for edge in between]
    drawn += [part for box in boxes.values() for part in _box(box)]
    width = max((box.x + box.width for box in boxes.values()), default=0) + MARGIN
    height = max((box.y + box.height for box in boxes.values()), default=0) + MARGIN
    size = f'width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label={quoteattr(name)}>'
    return "\n".join([head, f"<title>{escape(name)}</title>", f"<style>{STYLE}</style>", *drawn, "</svg>"]) + "\n"


def _lines(graph: model.Graph) -> dict[str, list[str]]:
    """Of each chain: its name and subtasks, then its steps."""
    lines: dict[str, list[str]] = {}
    for node in graph.nodes:
        step = f"{node.uid} ({node.kind})" if node.name == node.uid else f"{node.uid}: {node.name}"
        lines.setdefault(node.vertex, [_clipped(f"{node.vertex} \N{MULTIPLICATION SIGN}{node.parallelism}")]).append(
            _clipped(step)
        )
    return lines


def _clipped(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


# --------------------------------------------------------------------------------------------------------------- places
def _placed(lines: Mapping[str, Sequence[str]], edges: Iterable[tuple[str, str]]) -> dict[str, Box]:
    layers: defaultdict[int, list[str]] = defaultdict(list)
    for uid, depth in _depths(lines, list(edges)).items():
        layers[depth].append(uid)
    heights = {uid: 2 * PAD + LINE * len(own) for uid, own in lines.items()}
    tallest = max((_extent(heights[uid] for uid in layer) for layer in layers.values()), default=0.0)
    boxes: dict[str, Box] = {}
    x = float(MARGIN)
    for depth in sorted(layers):
        width = 2 * PAD + LETTER * max(len(line) for uid in layers[depth] for line in lines[uid])
        y = MARGIN + (tallest - _extent(heights[uid] for uid in layers[depth])) / 2
        for uid in layers[depth]:
            boxes[uid] = Box(lines[uid], x, y, width, heights[uid])
            y += heights[uid] + ACROSS
        x += width + ALONG
    return {uid: boxes[uid] for uid in lines}


def _extent(heights: Iterable[float]) -> float:
    return sum(height + ACROSS for height in heights) - ACROSS


def _depths(uids: Iterable[str], edges: Sequence[tuple[str, str]]) -> dict[str, int]:
    """How many edges lie before each, on the longest way."""
    depth = dict.fromkeys(uids, 0)
    for _ in depth:
        for upstream, downstream in edges:
            depth[downstream] = max(depth[downstream], depth[upstream] + 1)
    return depth


# -------------------------------------------------------------------------------------------------------------- drawing
def _box(box: Box) -> Iterator[str]:
    x, y, width, height = box.x, box.y, box.width, box.height
    yield f'<rect class="box" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="6"/>'
    for number, line in enumerate(box.lines):
        kind = ' class="title"' if number == 0 else ""
        yield f'<text{kind} x="{x + PAD:.1f}" y="{y + PAD + LINE * (number + 0.75):.1f}">{escape(line)}</text>'


def _edge(edge: model.GraphEdge, start: Box, end: Box) -> str:
    x, y, u, v = start.x + start.width, start.middle, end.x, end.middle
    half = (x + u) / 2
    line = f"M{x:.1f},{y:.1f} C{half:.1f},{y:.1f} {half:.1f},{v:.1f} {u:.1f},{v:.1f} m-7,-4 l7,4 l-7,4"
    name = escape(_clipped(", ".join(filter(None, (edge.partitioning, edge.tag)))))
    return f'<path class="edge" d="{line}"/><text class="name" x="{half:.1f}" y="{(y + v) / 2 - 5:.1f}">{name}</text>'
