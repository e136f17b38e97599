"""The events of an auction house. Times are milliseconds since the epoch, prices are cents, ids are numbers."""

import msgspec


class Person(msgspec.Struct, frozen=True, gc=False):
    id: int
    name: str
    email: str
    card: str
    city: str
    state: str
    time: int
    extra: str


class Auction(msgspec.Struct, frozen=True, gc=False):
    id: int
    item: str
    description: str
    initial_bid: int
    reserve: int
    time: int
    expires: int
    """The last moment at which a bid counts."""
    seller: int
    category: int
    extra: str


class Bid(msgspec.Struct, frozen=True, gc=False):
    auction: int
    bidder: int
    price: int
    channel: str
    url: str
    time: int
    extra: str


Event = Person | Auction | Bid
