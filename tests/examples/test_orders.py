"""`streamactors run examples.orders:flow`: progress, Ctrl-C, and on where it was."""

import signal
from pathlib import Path

import pytest

from streamactors.demo.check import check
from streamactors.demo.event_log import append, made_up_orders, make_log
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
