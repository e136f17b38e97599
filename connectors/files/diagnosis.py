"""What `streamactors doctor` tells of the folder that a sink writes into. Only looked at: no file comes of it."""

import os
from collections.abc import Iterator, Sequence

from connectors.files.parts import PENDING, UNCHECKED, prefix_of
from streamactors.diagnosis import Finding, PlannedStep, in_bytes, of_written_folder

REMEDY = "give the user access, or name another folder for the sink"


def of_sink(folder: str, step: PlannedStep) -> list[Finding]:
    """Blocks. (A part is renamed within its folder, so that it stays on its file system.)"""
    path = os.path.abspath(folder)
    findings = list(of_written_folder("folder", path, REMEDY))
    if not any(found.level == "problem" for found in findings) and os.path.isdir(path):
        findings += _leftovers(path, step)
    return findings


def _leftovers(path: str, step: PlannedStep) -> Iterator[Finding]:
    """Of this flow's sink; another's are its own."""
    hidden = "." + prefix_of(step.flow, step.uid)
    with os.scandir(path) as entries:
        left = [(entry.name, entry.stat().st_size) for entry in entries if entry.name.startswith(hidden)]
    if pending := [size for name, size in left if name.endswith(PENDING)]:
        yield _pending(pending, step)
    if opened := [size for name, size in left if name.endswith(UNCHECKED)]:
        told = f"{_counted(opened)} of runs without checkpoints that were killed: nobody will ever make them visible"
        yield Finding("warning", "hidden parts", told, f"look into them, and remove them: {path}/{hidden}*{UNCHECKED}")


def _pending(sizes: Sequence[int], step: PlannedStep) -> Finding:
    """A running job has some too."""
    if step.checkpointing:
        told = f"{_counted(sizes)}: of a job that runs, or for the next start to make visible or to remove"
        return Finding("ok", "hidden parts", told)
    told = f"{_counted(sizes)} of runs under checkpoints: without checkpoints nobody makes them visible"
    return Finding("warning", "hidden parts", told, "start the flow with the storage of its checkpoints")


def _counted(sizes: Sequence[int]) -> str:
    return f"{len(sizes)} hidden part file{'s' if len(sizes) > 1 else ''} ({in_bytes(sum(sizes))})"
