"""Running totals per customer, and counts per minute and per hour, from a log of orders, written to files exactly once.

    streamactors run examples.orders:flow     shows progress; Ctrl-C stops it; the same again goes on where it was
    streamactors inspect var/orders/checkpoints
                                              the checkpoints that it goes on from
    make demo                                 the same flow, killed in the middle, and every total counted

The first start makes up a million orders in `var/orders/events/`. The job then waits for more: lines that you append
there turn up in `var/orders/totals/` with the next checkpoint, a second later. A minute is in `minutes/` once an order
of the next one has come, an hour in `hours/` likewise. The flow itself, 50 lines, ships with the package, so that
`streamactors demo` can run it anywhere: `streamactors/demo/orders.py`.
"""

import streamactors as sa
from streamactors.demo.event_log import make_log
from streamactors.demo.orders import FOLDER, config, orders_flow

__all__ = ["config", "flow"]

EVENTS = 1_000_000


def flow() -> sa.Dataflow:
    """A factory, so that the log is made when the job starts and not when this module is imported."""
    make_log(FOLDER, EVENTS)
    return orders_flow(FOLDER, follow=True, counts=True)


if __name__ == "__main__":
    sa.main(flow(), config)
