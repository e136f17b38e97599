"""What one checkpoint costs the coordinator of many workers, on a network that is made up and time that is virtual."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from tests.cluster.test_many_workers import costs

WORKERS = (10, 20, 50)


@dataclass(frozen=True)
class Row:
    """Between the coordinator and all workers, both ways."""

    workers: int
    subtasks: int
    messages: int
    bytes: int


def measure(workers: Sequence[int] = WORKERS) -> list[Row]:
    found = []
    for each in workers:
        messages, sent, subtasks = costs(each)
        found.append(Row(each, subtasks, messages, sent))
    return found


def table(rows: Sequence[Row]) -> Table:
    shown = Table(title="one checkpoint, between the coordinator and its workers: to be linear, bytes constant")
    for column in ("workers", "subtasks", "messages", "messages a worker", "bytes a subtask"):
        shown.add_column(column, justify="right")
    for row in rows:
        each = f"{row.messages / row.workers:.1f}", f"{row.bytes / row.subtasks:.0f}"
        shown.add_row(str(row.workers), f"{row.subtasks:,}", f"{row.messages:,}", *each)
    return shown
