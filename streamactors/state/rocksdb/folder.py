"""The one door to the local disk for RocksDB: a folder for each backend, and what crashed processes have left.

A folder is held by a lock that dies with the process. Whoever opens one in the same place deletes those whose lock
nobody holds. The lock's file is the first thing in a folder and the last to go: so wherever a process is killed, what
it leaves has a lock, or is empty.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from streamactors import forks
from streamactors.errors import CorruptCheckpoint, StorageFailed

_PREFIX: Final = "streamactors-state-"
_LOCK: Final = "lock"
_CHUNK: Final = 1 << 20
DIGEST_SIZE: Final = 16
"""Of blake2b, as files of checkpoints have it."""


class LocalFolder:
    """Made empty by `make`; deleted by `delete`."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._lock = [lock]
        """Empty once it is deleted: whoever takes the lock out does that."""
        self._users: set[object] = set()
        self._doomed = False
        forks.let_go_in_child(self)

    def let_go(self) -> None:
        """It stays its parent's, which deletes it."""
        while self._lock:
            os.close(self._lock.pop())

    @classmethod
    def make(cls, base: str | None, token: Callable[[], str]) -> "LocalFolder":
        """In `base`, or where temporary files go. Raises StorageFailed if that refuses."""
        place = Path(base or tempfile.gettempdir())
        with _refusals(f"RocksDB can't use the folder {place}"):
            place.mkdir(parents=True, exist_ok=True)
            _sweep(place)
            while True:
                path = place / f"{_PREFIX}{token()}"
                path.mkdir(mode=0o700)
                lock = _acquire(path / _LOCK, create=True)
                if lock is not None:
                    return cls(path, lock)

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """While a thread works in it: it is deleted only then."""
        user = object()
        self._users.add(user)
        try:
            yield
        finally:
            self._users.discard(user)
            if self._doomed:
                self._delete_if_unused()

    def delete(self) -> None:
        """Now, or when nobody uses it any more. No matter if it is gone."""
        self._doomed = True
        self._delete_if_unused()

    def _delete_if_unused(self) -> None:
        if not self._users:
            try:
                lock = self._lock.pop()
            except IndexError:
                return
            _delete(self.path)
            os.close(lock)


def _delete(folder: Path) -> None:
    """By whoever holds its lock."""
    with contextlib.suppress(OSError):
        for entry in list(folder.iterdir()):
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            elif entry.name != _LOCK:
                entry.unlink()
    shutil.rmtree(folder, ignore_errors=True)


def _acquire(path: Path, *, create: bool) -> int | None:
    """A descriptor that holds the lock, or None if somebody else does, or if there is none."""
    try:
        lock = os.open(path, os.O_RDWR | (os.O_CREAT if create else 0) | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        return None
    if not os.fstat(lock).st_nlink:  # who found it before it was locked has deleted it
        os.close(lock)
        return None
    return lock


def _sweep(place: Path) -> None:
    for left in place.glob(f"{_PREFIX}*"):
        try:
            lock = _acquire(left / _LOCK, create=False)
        except PermissionError:  # another user's
            continue
        if lock is not None:
            _delete(left)
            os.close(lock)
        elif not (left / _LOCK).exists():
            # Left by a crash, unless it is just being made: then whoever makes it makes another one.
            with contextlib.suppress(OSError):  # it is not empty: it has got its lock meanwhile
                left.rmdir()


@contextlib.contextmanager
def _refusals(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        why = error.strerror or error
        raise StorageFailed(f"{what}: {why}; make room, or give RocksDB(folder=…) another") from error


# -------------------------------------------------------------------------------------------- files of native snapshots
def sizes(folder: Path) -> dict[str, int]:
    """The files in a folder, by name."""
    with _refusals(f"{folder} can't be read"), os.scandir(folder) as entries:
        return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}


def digest(path: Path) -> bytes:
    """blake2b over the whole file."""
    found = hashlib.blake2b(digest_size=DIGEST_SIZE)
    with _refusals(f"{path} can't be read"), open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            found.update(chunk)
    return found.digest()


def read(path: Path, offset: int, length: int) -> bytes:
    """Some of a file's bytes."""
    with _refusals(f"{path} can't be read"), open(path, "rb") as file:
        file.seek(offset)
        return file.read(length)


def append(path: Path, data: bytes) -> None:
    """To a file that is made if there is none."""
    with _refusals(f"{path} can't be written"), open(path, "ab") as file:
        file.write(data)


def link_or_copy(source: Path, target: Path) -> None:
    """A hard link where that is possible: for files that are never changed. Raises CorruptCheckpoint if it is gone."""
    try:
        os.link(source, target)
    except FileNotFoundError as error:
        raise CorruptCheckpoint(f"the file {source} is missing") from error
    except OSError:
        copy(source, target)


def copy(source: Path, target: Path) -> None:
    """Raises CorruptCheckpoint if it is gone."""
    with _refusals(f"{target} can't be written"):
        try:
            shutil.copyfile(source, target)
        except FileNotFoundError as error:
            raise CorruptCheckpoint(f"the file {source} is missing") from error


def empty(folder: Path) -> Path:
    """The folder, made, without what it held."""
    with _refusals(f"{folder} can't be made"):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    return folder


def remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
