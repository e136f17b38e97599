"""What one checkpoint costs the coordinator of many workers, on a network that is made up and time that is virtual."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from tests.cluster.test_many_workers import CONDITIONS, costs

WORKERS = (10, 20, 50)


@dataclass(frozen=True)
class Row:
    """Between the coordinator and all workers, both ways. `network`: what becomes of what it carries."""

    network: str
    workers: int
    subtasks: int
    messages: float
    bytes: float


def measure(workers: Sequence[int] = WORKERS) -> list[Row]:
    found = []
    for condition in CONDITIONS:
        for each in workers:
            messages, sent, subtasks = costs(each, condition)
            found.append(Row(condition, each, subtasks, messages, sent))
    return found


def table(rows: Sequence[Row]) -> Table:
    shown = Table(title="one checkpoint, between the coordinator and its workers: to be linear, bytes constant")
    shown.add_column("network")
    for column in ("workers", "subtasks", "messages", "messages a worker", "bytes a subtask"):
        shown.add_column(column, justify="right")
    for row in rows:
        each = f"{row.messages / row.workers:.1f}", f"{row.bytes / row.subtasks:.0f}"
        shown.add_row(row.network, str(row.workers), f"{row.subtasks:,}", f"{row.messages:,.0f}", *each)
    return shown
