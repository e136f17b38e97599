"""The demo plays to its end, and its check finds what it is there to find."""

import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from streamactors.cli.demo_view import TerminalStage
from streamactors.cli.progress import OperatorProgress, Progress
from streamactors.demo.check import Verdict, check
from streamactors.demo.crash import Child, GrowingLog, Killed, Reported, Scene, Told, _kill_in_the_middle
from streamactors.demo.event_log import CUSTOMERS, append, made_up_orders, make_log
from tests.programs import streamactors

EVENTS = 2_000


@pytest.mark.slow
@pytest.mark.kill
def test_demo_kills_restores_and_finds_everything_once(tmp_path: Path) -> None:
    with streamactors("demo", "--events", "20000", "--keep", "kept", cwd=tmp_path) as program:
        assert program.end() == 0, program.stdout + program.stderr
    lines = program.stdout.splitlines()
    assert lines[-1] == "20,000 expected · 20,000 found · 0 lost · 0 doubled"
    killed = next(place for place, line in enumerate(lines) if line.startswith("SIGKILL to process"))
    assert any("restoring file://" in line for line in lines[killed:])
    assert "have to be done again" in lines[killed + 1]
    assert check(tmp_path / "kept", 20_000).equal
    with streamactors("demo", "--keep", "kept", cwd=tmp_path) as program:
        assert program.end() == 2 and "is not empty" in program.stderr


class Reading(Child):
    """Every report tells of another checkpoint, and that all there is has been read, as where it comes late."""

    def __init__(self, log: Path, checkpoints: int) -> None:
        self.log, self.checkpoints = log, checkpoints
        self.records_read, self.killed = 0, False

    @property
    def pid(self) -> int:
        return 99

    def scenes(self) -> Iterator[Scene]:
        for report in range(20):
            self.records_read = len(self.log.read_text().splitlines())
            yield Reported({"checkpoint": {"id": min(report, self.checkpoints)}})

    def kill(self) -> None:
        self.killed = True


@pytest.mark.parametrize("checkpoints", range(4))
def test_there_is_always_something_to_read_behind_the_last_checkpoint(tmp_path: Path, checkpoints: int) -> None:
    ticks = iter(range(1000))
    log = GrowingLog(tmp_path / "orders.jsonl", EVENTS, lambda: float(next(ticks)))
    child = Reading(log.path, checkpoints)
    *_, last = _kill_in_the_middle(child, log)
    assert child.killed and isinstance(last, Killed) and EVENTS * 0.4 < last.records < EVENTS


def test_a_terminal_gets_a_table_of_each_process() -> None:
    def report(read: int) -> Reported:
        operator = OperatorProgress("orders", 0, read, 0.0, read / 2, 0, 0)
        return Reported(msgspec.to_builtins(Progress("orders", "running", 0, None, (operator,))))

    console = Console(file=io.StringIO(), force_terminal=True, width=200)
    with TerminalStage(console) as stage:
        for scene in (Told("begin"), report(100), report(1234), Killed(99, 1234), report(5678), Verdict(9, 9, 0, 0)):
            stage.show(scene)
    assert isinstance(console.file, io.StringIO)
    screen = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue())
    expected = ("begin", "1,234", "SIGKILL to process 99", "5,678", "9 expected · 9 found")
    places = [screen.index(text) for text in expected]
    assert places == sorted(places)


# --------------------------------------------------------------------------------------------------------------- check
@pytest.fixture
def played(tmp_path: Path) -> Path:
    """A log, and what a job should make of it, by other means."""
    make_log(tmp_path, EVENTS)
    totals: dict[str, int] = {}
    (tmp_path / "totals").mkdir()
    with (tmp_path / "totals" / "part-1").open("w") as out:
        for order in map(json.loads, (tmp_path / "events" / "orders.jsonl").read_text().splitlines()):
            totals[order["customer"]] = totals.get(order["customer"], 0) + order["cents"]
            total = {"order": order["id"], "customer": order["customer"], "cents": totals[order["customer"]]}
            out.write(json.dumps(total) + "\n")
    return tmp_path


def change(folder: Path, change: Callable[[list[str]], list[str]]) -> None:
    part = folder / "totals" / "part-1"
    part.write_text("".join(change(part.read_text().splitlines(keepends=True))))


def test_check_accepts_what_is_right(played: Path) -> None:
    verdict = check(played, EVENTS)
    assert verdict.equal
    assert str(verdict) == "2,000 expected · 2,000 found · 0 lost · 0 doubled"


def test_check_does_not_look_at_hidden_parts(played: Path) -> None:
    (played / "totals" / ".part-2.pending").write_text((played / "totals" / "part-1").read_text())
    assert check(played, EVENTS).equal


def test_check_counts_what_is_lost(played: Path) -> None:
    change(played, lambda lines: lines[:100] + lines[103:])
    verdict = check(played, EVENTS)
    assert (verdict.lost, verdict.doubled, verdict.wrong, verdict.equal) == (3, 0, 0, False)


def test_check_counts_what_is_doubled(played: Path) -> None:
    change(played, lambda lines: lines + lines[:5])
    verdict = check(played, EVENTS)
    assert (verdict.lost, verdict.doubled, verdict.wrong, verdict.equal) == (0, 5, 0, False)


def test_check_counts_wrong_values(played: Path) -> None:
    def wrong(lines: list[str]) -> list[str]:
        line = json.loads(lines[7])
        return [*lines[:7], json.dumps(line | {"cents": line["cents"] + 1}) + "\n", *lines[8:]]

    change(played, wrong)
    verdict = check(played, EVENTS)
    assert (verdict.lost, verdict.doubled, verdict.wrong, verdict.equal) == (1, 0, 1, False)


def test_check_wants_each_customers_totals_in_order(played: Path) -> None:
    change(played, lambda lines: lines[::-1])
    verdict = check(played, EVENTS)
    assert (verdict.lost, verdict.doubled) == (0, 0)
    assert verdict.wrong > 0 and not verdict.equal


# ----------------------------------------------------------------------------------------------------------- event log
def test_the_log_is_the_same_however_it_is_written(tmp_path: Path) -> None:
    orders = made_up_orders(EVENTS)
    for count in (1, 999, 1000):
        append(tmp_path / "log", orders, count)
    assert (tmp_path / "log").read_text() == "".join(made_up_orders(EVENTS))


def test_a_log_that_is_there_is_left_alone(tmp_path: Path) -> None:
    make_log(tmp_path, 10)
    make_log(tmp_path, 20)
    assert len((tmp_path / "events" / "orders.jsonl").read_text().splitlines()) == 10


def test_there_are_more_than_ten_thousand_customers() -> None:
    seen = {json.loads(line)["customer"] for line in made_up_orders(100_000)}
    assert 10_000 < len(seen) <= CUSTOMERS
