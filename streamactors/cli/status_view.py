"""How jobs of other processes are shown: a table of all, or one with its operators, once or again and again."""

import datetime as dt
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
import typer
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from streamactors.cli.live import COLOURS
from streamactors.cli.progress import OperatorProgress, Progress, ProgressMeter, as_line, as_words, fill
from streamactors.clock import SYSTEM
from streamactors.observe.model import JobStatus
from streamactors.runtime.info import CheckpointInfo
from streamactors.runtime.rescaling import changes

Show = Callable[[JobStatus], None]


def jobs(rows: Sequence[Mapping[str, Any]], now_ms: int) -> Table:
    table = _table("job", "status", "pid", "up", "restarts", "last checkpoint", "storage")
    for row in rows:
        table.add_row(
            Text(row["name"]),
            _status(row["status"] or "no answer", row.get("stopping", False)),
            str(row["pid"]),
            span((now_ms - row["started_ms"]) / 1000),
            str(row.get("restarts", "")),
            _last(row.get("last_checkpoint"), now_ms),
            Text(row["storage"] or ""),
        )
    return table


def _last(checkpoint: Mapping[str, Any] | None, now_ms: int) -> str:
    if checkpoint is None:
        return ""
    return f"{checkpoint['id']}, {span((now_ms - checkpoint['time_ms']) / 1000)} ago"


class StatusView:
    """Of one job. From the second look on it tells rates too."""

    def __init__(self) -> None:
        self._meter: ProgressMeter | None = None
        self._looks = 0

    def measure(self, status: JobStatus, now_ms: int) -> Progress:
        if self._meter is None:
            self._meter = ProgressMeter(status.name, [operator.uid for operator in status.operators])
        self._looks += 1
        progress = self._meter.measure(_metrics(status), SYSTEM.monotonic())
        if progress.checkpoint is None or status.last_checkpoint is None:
            return progress
        age = max(0.0, (now_ms - status.last_checkpoint.time_ms) / 1000)
        return msgspec.structs.replace(progress, checkpoint=msgspec.structs.replace(progress.checkpoint, age=age))

    def show(self, status: JobStatus, now_ms: int) -> Group:
        progress = self.measure(status, now_ms)
        words = f" · up {span(status.uptime_seconds)} · {as_words(progress)}"
        title = Text.assemble((status.name, "bold"), " ", _status(status.status, status.stopping), words)
        parts: list[Any] = [title, Text(_origin(status), style="dim")]
        if status.last_failure:
            parts.append(Text(f"the attempt before failed: {status.last_failure}", style="yellow"))
        if told := _rescaled(status, now_ms):
            parts.append(Text(told, style="dim"))
        if status.autoscale is not None:
            dry = " (dry run)" if status.autoscale.dry_run else ""
            parts.append(Text(f"autoscaler{dry}: {status.autoscale.action}: {status.autoscale.reason}", style="dim"))
        return Group(*parts, self._operators(status, progress))

    def _operators(self, status: JobStatus, progress: Progress) -> Table:
        rates = self._looks > 1
        table = _table("operator", "kind", "subtasks", "in", *["in/s"] * rates, "out", *["out/s"] * rates, "mailbox")
        measured = {operator.uid: operator for operator in progress.operators}
        for operator in status.operators:
            numbers = _numbers(measured[operator.uid], rates) if operator.uid in measured else []
            table.add_row(Text(operator.uid), operator.kind, str(operator.parallelism), *numbers)
        return table


def _numbers(operator: OperatorProgress, rates: bool) -> list[str]:
    into = [f"{operator.records_in:,}", *[f"{operator.in_per_second:,.0f}"] * rates]
    out = [f"{operator.records_out:,}", *[f"{operator.out_per_second:,.0f}"] * rates]
    return [*into, *out, fill(operator)]


def _metrics(status: JobStatus) -> dict[str, Any]:
    """As `JobHandle.metrics()` has it in the job's own process."""
    last = status.last_checkpoint
    info = None
    if last is not None:
        sizes = {name: getattr(last, name) for name in ("state_bytes", "uploaded_bytes", "inflight_bytes")}
        info = CheckpointInfo.of(last.id, last.uri, last.seconds, **sizes)
    subtasks = {subtask.id: msgspec.to_builtins(subtask) for subtask in status.subtasks}
    return {"status": status.status, "restarts": status.restarts, "last_checkpoint": info, "subtasks": subtasks}


def _origin(status: JobStatus) -> str:
    words = [f"pid {status.pid}"]
    if status.target:
        words.append(f"started as {status.target}")
    words.append(f"storage {status.storage}" if status.storage else "no checkpoints")
    return ", ".join(words)


def _rescaled(status: JobStatus, now_ms: int) -> str:
    """By hand or by itself; else what a process before may have been rescaled to."""
    if (last := status.last_rescale) is not None:
        ago = span((now_ms - last.time_ms) / 1000)
        pause = f"nothing was read for {last.pause_seconds:.3f} s"
        return f"last rescale: {changes(last.before, last.after)}, {ago} ago; {pause}"
    before, now = status.restored_parallelism, {each.uid: each.parallelism for each in status.operators}
    found = changes(before, {uid: now[uid] for uid in before if uid in now})
    return f"started from a checkpoint of another parallelism: {found}" if found else ""


@contextmanager
def screen(*, as_json: bool) -> Iterator[Show]:
    """What to show each status with: JSON and plain text line by line, on a terminal in place of the one before."""
    view = StatusView()
    if as_json:
        yield lambda status: typer.echo(msgspec.json.encode(status))
    elif not sys.stdout.isatty():
        yield lambda status: typer.echo(as_line(view.measure(status, SYSTEM.time_ms())))
    else:
        with Live(console=Console(highlight=False), auto_refresh=False) as live:
            yield lambda status: live.update(view.show(status, SYSTEM.time_ms()), refresh=True)


def span(seconds: float) -> str:
    """Of time, for people: `5 s`, `12 min`, `3 h 4 min`, `2 d 5 h`."""
    whole = dt.timedelta(seconds=max(0, round(seconds)))
    hours, rest = divmod(whole.seconds, 3600)
    if whole.days:
        return f"{whole.days} d {hours} h"
    if hours:
        return f"{hours} h {rest // 60} min"
    return f"{rest // 60} min" if rest >= 60 else f"{rest} s"


def _status(status: str, stopping: bool) -> Text:
    return Text(f"{status}, stopping" if stopping and status == "running" else status, style=COLOURS.get(status, ""))


_NUMBERS = {"pid", "restarts", "subtasks", "in", "in/s", "out", "out/s", "mailbox"}


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold", justify="right" if column in _NUMBERS else "left")
    return table
