"""One owner per folder: a lock on a file in it, which the system frees with the process however that ends."""

import contextlib
import os
import socket
from typing import IO

from connectors.queue.errors import QueueInUse, WriteFailed
from streamactors import forks
from streamactors.filelock import try_lock

_NAME = "owner.lock"
"""As that of a flow's checkpoints, so that these are never in the same folder."""
_WHAT = "a QueueSource, which has its log in the same folder: "
"""Of its owner; for whoever wants to have the folder for something else."""


class FolderLock:
    """Blocks. Who has it is noted in the file, for whoever is refused."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._file: IO[bytes] | None = None

    def acquire(self) -> None:
        """Raises QueueInUse naming who has it."""
        path = os.path.join(self._folder, _NAME)
        try:
            file = open(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise WriteFailed(f"can't open {path!r}: {error.strerror}") from error
        try:
            self._take(file)
        except OSError as error:
            file.close()
            raise WriteFailed(
                f"can't lock {path!r}: {error.strerror}. Put the queue's folder on a local disk"
            ) from error
        except BaseException:
            file.close()
            raise
        self._file = file
        forks.let_go_in_child(self)

    def _take(self, file: IO[bytes]) -> None:
        this = f"process {os.getpid()} on {socket.gethostname()}"
        if not try_lock(file):
            raise _in_use(self._folder, file.read().decode(errors="replace").strip(), this)
        with contextlib.suppress(OSError):  # disk full: what there is can be read all the same
            file.truncate(0)
            file.write(f"{_WHAT}{this}\n".encode())

    def let_go(self) -> None:
        """No matter if it is not held."""
        forks.keep_in_child(self)
        file, self._file = self._file, None
        if file is not None:
            file.close()


def _in_use(folder: str, note: str, this: str) -> QueueInUse:
    if note and not note.startswith(_WHAT):
        return QueueInUse(
            f"{folder!r} holds the checkpoints of a flow, in use by {note}: give the queue a folder of its own"
        )
    who = note.removeprefix(_WHAT) or "a process that is just starting"
    who = f"another QueueSource of this process ({this})" if who == this else who
    return QueueInUse(
        f"the queue in {folder!r} is in use by {who}: stop that one, or give this one a folder of its own"
    )
