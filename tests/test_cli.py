"""The command line, mostly as users run it: in a process of its own."""

import codecs
import datetime as dt
import json
import logging
import os
import pty
import re
import select
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from streamactors.cli.commands import app
from streamactors.cli.progress import ProgressMeter, as_line
from streamactors.runtime.info import CheckpointInfo
from tests.programs import PATIENCE, ROOT, Program, streamactors

JOBS = """
import asyncio, datetime as dt, os
from pathlib import Path
import msgspec
import streamactors as sa
from connectors.files import FileSink, FileSource

class Order(msgspec.Struct):
    customer: str
    amount: int

class Total(msgspec.Struct):
    customer: str
    total: int
    orders: int

class RunningTotal(sa.KeyedOperator[str, Order, Total]):
    total = sa.ValueState(Total)

    def open(self, ctx):
        ctx.log.info("opened")

    def process(self, order, ctx):
        before = self.total.get() or Total(ctx.key, 0, 0)
        after = Total(ctx.key, before.total + order.amount, before.orders + 1)
        self.total.set(after)
        ctx.emit(after)

def refuse(order):
    if order.amount < 0:
        raise ValueError(f"{order.amount} is negative")
    return order

async def wait_for_ever(order):
    Path("waiting").touch()
    await asyncio.Event().wait()

def make(follow=False):
    flow = sa.Dataflow("orders")
    orders = flow.source("orders", FileSource("in", value=sa.Json(Order), follow=follow))
    totals = orders.key_by(lambda o: o.customer).map(refuse, name="check").key_by(lambda o: o.customer)
    totals.process("totals", RunningTotal).sink("out", FileSink("out", value=sa.Json(Total)))
    return flow

flow = make()
live = lambda: make(follow=True)

def without_totals():
    flow = sa.Dataflow("orders")
    flow.source("orders", FileSource("in", value=sa.Json(Order))).sink("out", FileSink("out", value=sa.Json(Order)))
    return flow

def stuck():
    flow = sa.Dataflow("stuck")
    flow.source("orders", FileSource("in", value=sa.Json(Order))).map(wait_for_ever).print()
    return flow

def printing():
    flow = sa.Dataflow("printing")
    flow.source("orders", FileSource("in", value=sa.Json(Order))).map(lambda o: o.amount).print()
    return flow

config = sa.Config(
    checkpoints=sa.Checkpoints("checkpoints", interval=dt.timedelta(milliseconds=50)), restart=sa.Restart.none()
)
nonsense = 5
def failing():
    raise LookupError("no such table")

if __name__ == "__main__":
    sa.main(live(), config)
"""

CUSTOMERS = 7
Lines = list[dict[str, Any]]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "jobs.py").write_text(JOBS)
    (tmp_path / "in").mkdir()
    return tmp_path


def order(project: Path, numbers: Iterable[int]) -> None:
    """Lines at the end of the log; the amount of an order is its number."""
    with (project / "in" / "orders.jsonl").open("a") as log:
        for number in numbers:
            log.write(json.dumps({"customer": f"c{number % CUSTOMERS}", "amount": number}) + "\n")


def totals_of(numbers: Iterable[int]) -> dict[str, Lines]:
    """What must come out, by customer, in order."""
    totals: defaultdict[str, Lines] = defaultdict(list)
    for number in numbers:
        lines = totals[customer := f"c{number % CUSTOMERS}"]
        before = lines[-1]["total"] if lines else 0
        lines.append({"customer": customer, "total": before + number, "orders": len(lines) + 1})
    return totals


def output(project: Path) -> dict[str, Lines]:
    """What is visible, by customer, in the order of the parts."""
    found: defaultdict[str, Lines] = defaultdict(list)
    for path in sorted((project / "out").glob("[!.]*")):
        for line in map(json.loads, path.read_text().splitlines()):
            found[line["customer"]].append(line)
    return found


def run(project: Path, *args: str, environ: dict[str, str] | None = None) -> Program:
    program = streamactors(*args, cwd=project, environ=environ)
    program.end()
    return program


@contextmanager
def kept_logging() -> Iterator[None]:
    """The command sets up logging for its process, which here is the tests' own."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.handlers[:], root.level = before


def checkpoints(project: Path) -> Lines:
    program = run(project, "inspect", "checkpoints", "--json")
    return json.loads(program.stdout)  # type: ignore[no-any-return]


# ------------------------------------------------------------------------------------------------------------------ run
def test_runs_to_the_end(project: Path) -> None:
    order(project, range(500))
    program = run(project, "run", "jobs:flow")
    assert program.end() == 0, program.stderr
    assert output(project) == totals_of(range(500))


def test_says_first_where_each_setting_came_from(project: Path) -> None:
    order(project, range(3))
    (project / "job.toml").write_text('[checkpoints]\ninterval = "30s"\nretain = 7\n')
    program = run(
        project, "run", "jobs:flow", "--config", "job.toml", "--set", "mailbox_capacity=77", "--parallelism", "2",
        environ={"STREAMACTORS_CHECKPOINTS__RETAIN": "5"},
    )  # fmt: skip
    assert program.end() == 0, program.stderr
    lines = [re.split(r"\s{2,}", line.strip()) for line in program.stdout.splitlines()]
    settings = {name: (value, origin) for name, value, origin in (line for line in lines if len(line) == 3)}
    assert lines[0] == ["parallelism", "'2'", "flag parallelism"]
    assert settings["mailbox_capacity"] == ("'77'", "flag mailbox_capacity")
    assert settings["checkpoints.retain"] == ("'5'", "STREAMACTORS_CHECKPOINTS__RETAIN")
    assert settings["checkpoints.interval"] == ("'30s'", "job.toml")
    assert settings["checkpoints.storage"] == ("'checkpoints'", "module")
    assert settings["checkpoints.timeout"] == ("10m", "default")


def test_stdout_is_the_flows_own_when_quiet(project: Path) -> None:
    order(project, range(3))
    program = run(project, "run", "jobs:printing", "--quiet")
    assert program.end() == 0, program.stderr
    assert sorted(program.stdout.split()) == ["0", "1", "2"]
    assert program.stderr == ""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stops_cleanly_and_goes_on_where_it_was(project: Path, number: signal.Signals) -> None:
    order(project, range(300))
    with streamactors("run", "jobs:live", cwd=project) as program:
        program.wait_for(lambda: output(project), "any output")
        with streamactors("run", "jobs:flow", cwd=project) as second:
            assert second.end() == 2
            assert "error: refused" in second.stderr and str(program.pid) in second.stderr
        program.signal(number)
        assert program.end() == 0, program.stderr
    assert "goes on from file://" in program.stderr
    assert "Traceback" not in program.stderr
    order(project, range(300, 1000))
    program = run(project, "run", "jobs:flow")
    assert program.end() == 0, program.stderr
    assert "restoring file://" in program.stderr
    assert output(project) == totals_of(range(1000))


@pytest.mark.slow
def test_a_second_signal_cancels(project: Path) -> None:
    order(project, range(10))
    with streamactors("run", "jobs:stuck", cwd=project) as program:
        program.wait_for((project / "waiting").exists, "the operator waits")
        program.signal(signal.SIGINT)
        program.wait_for(lambda: "a second signal cancels" in program.stderr, "the first signal was seen")
        program.signal(signal.SIGINT)
        assert program.end() == 130, program.stderr


@pytest.mark.slow
@pytest.mark.kill
def test_types_of_a_script_are_found_again_under_their_modules_name(project: Path) -> None:
    order(project, range(300))
    with Program("jobs.py", cwd=project) as program:
        program.wait_for(lambda: output(project), "any output")
        program.signal(signal.SIGTERM)
        assert program.end() == 0, program.stderr
    order(project, range(300, 600))
    program = run(project, "run", "jobs:flow")
    assert program.end() == 0, program.stderr
    assert output(project) == totals_of(range(600))


# --------------------------------------------------------------------------------------------------------------- errors
def test_an_error_shows_the_users_own_line_first(project: Path) -> None:
    order(project, [3, 5, -4, 6])
    program = run(project, "run", "jobs:flow")
    assert program.end() == 1
    panel = program.stderr[program.stderr.index("error: the job has failed") :].splitlines()
    assert re.fullmatch(r"jobs\.py:\d+ in refuse", panel[1])
    assert panel[2].strip() == 'raise ValueError(f"{order.amount} is negative")'
    assert panel[3] == "ValueError: -4 is negative"
    assert "operator 'map-1'" in panel[4] and "key 'c3'" in panel[4] and "orders.jsonl:3" in panel[4]
    assert "Traceback" not in program.stderr
    full = run(project, "run", "jobs:flow", "--traceback")
    assert full.end() == 1
    assert "Traceback (most recent call last)" in full.stderr and "in refuse" in full.stderr


def test_what_fails_before_the_job_runs_is_told_too(project: Path) -> None:
    (project / "in").rmdir()
    program = run(project, "run", "jobs:flow")
    assert program.end() == 1
    assert "'in' matches no file" in program.stderr


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["absent:flow"], "there is no module 'absent'"),
        (["jobs"], "'jobs' is not module:flow"),
        (["jobs.py"], "for the file jobs.py that is jobs:flow"),
        (["jobs:absent"], "has no 'absent'; it has the dataflows: flow"),
        (["jobs:nonsense"], "jobs:nonsense is no Dataflow but int"),
        (["jobs:failing"], "LookupError: no such table"),
        (["broken:flow"], "SyntaxError"),
        (["importing:flow"], "No module named 'not_there'"),
        (["jobs:flow", "--set", "paralelism=2"], "did you mean 'parallelism'?"),
        (["jobs:flow", "--set", "parallelism"], "it must be name=value"),
        (["jobs:flow", "--interval", "10"], "checkpoints.interval = '10'"),
        (["jobs:flow", "--config", "absent.toml"], "'absent.toml' can't be read"),
        (["jobs:flow", "--report-every", "soon"], "--report-every"),
    ],
)
def test_refuses(project: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], expected: str) -> None:
    (project / "broken.py").write_text("flow = = 1\n")
    (project / "importing.py").write_text("import not_there\n")
    order(project, range(3))
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    for name in ("jobs", "broken", "importing"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.chdir(project)
    with kept_logging():
        result = CliRunner().invoke(app, ["run", *args])
    for name in ("jobs", "broken", "importing"):
        sys.modules.pop(name, None)
    assert result.exit_code == 2, result.output
    assert expected in result.stderr
    assert "Traceback" not in result.stderr


def test_names_a_connectors_package_that_hides_ours_and_its_cure(project: Path) -> None:
    (project / "connectors").mkdir()
    ours = project / "connectors" / "__init__.py"
    ours.write_text("")
    order(project, range(3))
    program = run(project, "run", "jobs:flow")
    assert program.end() == 2
    assert str(ours) in program.stderr
    cure = program.stderr[program.stderr.index("__path__ =") :].splitlines()[0]
    ours.write_text(cure + "\n")
    program = run(project, "run", "jobs:flow")
    assert program.end() == 0, program.stderr


# -------------------------------------------------------------------------------------------------------------- restore
@pytest.mark.slow
def test_restore_by_name_and_not_at_all(project: Path) -> None:
    order(project, range(100))
    assert run(project, "run", "jobs:flow").end() == 0
    refused = run(project, "run", "jobs:flow", "--restore", "none")
    assert refused.end() == 2 and "already holds checkpoints" in refused.stderr
    nowhere = run(project, "run", "jobs:flow", "--restore", "nowhere")
    assert nowhere.end() == 2 and "nowhere does not exist" in nowhere.stderr
    last = checkpoints(project)[0]["uri"]
    again = run(project, "run", "jobs:flow", "--restore", last)
    assert again.end() == 0 and f"restoring {last}" in again.stderr
    assert output(project) == totals_of(range(100))
    assert run(project, "run", "jobs:flow", "--fresh").end() == 0
    assert sum(map(len, output(project).values())) == 200  # begun anew, beside the old output


@pytest.mark.slow
def test_state_is_dropped_only_by_name(project: Path) -> None:
    order(project, range(100))
    assert run(project, "run", "jobs:flow").end() == 0
    refused = run(project, "run", "jobs:without_totals")
    assert refused.end() == 2 and "'totals'" in refused.stderr
    assert run(project, "run", "jobs:without_totals", "--drop-state", "totals").end() == 0


# ------------------------------------------------------------------------------------------------------------- progress
def test_json_logs_are_one_object_per_line(project: Path) -> None:
    order(project, [1, 2, -4])
    program = run(project, "run", "jobs:flow", "--log-format", "json", "--report-every", "1ms")
    assert program.end() == 1
    assert program.stdout == ""
    lines = [json.loads(line) for line in program.stderr.splitlines()]
    assert {"setting": "parallelism", "value": "1", "origin": "default"}.items() <= lines[0].items()
    opened = next(line for line in lines if line["message"] == "opened")
    assert (opened["flow"], opened["uid"], opened["subtask"], opened["level"]) == ("orders", "totals", 0, "INFO")
    failed = next(line for line in lines if line["level"] == "CRITICAL")
    assert "ValueError: -4 is negative" in failed["error"] and "Traceback" in failed["exception"]


@pytest.mark.slow
def test_a_terminal_gets_a_live_table(project: Path) -> None:
    order(project, range(300))
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "streamactors", "run", "jobs:live", "--report-every", "50ms"]
    environ = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "200"}
    process = subprocess.Popen(command, cwd=project, env=environ, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    screen = plain = ""
    signalled = False  # a second signal would cancel
    try:
        for printed in read_all(ours):
            screen += printed
            plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen)
            seen = re.search(r"totals +300 +\S+ +300 ", plain) and re.search(r"checkpoint \d+ \(", plain)
            if seen and not signalled:
                signalled = True
                process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 0, plain
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    assert re.search(r"operator +in +in/s +out +out/s +mailbox", plain)
    assert "orders finished · checkpoint" in plain
    assert "stopped; goes on from file://" in plain


@pytest.mark.slow
def test_a_terminal_is_told_once_of_a_failure(project: Path) -> None:
    order(project, [3, 5, -4, 6])
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "streamactors", "run", "jobs:flow"]
    environ = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "200"}
    process = subprocess.Popen(command, cwd=project, env=environ, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    try:
        screen = "".join(read_all(ours))
        assert process.wait(PATIENCE) == 1, screen
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    assert screen.count("ValueError: -4 is negative") == 1 and screen.count("the job has failed") == 1, screen


def read_all(terminal: int) -> Iterator[str]:
    """Until all that had it open have closed it. A character may come in two parts."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    while select.select([terminal], [], [], PATIENCE)[0]:
        try:
            data = os.read(terminal, 65536)
        except OSError:  # that is how Linux tells the end of a terminal
            return
        if not data:
            return
        yield decoder.decode(data)


def metrics(read: int, **more: Any) -> dict[str, Any]:
    """Of a source and two chained operators, each in two subtasks that have both read so many records."""
    source = {"queued": 0, "capacity": 0, "nodes": {"in": {"records_in": 0, "records_out": read}}}
    nodes = {"sum": {"records_in": read, "records_out": 2 * read}, "out": {"records_in": 2 * read, "records_out": 0}}
    chain = {"queued": 25, "capacity": 100, "nodes": nodes}
    subtasks = {"sum[0]": chain, "sum[1]": chain, "in[0]": source, "in[1]": source}
    return {"status": "running", "restarts": 0, "last_checkpoint": None, "subtasks": subtasks} | more


def test_progress_makes_rates_of_counts() -> None:
    meter = ProgressMeter("orders", ["in", "sum", "out"])
    meter.measure(metrics(100), 10.0)
    progress = meter.measure(metrics(150), 10.5)
    rates = [(one.uid, one.in_per_second, one.out_per_second) for one in progress.operators]
    assert rates == [("in", 0, 200), ("sum", 200, 400), ("out", 400, 0)]
    assert [(one.queued, one.capacity) for one in progress.operators] == [(0, 0), (50, 200), (0, 0)]
    assert as_line(progress) == (
        "orders: running, no checkpoint; in 200/s out, sum 200/s in 400/s out (mailbox 25%), out 400/s in"
    )


def test_progress_outlives_an_attempt() -> None:
    meter = ProgressMeter("orders", ["in", "sum", "out"])
    before = meter.measure(metrics(100), 0.0)
    between = meter.measure(metrics(0, status="restarting", subtasks={}), 1.0)
    assert between.operators == before.operators and between.status == "restarting"
    after = meter.measure(metrics(30, restarts=1), 2.0)
    assert after.operators[0].out_per_second == 30  # counts began again: 2 · 30 in the two seconds since the last ones
    assert ", 1 restart;" in as_line(after)
    assert as_line(meter.measure(metrics(0, status="finished", subtasks={}), 3.0)) == "orders: finished, no checkpoint"


def test_progress_tells_the_age_of_the_last_checkpoint() -> None:
    meter = ProgressMeter("orders", ["in"])
    info = CheckpointInfo(7, "uri", dt.timedelta(seconds=0.25), 1_500_000, 1_500_000, 0)
    meter.measure(metrics(1, last_checkpoint=info), 5.0)
    progress = meter.measure(metrics(1, last_checkpoint=info), 8.0)
    assert "checkpoint 7 (0.250 s, 1.5 MB, 3 s ago)" in as_line(progress)


# -------------------------------------------------------------------------------------------------------------- inspect
@pytest.fixture
def stored(project: Path) -> Path:
    """With the checkpoints of a job that read 100 orders."""
    order(project, range(100))
    assert run(project, "run", "jobs:flow", "--parallelism", "2").end() == 0
    return project


def test_inspect_lists_and_looks_into_checkpoints(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(stored)
    everything = inspect("checkpoints", "--json")
    assert everything == inspect("checkpoints/orders", "--json")
    (last, *_) = everything
    assert (last["flow"], last["run"], last["entries"], last["committed"]) == ("orders", 1, CUSTOMERS, True)
    assert last["problem"] is None and last["bytes"] > 0
    one = inspect(last["uri"], "--json")
    operators = {operator["uid"]: operator for operator in one["operators"]}
    assert operators["totals"]["parallelism"] == 2
    assert operators["totals"]["states"] == {"total": CUSTOMERS}
    assert [subtask["key_groups"] for subtask in operators["totals"]["subtasks"]] == [[0, 63], [64, 127]]
    size = (stored / "in" / "orders.jsonl").stat().st_size
    positions = [place for subtask in operators["orders"]["subtasks"] for place in subtask["positions"].items()]
    assert [(Path(split).name, position[:2]) for split, position in positions] == [("orders.jsonl", [size, 101])]
    shown = invoke("inspect", "checkpoints").stdout
    assert f"chk-{last['checkpoint']}" in shown and "orders" in shown
    shown = invoke("inspect", last["uri"]).stdout
    assert "total: 7" in shown and "0..63" in shown and "orders.jsonl" in shown
    for short, long, code in (
        ("", "", 0),
        ("totals", "--operator totals", 0),
        ("totals total --limit 3", "--operator totals --state total --limit 3", 0),
        ("totals absent", "--operator totals --state absent", 2),
        ("totals --key c1", "--operator totals --key c1", 2),
    ):
        for options in ([], ["--json"]):
            told = invoke("state", last["uri"], *short.split(), *options)
            expected = invoke("inspect", last["uri"], *long.split(), *options)
            assert (told.stdout, told.stderr, told.exit_code) == (expected.stdout, expected.stderr, code)


LISTS = """
import streamactors as sa
from connectors.memory import ListSink, ListSource

class Hold(sa.Operator[int, int]):
    held = sa.OperatorListState(int)
    known = sa.UnionListState(str)
    unused = sa.OperatorListState(int)

    def open(self, ctx):
        self.known.append(f"subtask {ctx.subtask}")

    def process(self, value, ctx):
        self.held.append(value)

flow = sa.Dataflow("lists")
values = flow.source("values", ListSource(range(1234)))
values.process("hold", Hold).sink("out", ListSink())
"""


def test_inspect_shows_lists_without_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lists.py").write_text(LISTS)
    program = run(tmp_path, "run", "lists:flow", "--parallelism", "2", "--storage", "checkpoints", "--interval", "1h")
    assert program.end() == 0
    (last, *_) = inspect("checkpoints", "--json")
    assert last["bytes"] > 1234 and last["problem"] is None
    hold = next(operator for operator in inspect(last["uri"], "--json")["operators"] if operator["uid"] == "hold")
    assert hold["lists"] == {
        "held": {"items": 1234, "union": False},
        "known": {"items": 2, "union": True},
        "unused": {"items": 0, "union": False},
    }
    assert hold["states"] == {} and hold["bytes"] == last["bytes"]
    shown = invoke("inspect", last["uri"]).stdout
    assert "held: 1,234 items" in shown and "known: 2 items, union" in shown and "0..63" not in shown


def test_inspect_shows_damage(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(stored)
    last = inspect("checkpoints", "--json")[0]
    folder = Path(last["uri"].removeprefix("file://"))
    state = next(path for path in folder.iterdir() if "totals" in path.name)
    intact = state.read_bytes()
    state.write_bytes(intact[:-1] + bytes([intact[-1] ^ 1]))
    assert inspect("checkpoints", "--json")[0]["problem"] is None  # sizes only, by default
    assert "is altered" in inspect("checkpoints", "--json", "--verify", "digests")[0]["problem"]
    state.write_bytes(intact[:-1])
    assert "is truncated" in inspect("checkpoints", "--json")[0]["problem"]
    one = invoke("inspect", last["uri"])
    assert one.exit_code == 1 and "is truncated" in one.stdout and "totals" in one.stdout
    manifest = folder / "manifest"
    manifest.write_bytes(manifest.read_bytes()[:-5])
    assert "manifest is truncated" in inspect("checkpoints", "--json")[0]["problem"]
    assert "is truncated" in invoke("inspect", "checkpoints").stdout
    one = invoke("inspect", last["uri"])
    assert one.exit_code == 1 and "manifest is truncated" in one.stderr


def test_inspect_refuses_what_holds_no_checkpoints(tmp_path: Path) -> None:
    result = invoke("inspect", str(tmp_path))
    assert result.exit_code == 2 and "holds no checkpoints" in result.stderr


def inspect(*args: str) -> Any:
    result = invoke("inspect", *args)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def invoke(*args: str) -> Any:
    return CliRunner().invoke(app, args)


# ------------------------------------------------------------------------------------------------------------ the rest
def test_explain(project: Path) -> None:
    program = run(project, "explain", "jobs:flow", "--parallelism", "3")
    assert program.end() == 0, program.stderr
    assert "totals  process  RunningTotal" in program.stdout and "3 subtasks" in program.stdout
    program = run(project, "explain", "jobs:live", "--mermaid")
    assert program.stdout.startswith("flowchart LR\n")


def test_help_documents_exit_codes_and_version_is_shown() -> None:
    for args in (["--help"], ["run", "--help"]):
        text = " ".join(invoke(*args).stdout.split())
        assert "130 interrupted a second time" in text
    assert re.fullmatch(r"streamactors \d+\.\d+\.\d+\S*\n", invoke("--version").stdout)
