"""Progress of a running job: a table that redraws itself on a terminal, log lines elsewhere."""

import logging
import sys
from collections.abc import Iterator
from types import TracebackType
from typing import Protocol, Self

import msgspec
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from streamactors.cli.progress import Progress, ProgressMeter, as_line, as_words, fill, read_of
from streamactors.clock import Clock
from streamactors.diagnosis import in_bytes
from streamactors.launch import JobHandle

log = logging.getLogger("streamactors.progress")

LONG_SECONDS = 1.0
BAR = 30
"""Columns."""
COLOURS = {"running": "green", "finished": "green", "restarting": "yellow", "failed": "red"}


class Display(Protocol):
    def show(self, progress: Progress) -> None: ...


class LogDisplay:
    """One line each time; as JSON it carries the numbers themselves, under `progress`."""

    def show(self, progress: Progress) -> None:
        log.info("%s", as_line(progress), extra={"progress": msgspec.to_builtins(progress)})


class SilentDisplay:
    def show(self, progress: Progress) -> None:
        return None


class LiveDisplay:
    """Whatever is printed meanwhile comes out above the table; what goes into a pipe or a file stays untouched."""

    def __init__(self, console: Console) -> None:
        self._live = Live(
            console=console,
            auto_refresh=False,
            redirect_stdout=sys.stdout.isatty(),
            redirect_stderr=sys.stderr.isatty(),
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._live.stop()

    def show(self, progress: Progress) -> None:
        self._live.update(table(progress), refresh=True)


def table(progress: Progress) -> Group:
    rows = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    rows.add_column("operator", style="bold", no_wrap=True)
    for name in ("in", "in/s", "out", "out/s", "mailbox"):
        rows.add_column(name, justify="right", no_wrap=True)
    for operator in progress.operators:
        rows.add_row(
            operator.uid,
            f"{operator.records_in:,}",
            f"{operator.in_per_second:,.0f}",
            f"{operator.records_out:,}",
            f"{operator.out_per_second:,.0f}",
            fill(operator),
        )
    status = Text(progress.status, style=COLOURS.get(progress.status, ""))
    title = Text.assemble((progress.flow, "bold"), " ", status, f" · {as_words(progress)}")
    return Group(title, *([rows] if progress.operators else []), *_bars(progress))


def _bars(progress: Progress) -> Iterator[Table]:
    """Of inputs whose end is known, of a restore, and of a checkpoint that takes long: others would only flicker."""
    for read in progress.inputs:
        yield _bar(read_of(read), read.done, read.total)
    if (restored := progress.restored) is not None:
        words = f"{in_bytes(restored.done)} of {in_bytes(restored.total)} restored"
        yield _bar(words, restored.done, restored.total)
    if (taken := progress.under_way) is not None and taken.seconds >= LONG_SECONDS:
        words = f"checkpoint {taken.id}: {taken.done} of {taken.subtasks} subtasks, {taken.seconds:.0f} s"
        yield _bar(words, taken.done, taken.subtasks)


def _bar(words: str, done: int, total: int) -> Table:
    row = Table.grid(padding=(0, 2, 0, 0))
    row.add_row(Text(words), ProgressBar(total=max(total, 1), completed=done, width=BAR))
    return row


async def follow(handle: JobHandle, meter: ProgressMeter, display: Display, every: float, clock: Clock) -> None:
    """Until it is cancelled; `every` in seconds."""
    meter.measure(handle.metrics(), clock.monotonic())  # where the first rates count from
    while True:
        await clock.sleep(every)
        now = clock.monotonic()
        display.show(meter.measure(handle.metrics(), now, handle.checkpoints_under_way, handle.restoring))
