"""The event log that the demo reads: made up, but the same for the same seed."""

import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

CUSTOMERS = 20_000
SEED = 20_240_229
_LINES = 10_000
_FIRST = 1_764_000_000_000
"""When the first order came, in milliseconds since the epoch; a whole hour."""
_APART = 250


def made_up_orders(events: int, seed: int = SEED, *, first: int = _FIRST, apart: float = _APART) -> Iterator[str]:
    """JSON lines. Some customers order often, most of them now and then. `first`, `apart`: in milliseconds."""
    chance = random.Random(seed).random
    for number in range(events):
        customer = int(CUSTOMERS * chance() ** 2)
        at = first + int(apart * number)
        yield f'{{"id":{number},"customer":"c{customer:05}","cents":{1 + int(chance() * 20_000)},"at":{at}}}\n'


def append(path: Path, orders: Iterator[str], count: int) -> None:
    """The next `count` orders, at the end of the log."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as log:
        while count > 0 and (lines := list(islice(orders, min(count, _LINES)))):
            log.write("".join(lines))
            count -= len(lines)


def make_log(folder: Path, events: int, seed: int = SEED) -> None:
    """The whole log in one go, unless it is there. Hidden until it is complete."""
    path = folder / "events" / "orders.jsonl"
    if path.exists():
        return
    growing = path.with_name(".orders.jsonl")
    growing.unlink(missing_ok=True)
    append(growing, made_up_orders(events, seed), events)
    growing.rename(path)
