"""The same work without streamactors: what a Python programmer would write by hand."""

import time
from collections.abc import Sequence

import msgspec

from benchmarks.events import Order, Total


def stateless(lines: Sequence[bytes]) -> float:
    """(a) parse, filter, map; seconds."""
    decode = msgspec.json.Decoder(Order).decode
    started = time.perf_counter()
    count = 0
    for line in lines:
        order = decode(line)
        if order.valid:
            order.amount * 2
            count += 1
    return time.perf_counter() - started


def running_sum(lines: Sequence[bytes]) -> float:
    """(b) parse, running sum per key, every update kept; seconds."""
    decode = msgspec.json.Decoder(Order).decode
    started = time.perf_counter()
    totals: dict[str, int] = {}
    for line in lines:
        order = decode(line)
        total = totals[order.customer] = totals.get(order.customer, 0) + order.amount
        Total(order.customer, total)
    return time.perf_counter() - started
