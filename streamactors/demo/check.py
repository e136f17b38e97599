"""Is every running total there exactly once? Told from the files alone, by a plain loop that shares nothing with the
job."""

from array import array
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

ABSENT = -1


@dataclass(frozen=True, slots=True)
class Verdict:
    """`found`: results that are there, each counted once; `wrong`: a wrong value, no such order, or out of order."""

    expected: int
    found: int
    doubled: int
    wrong: int

    @property
    def lost(self) -> int:
        return self.expected - self.found

    @property
    def equal(self) -> bool:
        return not (self.lost or self.doubled or self.wrong)

    def __str__(self) -> str:
        counts = f"{self.expected:,} expected · {self.found:,} found · {self.lost:,} lost · {self.doubled:,} doubled"
        return counts + (f" · {self.wrong:,} wrong" if self.wrong else "")


def check(folder: Path, events: int) -> Verdict:
    """Compares `totals/` with `events/`; the log holds orders 0 to `events` - 1."""
    expected = _expected(folder / "events", events)
    seen = bytearray(events)
    latest: dict[str, int] = {}  # by customer: their orders have to come in the order of the log
    doubled = wrong = 0
    for line in _lines(folder / "totals"):
        order, customer = line["order"], line["customer"]
        if not 0 <= order < events or expected[order] != line["cents"]:
            wrong += 1
        elif seen[order]:
            doubled += 1
        else:
            seen[order] = 1
            wrong += order < latest.get(customer, ABSENT)
            latest[customer] = order
    return Verdict(events, sum(seen), doubled, wrong)


def _expected(log: Path, events: int) -> "array[int]":
    """The customer's running total after each order."""
    totals: defaultdict[str, int] = defaultdict(int)
    expected = array("q", [ABSENT]) * events
    for order in _lines(log):
        totals[order["customer"]] += order["cents"]
        expected[order["id"]] = totals[order["customer"]]
    return expected


def _lines(folder: Path) -> Iterator[dict[str, Any]]:
    """Of the visible files, in the order of their names: of one subtask that is the order of writing."""
    decode = msgspec.json.Decoder(dict[str, Any]).decode
    for path in sorted(path for path in folder.glob("*") if not path.name.startswith(".")):
        with path.open("rb") as file:
            yield from map(decode, file)
