"""From sorted rows to what a chain works on: slices of whole keys, or of a part of one. Pure.

Invariant: a slice's batches hold each key's rows in order. Rows of different keys have no order between them, so that
where there are two inputs, the first records of all keys in a slice go together, then the second ones, and so on: as
many batches as one key has changes of sides, and not as all of them have.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, repeat
from typing import Any, Final, NamedTuple

from streamactors.elements import Batch
from streamactors.runtime.bounded.rows import KeyRows

SLICE: Final = 1024
"""Rows, if no key has more."""


class Slice(NamedTuple):
    """`ended`: the key groups (first, last) of the keys that end with it; None while the last key goes on."""

    batches: list[tuple[int, Batch]]
    """With the side that each comes by."""
    ended: tuple[int, int] | None


def slices(pieces: Iterable[KeyRows], split: str | None, *, last_group: int, by_group: bool = False) -> Iterator[Slice]:
    """`split`: what all records' origins begin with; None: they are not known. `by_group`: keys end with their key
    group, since some have state and no rows. Ends with a slice after which all key groups up to the last have ended."""
    held: list[KeyRows] = []
    rows, first = 0, 0
    for piece in pieces:
        if held and rows + len(piece.values) > SLICE:
            ended = piece.group - 1 if by_group else _last_ended(held[-1], piece)
            yield Slice(_batches(held, split), (first, ended) if ended >= first else None)
            first = max(first, piece.group if by_group else ended)
            held, rows = [], 0
        held.append(piece)
        rows += len(piece.values)
    yield Slice(_batches(held, split) if held else [], (first, last_group))


def _last_ended(piece: KeyRows, following: KeyRows) -> int:
    """The key group up to which all keys that have come have ended; -1 in the middle of one."""
    return -1 if piece.place == following.place else piece.group


def _batches(pieces: Sequence[KeyRows], split: str | None) -> list[tuple[int, Batch]]:
    if pieces[0].sides is not None:
        return _by_side(pieces)
    counts = [len(piece.values) for piece in pieces]
    stamped = any(piece.stamps is not None for piece in pieces)
    named = any(piece.ids is not None for piece in pieces)
    origins = split is not None and all(piece.origins is not None for piece in pieces)
    batch = Batch(
        list(chain.from_iterable([piece.values for piece in pieces])),
        _stamps(pieces) if stamped else None,
        _repeated([piece.key for piece in pieces], counts),
        _repeated([piece.group for piece in pieces], counts),
        list(chain.from_iterable(piece.origins or () for piece in pieces)) if origins else None,
        split if split is not None and origins else "",
        ids=_ids(pieces) if named else None,
    )
    return [(0, batch)]


def _stamps(pieces: Sequence[KeyRows]) -> list[int | None]:
    return list(chain.from_iterable(piece.stamps or [None] * len(piece.values) for piece in pieces))


def _ids(pieces: Sequence[KeyRows]) -> list[str | None]:
    return list(chain.from_iterable(piece.ids or [None] * len(piece.values) for piece in pieces))


def _repeated(items: Sequence[Any], counts: Sequence[int]) -> list[Any]:
    return list(chain.from_iterable(map(repeat, items, counts)))


class _Run:
    """Rows of one side, of many keys."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self.stamps: list[int | None] = []
        self.keys: list[Any] = []
        self.groups: list[int] = []
        self.ids: list[str | None] = []

    def batch(self) -> Batch:
        stamps = None if all(stamp is None for stamp in self.stamps) else self.stamps
        ids = None if all(id is None for id in self.ids) else self.ids
        return Batch(self.values, stamps, self.keys, self.groups, ids=ids)


def _by_side(pieces: Sequence[KeyRows]) -> list[tuple[int, Batch]]:
    """Even runs are the left input's, odd ones the right's."""
    runs: list[_Run] = []
    number, last = 0, None
    for piece in pieces:
        if piece.place != last:
            number, last = 0, piece.place
        stamps, ids = piece.stamps or repeat(None), piece.ids or repeat(None)
        for value, stamp, side, id in zip(piece.values, stamps, piece.sides or (), ids, strict=False):
            if number % 2 != side:
                number += 1
            while number >= len(runs):
                runs.append(_Run())
            run = runs[number]
            run.values.append(value)
            run.stamps.append(stamp)
            run.keys.append(piece.key)
            run.groups.append(piece.group)
            run.ids.append(id)
    return [(number % 2, run.batch()) for number, run in enumerate(runs) if run.values]
