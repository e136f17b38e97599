"""What a source or sink can tell, before a job runs, of the systems that it needs: for `streamactors doctor`.

Invariant that a connector keeps: looking changes nothing outside. No topic, record, transaction or file comes of it.
"""

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

Level = Literal["ok", "warning", "problem"]


@dataclass(frozen=True, slots=True)
class Finding:
    """`check` names what was looked at, `found` says what there is, `remedy` what to do (empty: nothing). A problem
    keeps the job from running or from keeping its promises; a warning does not."""

    level: Level
    check: str
    found: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """How a source or sink would run. `checkpoint_timeout`: seconds that a checkpoint may take."""

    flow: str
    uid: str
    parallelism: int
    checkpointing: bool
    exactly_once: bool
    checkpoint_timeout: float
    log: logging.LoggerAdapter[logging.Logger]


# ------------------------------------------------------------------------------------------------------- folders, room
LITTLE_ROOM: Final = 1 << 30
NO_ROOM: Final = 64 << 20
"""Bytes."""


def in_bytes(count: float) -> str:
    """For people."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"


def nearest_there(path: str) -> Path:
    """The path itself, or the nearest one above it that exists. Blocks, as all that follows."""
    found = Path(path)
    while not found.exists() and found != found.parent:
        found = found.parent
    return found


def of_written_folder(check: str, path: str, remedy: str) -> Iterator[Finding]:
    """A folder that files are made in; what is not there yet would be made. `remedy`: where it is none, or closed."""
    there = nearest_there(path)
    if not there.is_dir():
        yield Finding("problem", check, f"{there} is no folder", remedy)
    elif not os.access(there, os.W_OK | os.X_OK):
        yield Finding("problem", check, f"{there} can't be written by this user", remedy)
    else:
        yield from of_room(check, there)


def of_room(check: str, path: Path) -> Iterator[Finding]:
    if not hasattr(os, "statvfs"):
        return
    found = os.statvfs(path)
    if found.f_flag & os.ST_RDONLY:
        yield Finding("problem", check, f"{path} is on a file system that can only be read", "mount it to be written")
        return
    yield room(check, path, found.f_bavail * found.f_frsize, found.f_favail if found.f_files else None)


def room(check: str, path: Path, free: int, names: int | None) -> Finding:
    """`free` in bytes; `names`: how many more files there may be, None where that has no limit."""
    told, more = f"{in_bytes(free)} free at {path}", "free space there, or use another folder"
    if names == 0:
        return Finding("problem", check, f"no more files can be made at {path} (inodes)", more)
    if free < NO_ROOM:
        return Finding("problem", check, told, more)
    return Finding("warning" if free < LITTLE_ROOM else "ok", check, told, more if free < LITTLE_ROOM else "")
