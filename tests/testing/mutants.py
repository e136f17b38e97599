"""Deliberate bugs, each a small patch, to prove that the simulation can fail.

A mutant is caught when a run of the simulation fails by an invariant: its `symptom`, so that a patch which merely
crashes proves nothing.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import pytest

LOST: Final = "are lost"
TWICE: Final = "came twice"
DISORDER: Final = r"came after|counted \[|its state holds"
COUNTS: Final = r"counted \[|its state holds"
UNDECIDED: Final = "neither committed nor aborted"
DECLINED: Final = "a later checkpoint's barrier came first"
"""Of a checkpoint that nobody had given up."""

Plant = Callable[[pytest.MonkeyPatch], None]


@dataclass(frozen=True)
class Mutant:
    """`places`: (topology, mode), in turn. `faults`: where they differ from the scenario's."""

    name: str
    plant: Plant
    places: tuple[tuple[str, str], ...]
    symptom: str
    faults: str = ""

    @contextlib.contextmanager
    def planted(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            self.plant(patch)
            yield

    def place(self, seed: int) -> tuple[str, str]:
        return self.places[seed % len(self.places)]


MUTANTS: Final[dict[str, Mutant]] = {}


def mutant(*places: str, symptom: str, faults: str = "") -> Callable[[Plant], Plant]:
    """`places` as "topology mode". `symptom`: a pattern that the failure's message must match."""

    def add(plant: Plant) -> Plant:
        name = plant.__name__
        pairs = [place.split() for place in places]
        MUTANTS[name] = Mutant(name, plant, tuple((topology, mode) for topology, mode in pairs), symptom, faults)
        return plant

    return add
