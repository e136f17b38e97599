"""Queries that look at one bid at a time: q0, q1, q2, q14, q21, q22. Amounts in euros are tenths of a cent."""

import re
from collections.abc import Iterator

import streamactors as sa
from benchmarks.nexmark.model import Bid
from benchmarks.nexmark.streams import Row, Streams

EUROS = 908
"""Tenths of a cent that a cent is worth, by a thousand."""
HOUR = 3_600_000
LARGE_CHANNELS = {"apple": "0", "google": "1", "facebook": "2", "baidu": "3"}
CHANNEL_ID = re.compile("(?:&|^)channel_id=([^&]*)")


def q0(house: Streams) -> sa.Stream[Row]:
    return house.bids.map(lambda bid: (bid.auction, bid.bidder, bid.price, bid.time, bid.extra))


def q1(house: Streams) -> sa.Stream[Row]:
    return house.bids.map(lambda bid: (bid.auction, bid.bidder, bid.price * EUROS, bid.time, bid.extra))


def q2(house: Streams) -> sa.Stream[Row]:
    return house.bids.filter(lambda bid: bid.auction % 123 == 0).map(lambda bid: (bid.auction, bid.price))


def q14(house: Streams) -> sa.Stream[Row]:
    return house.bids.filter(_is_middling).map(_with_time_of_day)


def _is_middling(bid: Bid) -> bool:
    return 1_000_000_000 < bid.price * EUROS < 50_000_000_000


def _with_time_of_day(bid: Bid) -> Row:
    part = time_of_day(bid.time)
    return bid.auction, bid.bidder, bid.price * EUROS, part, bid.time, bid.extra, bid.extra.count("c")


def time_of_day(time: int) -> str:
    hour = time // HOUR % 24
    if 8 <= hour <= 18:
        return "dayTime"
    return "nightTime" if hour <= 6 or hour >= 20 else "otherTime"


def q21(house: Streams) -> sa.Stream[Row]:
    return house.bids.flat_map(_with_channel_id)


def _with_channel_id(bid: Bid) -> Iterator[Row]:
    """Nothing for a channel that has none."""
    found = LARGE_CHANNELS.get(bid.channel.lower())
    if found is None and (said := CHANNEL_ID.search(bid.url)):
        found = said[1]
    if found:
        yield bid.auction, bid.bidder, bid.price, bid.channel, found


def q22(house: Streams) -> sa.Stream[Row]:
    return house.bids.map(_with_folders)


def _with_folders(bid: Bid) -> Row:
    return bid.auction, bid.bidder, bid.price, bid.channel, *bid.url.split("/")[3:6]
