"""Records of the built-in flows, known beforehand: every one carries its split and number."""

from collections.abc import Callable
from typing import Any, Final

import msgspec

from streamactors.testing.simulation.world import World

KEYS: Final = (3, 5, 30)
"""How many there are: few, so that each has a history; or more than a RocksDB backend keeps in memory here."""


class Event(msgspec.Struct, frozen=True):
    """Record `number` of `split`, counted from 0."""

    split: str
    number: int
    key: str


class Update(msgspec.Struct, frozen=True):
    """The `count`-th event of its key, as operator `stage` has counted it."""

    split: str
    number: int
    key: str
    count: int


class Copy(msgspec.Struct, frozen=True):
    """A broadcast record, as subtask `subtask` has got it; -1 for one that was not broadcast."""

    split: str
    number: int
    subtask: int


def named(record: Any) -> str:
    """Unlike every other's."""
    return f"{record.split}@{record.number}"


def key_of(record: Any) -> str:
    key: str = record.key
    return key


def bucket_of(record: Any) -> int:
    return len(record.key) + int(record.key[-1]) % 3


def events(world: World, name: str, splits: int = 2, most: int = 40) -> dict[str, list[Event]]:
    """The keys are shared by all splits."""
    keys = world.random("keys").choice(KEYS)
    draw = world.random(f"events {name}")
    return {
        f"{name}{split}": [
            Event(f"{name}{split}", number, f"k{draw.randrange(keys)}") for number in range(draw.randint(5, most))
        ]
        for split in range(splits)
    }


def inputs(*names: tuple[str, int, int]) -> Callable[[World], list[Event]]:
    """All of them, of the sources that `events` was called for with these arguments."""

    def read(world: World) -> list[Event]:
        return [event for name in names for split in events(world, *name).values() for event in split]

    return read
