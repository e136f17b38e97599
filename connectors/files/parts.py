"""Part files: hidden while they are written, visible under their name once they are committed.

A part `orders@out@0001-0002-0000-000017-3fa9c1d2.jsonl` is written as `.orders@out@….jsonl.pending`, and published by
a rename. All operations block.
"""

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Final
from urllib.parse import quote

from connectors.files.errors import WriteFailed
from streamactors.errors import TransactionLost
from streamactors.sinks import Pending

PENDING: Final = ".pending"
_NUMBERS: Final = re.compile(r"(\d{4,})-(\d{4,})-(\d{4,})-\d{6,}-")
UNCHECKED: Final = ".open"
"""Written without checkpoints: no checkpoint will ever name it, and no later run may take it for its own."""


@dataclass(frozen=True, slots=True)
class PartName:
    """Unique for good, by its token; the numbers before it put a listing into order."""

    flow: str
    uid: str
    run: int
    attempt: int
    subtask: int
    sequence: int
    token: str
    suffix: str

    def __str__(self) -> str:
        numbers = f"{self.run:04}-{self.attempt:04}-{self.subtask:04}-{self.sequence:06}"
        return f"{prefix_of(self.flow, self.uid)}{numbers}-{self.token}{self.suffix}"


def prefix_of(flow: str, uid: str) -> str:
    """Begins the names of one sink's parts, and of no other sink's: `@` is quoted within names."""
    return f"{_quoted(flow)}@{_quoted(uid)}@"


def writer_of(name: str) -> tuple[int, int, int] | None:
    """Run, attempt and subtask that wrote the part `name`; None if it is no part's name."""
    match = _NUMBERS.match(name.rpartition("@")[2])
    return (int(match[1]), int(match[2]), int(match[3])) if match else None


@dataclass(frozen=True, slots=True)
class Part:
    """A part that is complete: its bytes are on the disk, under its hidden name."""

    folder: str
    name: str
    size: int
    hidden: str

    def as_pending(self) -> Pending:
        return [self.folder, self.name, self.size]

    @classmethod
    def of_pending(cls, pending: Pending) -> "Part":
        folder, name, size = pending
        return cls(folder, name, size, hidden_name(name, PENDING))


def hidden_name(name: str, state: str) -> str:
    return f".{name}{state}"


class PartFolder:
    """The file operations of a sink. Each raises WriteFailed where the operating system refuses."""

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)

    def make(self) -> None:
        if not os.path.isdir(self.path):
            with _refusals_named(self.path):
                os.makedirs(self.path, exist_ok=True)
            self.sync(os.path.dirname(self.path))

    def create(self, hidden: str) -> BinaryIO:
        path = os.path.join(self.path, hidden)
        with _refusals_named(path):
            return open(path, "xb", buffering=0)

    def append(self, file: BinaryIO, data: bytes) -> None:
        rest = memoryview(data)
        with _refusals_named(file.name):
            while rest:
                rest = rest[file.write(rest) :]

    def seal(self, file: BinaryIO) -> None:
        """What was written stays, also when the power fails."""
        with _refusals_named(file.name):
            os.fsync(file.fileno())
            file.close()

    def sync(self, folder: str) -> None:
        """Names that were made or changed stay, also when the power fails."""
        if os.name == "nt":
            return  # has no such operation
        with _refusals_named(folder):
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def publish(self, parts: Sequence[Part]) -> None:
        """Make parts visible, for good when this returns. Idempotent. Raises TransactionLost for a part that is neither
        here nor published already."""
        folders = [self._publish(part) for part in parts]
        for folder in dict.fromkeys(folders):
            self.sync(folder)

    def rename(self, source: str, target: str) -> None:
        with _refusals_named(target):
            os.rename(source, target)

    def delete(self, hidden: str) -> None:
        path = os.path.join(self.path, hidden)
        with _refusals_named(path), contextlib.suppress(FileNotFoundError):
            os.remove(path)

    def hidden(self, prefix: str) -> list[str]:
        """What the sink with this prefix has or has left hidden under checkpoints."""
        with _refusals_named(self.path):
            names = sorted(os.listdir(self.path))
        return [name for name in names if name.startswith("." + prefix) and name.endswith(PENDING)]

    def _publish(self, part: Part) -> str:
        folder = self._folder_of(part)
        source, target = os.path.join(folder, part.hidden), os.path.join(folder, part.name)
        if os.path.exists(source):
            if (size := os.path.getsize(source)) != part.size:
                raise TransactionLost(
                    f"the part file {source!r} was complete with {part.size} bytes and now has {size}: it was changed "
                    f"or damaged. Put it back as it was, or start afresh with fresh=True"
                )
            self.rename(source, target)
        return folder

    def _folder_of(self, part: Part) -> str:
        """Where the part is: here, or where it was written if the sink has been given another folder since."""
        for folder in (self.path, part.folder):
            if any(os.path.exists(os.path.join(folder, name)) for name in (part.hidden, part.name)):
                return folder
        raise TransactionLost(
            f"the part file {part.name!r} of a complete checkpoint is in {self.path!r} neither hidden (as "
            f"{part.hidden!r}) nor visible. Put it back; if it was visible and has been taken away since, put an empty "
            f"file of that name there; or start afresh with fresh=True"
        )


@contextlib.contextmanager
def _refusals_named(path: str) -> Iterator[None]:
    """Tells what the operating system refused, and where."""
    try:
        yield
    except OSError as error:
        raise WriteFailed(
            f"can't write {path!r}: {error.strerror}. Nothing that was checkpointed is lost; "
            f"see to the disk and its permissions"
        ) from error


def _quoted(name: str) -> str:
    quoted = quote(name, safe="")
    return f"%2E{quoted[1:]}" if quoted.startswith(".") else quoted  # or what is visible would be hidden
