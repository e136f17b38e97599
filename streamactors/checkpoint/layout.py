"""Names in a storage: `<flow>/run-3/attempt-1/chk-17/`. Pure.

<flow>/owner.lock               held by the live owner
<flow>/used-16                  checkpoint ids up to 16 are used, though their folders may be gone
<flow>/run-3/epoch              run 3 has begun: older runs are fenced off
<flow>/run-3/after              the last checkpoint there was when run 3 began: none that comes later counts
<flow>/run-3/base               what run 3 was told to start from
<flow>/run-3/base.committed     the receipt for a base that lies elsewhere
<flow>/run-3/attempt-1/widest   written before the attempt begins
<flow>/run-3/attempt-1/chk-17/manifest, committed (the receipt), 0001-totals.0, ...
<flow>/run-3/attempt-1/chk-17/unclaimed     never to be deleted by a job: one was started from it without claiming it

A folder of a checkpoint that holds files and no manifest is one that was never completed, or one that was deleted while
later checkpoints use its files.
"""

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

from streamactors.errors import InvalidConfig

OWNER_LOCK: Final = "owner.lock"
EPOCH: Final = "epoch"
AFTER: Final = "after"
BASE: Final = "base"
BASE_RECEIPT: Final = "base.committed"
WIDEST: Final = "widest"
MANIFEST: Final = "manifest"
SAVEPOINT: Final = "savepoint"
BEING_WRITTEN: Final = "being-written"
"""In the folder of a savepoint that is not complete yet."""
RECEIPT: Final = "committed"
UNCLAIMED: Final = "unclaimed"
LONGEST_NAME: Final = 200

_NUMBERED: Final = re.compile(r"(run|attempt|chk|used)-([1-9][0-9]*)")
_FILE: Final = re.compile(r"run-([1-9][0-9]*)/attempt-([1-9][0-9]*)/chk-([1-9][0-9]*)/[^/]+")
_CHECKPOINT: Final = re.compile(r"(?:(.*)/)?(run-[1-9][0-9]*/attempt-[1-9][0-9]*/chk-[1-9][0-9]*)")


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where a checkpoint lies in its flow's folder."""

    run: int
    attempt: int
    checkpoint: int

    @property
    def folder(self) -> str:
        return f"{attempt_folder(self.run, self.attempt)}/chk-{self.checkpoint}"


NOWHERE: Final = Place(0, 0, 0)
"""Before every checkpoint."""


def run_folder(run: int) -> str:
    return f"run-{run}"


def attempt_folder(run: int, attempt: int) -> str:
    return f"run-{run}/attempt-{attempt}"


def used(checkpoint: int) -> str:
    return f"used-{checkpoint}"


def number(kind: str, name: str) -> int | None:
    """17 for ("chk", "chk-17"); None for a name of any other kind."""
    match = _NUMBERED.fullmatch(name)
    return int(match[2]) if match and match[1] == kind else None


def split_checkpoint(uri: str) -> tuple[str, Place] | None:
    """The URI of the flow's folder, and the place in it, if the URI is one of a checkpoint in its place."""
    if not (match := _CHECKPOINT.fullmatch(uri)):
        return None
    run, attempt, checkpoint = (int(part.rpartition("-")[2]) for part in match[2].split("/"))
    return match[1] or "", Place(run, attempt, checkpoint)


def place_of(path: str) -> Place | None:
    """Of the checkpoint in whose folder a file lies; None if it lies in none."""
    return Place(*map(int, match.groups())) if (match := _FILE.fullmatch(path)) else None


def flow_folder(flow: str) -> str:
    """The flow's name, everything percent-encoded but ASCII letters, digits and `-_~.`; two flows never share one."""
    name = file_name(flow)
    if not name or len(name) > LONGEST_NAME:
        raise InvalidConfig(
            f"flow name {flow!r} can't name a folder of checkpoints: use 1 to {LONGEST_NAME} letters and digits."
        )
    return name


def file_name(name: str) -> str:
    """A name as one that every file system takes: never hidden, never a path."""
    quoted = quote(name, safe="", errors="surrogatepass")
    return f"%2E{quoted[1:]}" if quoted.startswith(".") else quoted


def state_file(sequence: int, name: str) -> str:
    """Unique in its folder by `sequence`, also where a file system ignores case; `name` is for people."""
    return f"{sequence:04}-{file_name(name)[:LONGEST_NAME]}"
