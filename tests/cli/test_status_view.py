"""One job as `streamactors status` shows it, made of what the job tells."""

from typing import Any

from rich.console import Console

from streamactors.cli.status_view import StatusView
from streamactors.observe import model

NOW_MS = 1_700_000_000_000


def status(**given: Any) -> model.JobStatus:
    told: dict[str, Any] = {
        "name": "orders",
        "status": "running",
        "stopping": False,
        "pid": 7,
        "started_ms": 0,
        "uptime_seconds": 61.0,
        "restarts": 0,
        "storage": None,
        "target": None,
        "last_checkpoint": None,
        "last_failure": None,
        "operators": [step("totals", 2), step("out", 1)],
        "subtasks": [],
    }
    return model.JobStatus(**told | given)


def step(uid: str, parallelism: int) -> model.Operator:
    return model.Operator(
        uid=uid, name=uid, kind="process", parallelism=parallelism, max_parallelism=128, records_in=0, records_out=0
    )


def shown(status: model.JobStatus) -> list[str]:
    console = Console(width=200, no_color=True)
    with console.capture() as captured:
        console.print(StatusView().show(status, NOW_MS))
    return [line.rstrip() for line in captured.get().splitlines()]


def test_nothing_is_told_of_what_has_not_been() -> None:
    lines = shown(status())
    assert lines[0].startswith("orders running · up 1 min") and lines[1] == "pid 7, no checkpoints"
    assert lines[2].split() == ["operator", "kind", "subtasks", "in", "out", "mailbox"]


def test_the_last_rescale() -> None:
    rescale = model.Rescale(
        time_ms=NOW_MS - 5 * 60_000, pause_seconds=0.25, before={"totals": 1, "out": 1}, after={"totals": 2, "out": 1}
    )
    told = "last rescale: totals 1 → 2, 5 min ago; nothing was read for 0.250 s"
    assert shown(status(last_rescale=rescale))[2] == told


def test_what_the_last_process_had_been_rescaled_to() -> None:
    told = "started from a checkpoint of another parallelism: totals 4 → 2"
    assert shown(status(restored_parallelism={"totals": 4}))[2] == told


def test_the_autoscaler() -> None:
    decision = model.Autoscaling(action="keep", reason="totals: load 0.70", dry_run=True, parallelism={}, steps=[])
    assert shown(status(autoscale=decision))[2] == "autoscaler (dry run): keep: totals: load 0.70"
