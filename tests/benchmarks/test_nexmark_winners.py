"""Bids that come before their auction, or at the same moment as others."""

import datetime as dt
from typing import Any

import streamactors as sa
from benchmarks.nexmark.model import Auction, Bid, Event
from benchmarks.nexmark.queries.winners import q9
from benchmarks.nexmark.streams import Streams
from tests.runtime.feeds import Feed


def auction(time: int, expires: int) -> Auction:
    return Auction(1, "item", "", 0, 0, time, expires, 7, 10, "")


def bid(time: int, price: int, bidder: int = 3) -> Bid:
    return Bid(1, bidder, price, "", "", time, "")


async def won(*events: Event) -> list[tuple[int, int, int]]:
    """Bidder, price and time. Records come one by one, each with a watermark two seconds behind the latest."""
    feed, flow = Feed(chunk=1), sa.Dataflow("house")
    feed.put(*events)
    feed.end()
    rows: list[Any] = await sa.collect(q9(Streams(flow, feed, dt.timedelta(seconds=2))))
    return [row[7:10] for row in rows]


async def test_an_early_bid_is_kept_while_its_auction_may_still_come() -> None:
    early = bid(1_000, 50), bid(5_000, 30), bid(4_500, 20), bid(3_500, 40)
    assert await won(*early, auction(4_000, 9_000)) == [(3, 30, 5_000)]


async def test_of_equal_bids_the_earliest_wins_whichever_comes_first() -> None:
    opened = auction(1_000, 9_000)
    for bids in ([bid(3_000, 50), bid(2_000, 50, 4)], [bid(2_000, 50, 4), bid(3_000, 50)]):
        assert await won(opened, *bids) == [(4, 50, 2_000)]


async def test_bids_count_from_the_first_moment_to_the_last() -> None:
    opened = auction(2_000, 3_000)
    assert await won(opened, bid(1_999, 9), bid(2_000, 1), bid(3_001, 9)) == [(3, 1, 2_000)]
    assert await won(opened, bid(1_999, 9), bid(3_000, 1), bid(3_001, 9)) == [(3, 1, 3_000)]
    assert await won(opened, bid(1_999, 9), bid(3_001, 9)) == []
