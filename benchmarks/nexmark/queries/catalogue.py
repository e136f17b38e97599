"""The queries by name, and in which sense their rows are to equal the oracle's."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from benchmarks.nexmark.queries import latest, lookups, records, reports, windows, winners
from benchmarks.nexmark.streams import Build, Row

Settle = Callable[[Iterable[Row]], list[Row]]


def every(rows: Iterable[Row]) -> list[Row]:
    """All rows, in no order."""
    return list(rows)


def final(columns: int) -> Settle:
    """The last row for each value of the first columns, which are its key."""
    return lambda rows: list({row[:columns]: row for row in rows}.values())


def rankings(rows: Iterable[Row]) -> list[Row]:
    """The rows of each key's last ranking."""
    return [row for _, ranking in final(1)(rows) for row in ranking]


def totals(rows: Iterable[Row]) -> list[Row]:
    """By the first column, the sum of the second."""
    sums: defaultdict[object, int] = defaultdict(int)
    for key, count, *_ in rows:
        sums[key] += count
    return list(sums.items())


@dataclass(frozen=True)
class Query:
    """`settle`: what is left of its rows to be compared with the oracle's."""

    title: str
    build: Build
    settle: Settle = every


QUERIES = {
    "q0": Query("every bid", records.q0),
    "q1": Query("bids in euros", records.q1),
    "q2": Query("bids for a few auctions", records.q2),
    "q3": Query("local sellers", lookups.q3),
    "q4": Query("average price of a category", winners.q4, final(1)),
    "q5": Query("hot items", windows.q5),
    "q6": Query("average price of a seller", winners.q6, final(1)),
    "q7": Query("highest bids", windows.q7),
    "q8": Query("new users who sell", windows.q8),
    "q9": Query("winning bids", winners.q9),
    "q11": Query("sessions of bidders", windows.q11),
    "q12": Query("windows of the clock", windows.q12, totals),
    "q13": Query("join with a side input", lookups.q13),
    "q14": Query("calculations", records.q14),
    "q15": Query("report of a day", reports.q15, final(1)),
    "q16": Query("report of a channel", reports.q16, final(2)),
    "q17": Query("report of an auction", reports.q17, final(2)),
    "q18": Query("last bids", latest.q18, final(2)),
    "q19": Query("ten best bids", latest.q19, rankings),
    "q20": Query("bids with their auctions", lookups.q20),
    "q21": Query("channel ids", records.q21),
    "q22": Query("folders of addresses", records.q22),
}
