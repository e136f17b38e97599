"""`streamactors run examples.orders:flow`: progress, Ctrl-C, and on where it was."""

import signal
from pathlib import Path

import msgspec
import pytest

from streamactors.demo.check import check
from streamactors.demo.event_log import append, made_up_orders, make_log
from streamactors.demo.orders import Counted, Order
from tests.programs import streamactors


def visible_lines(folder: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in (folder / "totals").glob("[!.]*"))


@pytest.mark.slow
def test_ctrl_c_stops_it_and_it_goes_on_where_it_was(tmp_path: Path) -> None:
    environ = {"ORDERS_FOLDER": str(tmp_path)}
    make_log(tmp_path, 5_000)
    for events in (5_000, 10_000):
        command = ("run", "examples.orders:flow", "--report-every", "50ms")
        with streamactors(*command, cwd=tmp_path, environ=environ) as job:
            job.wait_for(lambda wanted=events: visible_lines(tmp_path) == wanted, "all output is there")  # type: ignore[misc]
            job.wait_for(lambda: "totals" in job.stderr, "progress")
            job.signal(signal.SIGINT)
            assert job.end() == 0, job.stderr
        assert "goes on from file://" in job.stderr
        more = made_up_orders(10_000)
        for _ in range(5_000):
            next(more)
        if events == 5_000:
            append(tmp_path / "events" / "orders.jsonl", more, 5_000)
    assert check(tmp_path, 10_000).equal
    minutes = counted(tmp_path / "minutes")
    assert [each.orders for each in minutes] == [240] * 41  # 4 a second; the last minute is not over
    assert [each.start for each in minutes] == [minutes[0].start + 60_000 * number for number in range(41)]
    orders = [msgspec.json.decode(line, type=Order) for line in made_up_orders(41 * 240)]
    assert sum(each.cents for each in minutes) == sum(order.cents for order in orders)
    assert counted(tmp_path / "hours") == []


def counted(folder: Path) -> list[Counted]:
    files = folder.glob("[!.]*")
    rows = [msgspec.json.decode(line, type=Counted) for path in files for line in path.read_bytes().splitlines()]
    return sorted(rows, key=lambda row: row.start)
