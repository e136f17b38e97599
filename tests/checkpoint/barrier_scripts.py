"""Scripts of channels for the models of `subtask_model.py`: small ones to be exhausted, and any by hypothesis."""

from collections.abc import Callable, Sequence

from hypothesis import strategies as st

from streamactors.elements import Barrier
from tests.checkpoint.subtask_model import END, Element, Script

Kind = Callable[[int], Barrier]

CHOICES = st.lists(st.integers(0, 999), max_size=150)
"""Which step is taken next (see `run`)."""


def small_scripts(one: Kind, two: Kind) -> list[list[Script]]:
    """One and two checkpoints over two and three channels, with ends, and with barriers that upstream has dropped."""
    a, b = one(1), two(2)
    return [
        [[0, a, 0], [0, a, 0]],
        [[0, a, 0, b], [a, 0, b]],
        [[0, END, a], [0, a, 0, END]],
        [[END, a, b], [0, a, b]],
        [[0, END], [0, a, 0]],
        [[0, b], [a, 0, b]],
        [[a, 0, b], [0, b]],
        [[a], [0, a], [END, a]],
    ]


def with_aborts(scripts: Sequence[list[Script]]) -> list[tuple[list[Script], int]]:
    """Each beside each checkpoint that may be aborted."""
    numbers = [sorted({e.checkpoint for s in channels for e in s if isinstance(e, Barrier)}) for channels in scripts]
    return [(channels, n) for channels, in_them in zip(scripts, numbers, strict=True) for n in in_them]


@st.composite
def any_scripts(draw: st.DrawFn, *kinds: Sequence[Kind]) -> list[Script]:
    """One to three channels with the same barriers in order, records between, an end of data anywhere (records don't
    follow it, barriers do), and barriers that an upstream subtask has dropped as aborted. A checkpoint is of one of the
    `kinds`; its barrier is any of that kind's on each channel."""
    numbers = sorted(draw(st.sets(st.integers(1, 5), max_size=4)))
    barriers = [(number, draw(st.sampled_from(kinds))) for number in numbers]
    return [draw(_script(barriers)) for _ in range(draw(st.integers(1, 3)))]


@st.composite
def _script(draw: st.DrawFn, barriers: Sequence[tuple[int, Sequence[Kind]]]) -> Script:
    elements: list[Element] = []
    ended = False
    for number, kinds in [*barriers, (0, ())]:
        if not ended:
            elements += [0] * draw(st.integers(0, 2))
            if draw(st.integers(0, 5)) == 0:
                ended = True
                elements.append(END)
        if number and draw(st.integers(0, 9)) > 0:
            elements.append(draw(st.sampled_from(kinds))(number))
    return elements
