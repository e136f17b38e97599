"""What the queries read: the events of one source, kind by kind."""

import datetime as dt
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeGuard, cast

import streamactors as sa
from benchmarks.nexmark.generator import NexmarkSource
from benchmarks.nexmark.model import Auction, Bid, Event, Person
from connectors.memory import ListSource

Row = tuple[Any, ...]
SIDE_KEYS: Final = 10_000


class Streams:
    """The inputs of one flow."""

    def __init__(self, flow: sa.Dataflow, source: sa.Source[Event], disorder: dt.timedelta) -> None:
        watermarks = sa.Watermarks.bounded(time_of, disorder)
        self._flow = flow
        self.events: sa.Stream[Event] = flow.source("events", source, watermarks=watermarks)

    @classmethod
    def of(cls, flow: sa.Dataflow, source: NexmarkSource) -> "Streams":
        return cls(flow, source, dt.timedelta(milliseconds=source.generator.disorder))

    @property
    def persons(self) -> sa.Stream[Person]:
        return cast(sa.Stream[Person], self.events.filter(is_person))

    @property
    def auctions(self) -> sa.Stream[Auction]:
        return cast(sa.Stream[Auction], self.events.filter(is_auction))

    @property
    def bids(self) -> sa.Stream[Bid]:
        return cast(sa.Stream[Bid], self.events.filter(is_bid))

    def side(self) -> sa.Stream[tuple[int, str]]:
        """The bounded side input."""
        return self._flow.source("side", ListSource(list(side_rows())))


Build = Callable[[Streams], sa.Stream[Row]]


def side_rows() -> Iterator[tuple[int, str]]:
    """Key and value; one key in seven is missing."""
    return ((key, f"value of {key}") for key in range(SIDE_KEYS) if key % 7)


def time_of(event: Event) -> int:
    return event.time


def is_person(event: Event) -> TypeGuard[Person]:
    return type(event) is Person


def is_auction(event: Event) -> TypeGuard[Auction]:
    return type(event) is Auction


def is_bid(event: Event) -> TypeGuard[Bid]:
    return type(event) is Bid
