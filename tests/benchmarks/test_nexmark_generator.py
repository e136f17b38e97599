"""The events are the same everywhere, in the proportions and with the favourites that the benchmark is known for."""

import zlib
from collections import Counter

import msgspec
import pytest

import streamactors as sa
from benchmarks.nexmark.generator import FIRST_ID, Generator, NexmarkSource
from benchmarks.nexmark.model import Auction, Bid, Event, Person
from streamactors.testing.connector_contract import SourceContract

EVENTS = Generator().events(20_000)
CHECKSUM = 1258184942
BIDS = [event for event in EVENTS if isinstance(event, Bid)]
AUCTIONS = [event for event in EVENTS if isinstance(event, Auction)]


class TestContract(SourceContract[Event]):
    def source(self) -> NexmarkSource:
        return NexmarkSource(310, splits=6, batch=20)

    async def expected(self) -> list[Event]:
        return Generator().events(310)


def test_the_same_in_every_process_and_version() -> None:
    assert zlib.crc32(msgspec.json.encode(EVENTS[:1_000])) == CHECKSUM
    assert Generator().event(777) == EVENTS[777]
    assert Generator(seed=8).event(777) != EVENTS[777]


def test_of_fifty_in_turn_one_is_a_person_three_are_auctions_and_the_others_bids() -> None:
    for start in range(0, 500, 50):
        assert Counter(map(type, EVENTS[start : start + 50])) == {Person: 1, Auction: 3, Bid: 46}


def test_ids_are_given_one_after_another() -> None:
    persons = [event.id for event in EVENTS if isinstance(event, Person)]
    assert persons == list(range(FIRST_ID, FIRST_ID + len(persons)))
    assert [auction.id for auction in AUCTIONS] == list(range(FIRST_ID, FIRST_ID + len(AUCTIONS)))


def test_disorder_is_bounded_and_there_is_some() -> None:
    latest, behind = EVENTS[0].time, [0]
    for event in EVENTS:
        latest = max(latest, event.time)
        behind.append(latest - event.time)
    assert 150 < max(behind) <= Generator.disorder
    assert EVENTS[-1].time - EVENTS[0].time == pytest.approx(20_000, abs=Generator.disorder)


def test_some_are_hot() -> None:
    """Half of the bids go to an auction, three quarters come from a bidder, and three quarters of what is sold is of a
    seller, that is one of a hundred."""
    hot_auction = sum(bid.auction % 100 == 0 for bid in BIDS) / len(BIDS)
    hot_bidder = sum(bid.bidder % 100 == 1 for bid in BIDS) / len(BIDS)
    hot_seller = sum(auction.seller % 100 == 0 for auction in AUCTIONS) / len(AUCTIONS)
    assert (hot_auction, hot_bidder, hot_seller) == pytest.approx((0.5, 0.75, 0.75), abs=0.03)


def test_bids_come_before_their_auction_and_after_its_end() -> None:
    """What the queries have to cope with."""
    opened = {auction.id: auction for auction in AUCTIONS}
    known = [(bid, opened[bid.auction]) for bid in BIDS if bid.auction in opened]
    assert any(bid.time < auction.time for bid, auction in known)
    assert any(bid.time > auction.expires for bid, auction in known)
    assert any(auction.time <= bid.time <= auction.expires for bid, auction in known)
    assert any(EVENTS.index(bid) < EVENTS.index(auction) and bid.time >= auction.time for bid, auction in known[:2_000])


def test_prices_are_spread_over_six_orders_of_magnitude() -> None:
    orders = Counter(len(str(bid.price)) for bid in BIDS)
    assert set(orders) <= set(range(3, 10))
    assert all(orders[digits] / len(BIDS) == pytest.approx(1 / 6, abs=0.02) for digits in range(3, 9))


@pytest.mark.parametrize(("events", "splits", "batch"), [(0, 1, 1), (5, 0, 1), (5, 1, 0)])
def test_a_source_of_nothing_is_refused(events: int, splits: int, batch: int) -> None:
    with pytest.raises(sa.InvalidConfig, match="whole numbers from 1 up"):
        NexmarkSource(events, splits=splits, batch=batch)
