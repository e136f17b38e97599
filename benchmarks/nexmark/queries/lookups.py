"""Queries that look up the one row that belongs to each record, which may come before or after it: q3, q13, q20."""

from typing import Any

import streamactors as sa
from benchmarks.nexmark.model import Auction, Bid, Person
from benchmarks.nexmark.streams import SIDE_KEYS, Row, Streams

CATEGORY = 10
LOCAL = ("OR", "ID", "CA")


class LookUp(sa.KeyedCoOperator[int, Any, Any, tuple[Any, Any]]):
    """Pairs the one row that a key has on the left with every record of the right. Records that come before it wait."""

    row = sa.ValueState(Any, default=None)
    waiting = sa.ListState(Any)

    def process_left(self, value: Any, ctx: sa.Context[int, tuple[Any, Any]], /) -> None:
        self.row.set(value)
        for record in self.waiting:
            ctx.emit((value, record))
        self.waiting.clear()

    def process_right(self, value: Any, ctx: sa.Context[int, tuple[Any, Any]], /) -> None:
        row = self.row.get()
        if row is None:
            self.waiting.append(value)
        else:
            ctx.emit((row, value))


def q3(house: Streams) -> sa.Stream[Row]:
    sellers = house.persons.key_by(lambda person: person.id)
    offered = house.auctions.filter(lambda auction: auction.category == CATEGORY).key_by(lambda auction: auction.seller)
    return sellers.connect(offered).process("sellers", LookUp).filter(_is_local).map(_offered)


def _is_local(pair: tuple[Person, Auction]) -> bool:
    return pair[0].state in LOCAL


def _offered(pair: tuple[Person, Auction]) -> Row:
    seller, auction = pair
    return seller.name, seller.city, seller.state, auction.id


def q13(house: Streams) -> sa.Stream[Row]:
    side = house.side().key_by(lambda row: row[0])
    return side.connect(house.bids.key_by(lambda bid: bid.auction % SIDE_KEYS)).process("side-input", LookUp).map(_said)


def _said(pair: tuple[tuple[int, str], Bid]) -> Row:
    (_, value), bid = pair
    return bid.auction, bid.bidder, bid.price, bid.time, value


def q20(house: Streams) -> sa.Stream[Row]:
    auctions = house.auctions.key_by(lambda auction: auction.id)
    found = auctions.connect(house.bids.key_by(lambda bid: bid.auction)).process("auctions", LookUp)
    return found.filter(lambda pair: pair[0].category == CATEGORY).map(_expanded)


def _expanded(pair: tuple[Auction, Bid]) -> Row:
    auction, bid = pair
    return (
        *(bid.auction, bid.bidder, bid.price, bid.channel, bid.url, bid.time, bid.extra),
        *(auction.item, auction.description, auction.initial_bid, auction.reserve, auction.time, auction.expires),
        *(auction.seller, auction.category, auction.extra),
    )
