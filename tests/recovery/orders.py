"""Random orders, and what the job of `jobs` must make of them."""

import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path

import msgspec

import streamactors as sa
from tests.recovery.jobs import Line, Order, Settings, Total, halves, whole

ByCustomer = Mapping[str, Sequence[Total]]


def random_orders(rng: random.Random, count: int, logs: int, customers: int = 200) -> list[list[Order]]:
    """`count` orders dealt to so many logs (files, partitions), a customer's all to one: they have an order then."""
    dealt: list[list[Order]] = [[] for _ in range(logs)]
    for id in range(count):
        customer = min(int(rng.expovariate(8) * customers), customers - 1)
        dealt[customer % logs].append(Order(id, f"customer-{customer}", rng.randint(1, 1000)))
    return dealt


def lines_of(orders: Iterable[Order], *, flat: bool) -> list[Line]:
    return [line for order in orders for line in (halves if flat else whole)(order)]


def expected_totals(lines: Iterable[Line]) -> dict[str, list[Total]]:
    """The plain computation."""
    sums: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0])
    totals: defaultdict[str, list[Total]] = defaultdict(list)
    for line in lines:
        running = sums[line.customer]
        running[0] += 1
        running[1] += line.amount
        totals[line.customer].append(Total(line.id, line.customer, line.amount, *running))
    return dict(totals)


def check(found: ByCustomer, logs: Sequence[Sequence[Order]], settings: Settings) -> None:
    """Every line's total once, and per customer in order: that of the input, or where this is lost on the way by a
    rebalance, that of the counts and totals themselves."""
    expected = expected_totals(line for log in logs for line in lines_of(log, flat=settings.flat))
    for customer, totals in expected.items():
        seen = list(found.get(customer, ()))
        wanted = sorted(total.id for total in totals)
        ids = sorted(total.id for total in seen)
        assert ids == wanted, _difference(customer, wanted, ids)
        if settings.rebalanced:
            assert [total.count for total in seen] == list(range(1, len(seen) + 1)), f"{customer} is out of order"
            assert [total.total for total in seen] == list(accumulate(total.amount for total in seen)), customer
        else:
            assert seen == totals, f"{customer} is out of order, or its totals are wrong"
    assert found.keys() == expected.keys()


def _difference(customer: str, wanted: Sequence[str], found: Sequence[str]) -> str:
    lost = sorted(set(wanted) - set(found))
    doubled = sorted({id for id in found if found.count(id) > 1})
    return (
        f"{customer}: {len(wanted)} expected, {len(found)} found; "
        f"{len(lost)} lost, such as {lost[:5]}; {len(doubled)} doubled, such as {doubled[:5]}"
    )


def by_customer(totals: Iterable[Total]) -> dict[str, list[Total]]:
    found: defaultdict[str, list[Total]] = defaultdict(list)
    for total in totals:
        found[total.customer].append(total)
    return dict(found)


# -------------------------------------------------------------------------------------------------------------- files
def write_logs(folder: Path, logs: Sequence[Sequence[Order]], *, poison_every: int = 0) -> list[str]:
    """One file a log. After every so many orders a line that is none: returns where these are."""
    folder.mkdir()
    encode = msgspec.json.Encoder().encode
    poisoned = []
    for number, log in enumerate(logs):
        path = folder / f"orders-{number}.jsonl"
        lines = []
        for count, order in enumerate(log, start=1):
            lines.append(encode(order))
            if poison_every and count % poison_every == 0:
                lines.append(b"poison")
                poisoned.append(f"{path}:{len(lines)}")
        path.write_bytes(b"".join(line + b"\n" for line in lines))
    return poisoned


def totals_in(folder: Path) -> list[Total]:
    """What is visible, in the order written: a customer's parts are one subtask's while an attempt runs."""
    decode = msgspec.json.Decoder(Total).decode
    return [decode(line) for line in visible_lines(folder)]


def letters_in(folder: Path) -> list[str]:
    """Where the dead letters came from, sorted."""
    decode = msgspec.json.Decoder(sa.DeadLetter).decode
    return sorted(decode(line).origin for line in visible_lines(folder))


def visible_lines(folder: Path) -> list[bytes]:
    parts = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    return [line for part in parts for line in part.read_bytes().splitlines()]


def hidden_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))
