"""Jobs whose state is looked at, and rows as they must be found."""

import datetime as dt
import enum
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import msgspec

import streamactors as sa
from connectors.memory import ListSink, ListSource
from streamactors import state_processor
from streamactors.state_processor import Snapshot

NEVER = dt.timedelta(hours=1)


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Point(NamedTuple):
    x: int
    y: int


@dataclass
class Note:
    text: str
    at: dt.datetime


class Total(msgspec.Struct):
    """Of everything that can be stored, something."""

    total: float
    count: int
    notes: list[Note] = []
    place: Point | None = None
    colour: Colour = Colour.RED
    price: Decimal = Decimal(0)
    id: UUID | None = None
    tags: frozenset[str] = frozenset()
    sizes: dict[str, tuple[int, float]] = {}
    raw: bytes = b""


NOON = dt.datetime(2024, 2, 29, 12, tzinfo=dt.UTC)


def total_of(number: int) -> Total:
    return Total(
        number / 2,
        number,
        [Note(f"note {number}", NOON + dt.timedelta(days=number))],
        Point(number, -number) if number % 2 else None,
        Colour.BLUE if number % 3 else Colour.RED,
        Decimal(number) / 8,
        UUID(int=number),
        frozenset({"a", f"t{number % 5}"}),
        {"s": (number, 0.5)},
        bytes([number % 256]),
    )


def as_dict(number: int) -> dict[str, Any]:
    """The same without its classes."""
    total = total_of(number)
    return {
        **{name: getattr(total, name) for name in Total.__struct_fields__},
        "notes": [{"text": note.text, "at": note.at} for note in total.notes],
        "place": None if total.place is None else {"x": total.place.x, "y": total.place.y},
        "colour": total.colour.value,
    }


class Keeper(sa.KeyedOperator[str, int, tuple[str, int]]):
    """Keeps each number in every kind of state."""

    total = sa.ValueState(Total)
    plain = sa.ValueState(float, default=0.0)
    numbers = sa.ListState(int)
    totals = sa.MapState(int, Total)
    anything = sa.ValueState[Any](Any, default=None)

    def process(self, number: int, ctx: sa.Context[str, tuple[str, int]], /) -> None:
        self.total.set(total_of(number))
        self.plain.set(self.plain.get() + number)
        self.numbers.append(number)
        self.totals[number % 3] = total_of(number)
        self.anything.set((ctx.key, number, {number}))
        ctx.emit((ctx.key, number))


def key_of(number: int) -> str:
    return f"k{number % 50}"


def keeping(source: Any, sink: Any, operator: Any = Keeper, *, key: Callable[[Any], Any] = key_of) -> sa.Dataflow:
    flow = sa.Dataflow("keeping")
    flow.source("numbers", source, parallelism=1).key_by(key).process("keep", operator).sink("out", sink)
    return flow


def config(storage: Path, *, backend: Any = "heap", parallelism: int = 2, **options: Any) -> sa.Config:
    return sa.Config(
        parallelism=parallelism,
        state_backend=backend,
        checkpoints=sa.Checkpoints(str(storage), interval=NEVER, **options),
        restart=sa.Restart.none(),
    )


async def stored(flow: sa.Dataflow, settings: sa.Config, **options: Any) -> str:
    """Run a bounded flow to its end; where its last checkpoint lies."""
    await sa.run(flow, settings, **options)
    assert settings.checkpoints is not None
    async with state_processor.open(settings.checkpoints.storage, flow=flow.name) as snapshot:
        return snapshot.uri


@asynccontextmanager
async def opened(uri: str) -> AsyncIterator[Snapshot]:
    async with state_processor.open(uri, verify="digests") as snapshot:
        yield snapshot


async def rows_of(uri: str, uid: str, name: str, declaration: Any = None, **options: Any) -> list[Any]:
    async with opened(uri) as snapshot:
        return [row async for row in snapshot.state(uid, name, declaration, **options)]


async def entries_of(uri: str, uid: str, name: str, declaration: Any = None) -> dict[Any, Any]:
    async with opened(uri) as snapshot:
        rows: Any = snapshot.state(uid, name, declaration)
        return {key: value async for key, value in rows.entries()}


def numbers(count: int = 300) -> ListSource[int]:
    return ListSource(range(count))


def sink() -> ListSink[Any]:
    return ListSink()


def last_of(count: int = 300) -> dict[str, int]:
    """The last number of each key."""
    return {key_of(number): number for number in range(count)}


def all_of(count: int = 300) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for number in range(count):
        found.setdefault(key_of(number), []).append(number)
    return found


def sorted_rows(rows: Sequence[Any]) -> list[Any]:
    return sorted(rows, key=repr)
