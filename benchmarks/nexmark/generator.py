"""The events by their numbers, and a source of them.

Invariant: an event is a function of (settings, its number) alone, so that any part of them can be made anywhere, and
again. Of 50 in turn one is a person, three are auctions and 46 are bids. Event time grows with the number; an event is
at most `disorder` milliseconds earlier than the latest of the numbers before it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from benchmarks.nexmark.model import Auction, Bid, Event, Person
from streamactors.errors import InvalidConfig
from streamactors.sources import Position, SourceBatch, SourceContext, SplitReader, SplitSource

PERSONS, AUCTIONS, BIDS = 1, 3, 46
TURN: Final = PERSONS + AUCTIONS + BIDS
FIRST_ID: Final = 1_000
"""Of persons and of auctions."""
FIRST_CATEGORY, CATEGORIES = 10, 5

HOT_GROUP: Final = 100
"""One in so many persons, and auctions, is hot while it is among the latest."""
HOT_AUCTION, HOT_BIDDER, HOT_SELLER = 2, 4, 4
"""All but one in so many go to the hot one."""
ACTIVE_PERSONS: Final = 1_000
OPEN_AUCTIONS: Final = 100
LEAD: Final = 10
"""So many persons and auctions are named before they exist."""

CITIES = (
    "Phoenix",
    "Los Angeles",
    "San Francisco",
    "Boise",
    "Portland",
    "Bend",
    "Redmond",
    "Seattle",
    "Kent",
    "Casper",
)
STATES = ("AZ", "CA", "CA", "ID", "OR", "OR", "WA", "WA", "WA", "WY")
FIRST_NAMES = ("Ada", "Barbara", "Edsger", "Frances", "Grace", "Jean", "John", "Kathleen", "Leslie", "Niklaus", "Tony")
LAST_NAMES = ("Allen", "Backus", "Bartik", "Booth", "Dijkstra", "Hoare", "Hopper", "Lamport", "Liskov", "Lovelace")
HOT_CHANNELS = ("Apple", "Google", "Facebook", "Baidu")
CHANNELS: Final = 10_000

_MASK: Final = 2**64 - 1


class Draws:
    """Random numbers that belong to one event (splitmix64: an add and a mix for each)."""

    __slots__ = ("_state",)

    def __init__(self, seed: int, number: int) -> None:
        self._state = (seed * 0x9E3779B97F4A7C15 + number * 0xDA942042E4DD58B5) & _MASK
        self._state = self.next()

    def next(self) -> int:
        """64 bits."""
        self._state = mixed = (self._state + 0x9E3779B97F4A7C15) & _MASK
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
        return mixed ^ (mixed >> 31)

    def below(self, bound: int) -> int:
        return self.next() % bound

    def price(self) -> int:
        """From 100 to 100 million, each order of magnitude as likely as the others."""
        return round(math.pow(10, 6 * self.next() / 2**64) * 100)

    def text(self, words: int) -> str:
        return "".join([f"{self.next():016x}" for _ in range(words)])


@dataclass(frozen=True)
class Generator:
    """Makes event `number`, from 0 up."""

    seed: int = 7
    start: int = 1_714_608_000_000
    """Event time of number 0, about: 2024-05-02, midnight."""
    rate: int = 1_000
    """Events per second of event time."""
    disorder: int = 200
    """Milliseconds."""

    def event(self, number: int) -> Event:
        draws = Draws(self.seed, number)
        time = self.start + number * 1000 // self.rate - draws.below(self.disorder + 1)
        place = number % TURN
        if place < PERSONS:
            return self._person(number, time, draws)
        return self._auction(number, time, draws) if place < PERSONS + AUCTIONS else self._bid(number, time, draws)

    def events(self, count: int) -> list[Event]:
        return [self.event(number) for number in range(count)]

    def _person(self, number: int, time: int, draws: Draws) -> Person:
        person = FIRST_ID + _latest_person(number)
        name = f"{FIRST_NAMES[draws.below(len(FIRST_NAMES))]} {LAST_NAMES[draws.below(len(LAST_NAMES))]}"
        email = f"{name.lower().replace(' ', '.')}.{person}@mail.example"
        place = draws.below(len(CITIES))
        return Person(
            person, name, email, f"{draws.below(10**16):016}", CITIES[place], STATES[place], time, draws.text(4)
        )

    def _auction(self, number: int, time: int, draws: Draws) -> Auction:
        if draws.below(HOT_SELLER):
            seller = _latest_person(number) // HOT_GROUP * HOT_GROUP
        else:
            seller = _any_person(number, draws)
        first = draws.price()
        return Auction(
            id=FIRST_ID + _latest_auction(number),
            item=draws.text(1),
            description=draws.text(6),
            initial_bid=first,
            reserve=first + draws.price(),
            time=time,
            expires=time + 1 + draws.below(2 * self._open_for()),
            seller=FIRST_ID + seller,
            category=FIRST_CATEGORY + draws.below(CATEGORIES),
            extra=draws.text(8),
        )

    def _open_for(self) -> int:
        """Milliseconds, on average: until so many younger ones are there as are open at once."""
        return max(1, OPEN_AUCTIONS * TURN // AUCTIONS * 1000 // self.rate)

    def _bid(self, number: int, time: int, draws: Draws) -> Bid:
        latest = _latest_auction(number)
        if draws.below(HOT_AUCTION):
            auction = latest // HOT_GROUP * HOT_GROUP
        else:
            oldest = max(0, latest - OPEN_AUCTIONS)
            auction = oldest + draws.below(latest - oldest + 1 + LEAD)
        if draws.below(HOT_BIDDER):
            bidder = _latest_person(number) // HOT_GROUP * HOT_GROUP + 1  # not the hot seller
        else:
            bidder = _any_person(number, draws)
        channel, url = _channel(draws)
        return Bid(FIRST_ID + auction, FIRST_ID + bidder, draws.price(), channel, url, time, draws.text(4))


def _latest_person(number: int) -> int:
    return number // TURN


def _latest_auction(number: int) -> int:
    """-1 before the first."""
    turns, place = divmod(number, TURN)
    return turns * AUCTIONS + min(place - PERSONS, AUCTIONS - 1)


def _any_person(number: int, draws: Draws) -> int:
    latest = _latest_person(number)
    oldest = max(0, latest - ACTIVE_PERSONS)
    return oldest + draws.below(latest - oldest + 1 + LEAD)


def _channel(draws: Draws) -> tuple[str, str]:
    """One of the few large ones, whose page says no id, or one of many, whose page mostly does."""
    chosen = draws.below(2 * CHANNELS)
    if chosen >= CHANNELS:
        name = HOT_CHANNELS[chosen % len(HOT_CHANNELS)]
        return name, f"https://auctions.example/{name[::-1].lower()}/{name[0]}/shop/item.htm?query=1"
    words = Draws(chosen, 0).text(1)
    url = f"https://auctions.example/{words[:5]}/{words[5:9]}/{words[9:]}/item.htm?query=1"
    return f"channel-{chosen}", url if chosen % 10 == 0 else f"{url}&channel_id={chosen * 7919 % CHANNELS}"


class NexmarkSource(SplitSource[Event]):
    """The events `0 … events - 1`. Split i of n holds the numbers i, i + n, i + 2n, …, whatever the parallelism."""

    def __init__(self, events: int, generator: Generator | None = None, *, splits: int = 12, batch: int = 512) -> None:
        if min(events, splits, batch) < 1:
            raise InvalidConfig(f"NexmarkSource({events=}, {splits=}, {batch=}): give whole numbers from 1 up")
        self.events = events
        self.generator = generator or Generator()
        self.splits = splits
        self.batch = batch

    @property
    def bounded(self) -> bool:
        return True

    def assign(self, split: str, parallelism: int) -> int:
        return int(split) % parallelism

    def reader(self, ctx: SourceContext) -> "NexmarkReader":
        return NexmarkReader(self, ctx)

    def describe(self) -> str:
        return f"NexmarkSource of {self.events}"


class NexmarkReader(SplitReader[Event]):
    """Goes on with the split that is furthest behind, so that event time grows evenly."""

    def __init__(self, source: NexmarkSource, ctx: SourceContext) -> None:
        self._source = source
        self._own = range(ctx.subtask, source.splits, ctx.parallelism)
        self._next: dict[str, int] = {}

    async def open(self, restored: Mapping[str, Position] | None) -> Mapping[str, Position]:
        self._next = {str(split): (restored or {}).get(str(split), split) for split in self._own}
        return dict(self._next)

    async def read(self) -> SourceBatch[Event] | None:
        if not self._next:
            return None
        split = min(self._next, key=self._next.__getitem__)
        return None if self._next[split] >= self._source.events else self._take(split)

    def _take(self, split: str) -> SourceBatch[Event]:
        start, step, event = self._next[split], self._source.splits, self._source.generator.event
        numbers = range(start, min(start + self._source.batch * step, self._source.events), step)
        self._next[split] = start + len(numbers) * step
        return SourceBatch(
            split,
            [event(number) for number in numbers],
            lambda taken: start + taken * step,
            origins=numbers,
            origin_prefix="nexmark:",
            ends=self._next[split] >= self._source.events,
        )

    async def close(self) -> None:
        self._next.clear()
