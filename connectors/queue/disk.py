"""The file operations of a log, each naming the file that the operating system refuses. They block."""

import contextlib
import os
import sys
from collections.abc import Iterator

from connectors.queue.errors import ReadFailed, WriteFailed

if sys.platform == "darwin":
    import fcntl


def make_folder(path: str) -> None:
    """It and what is above it stay, also when the power fails."""
    if os.path.isdir(path):
        return
    parent = os.path.dirname(path)
    make_folder(parent)
    with refused_writes(path):
        os.makedirs(path, exist_ok=True)
    sync_folder(parent)


def append(descriptor: int, data: bytes, path: str) -> None:
    """All of it, and for good: it is on the disk when this returns."""
    with refused_writes(path):
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        sync(descriptor)


def cut(descriptor: int, size: int, path: str) -> None:
    with refused_writes(path):
        os.ftruncate(descriptor, size)
        os.lseek(descriptor, size, os.SEEK_SET)
        os.fsync(descriptor)  # the size too: fdatasync may leave one that only shrinks


if sys.platform == "darwin":

    def sync(descriptor: int) -> None:
        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)  # fsync leaves it in the drive's cache there

elif sys.platform == "win32":

    def sync(descriptor: int) -> None:
        os.fsync(descriptor)

else:

    def sync(descriptor: int) -> None:
        os.fdatasync(descriptor)


def sync_folder(path: str) -> None:
    """Names that were made or removed stay so, also when the power fails."""
    if sys.platform == "win32":
        return  # has no such operation
    with refused_writes(path):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read(path: str, at: int, size: int) -> bytes:
    """Up to `size` bytes: less only where the file ends."""
    with refused_reads(path), open(path, "rb") as file:
        file.seek(at)
        return file.read(size)


@contextlib.contextmanager
def refused_writes(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise WriteFailed(
            f"can't write {path!r}: {error.strerror}. What was being put is not in the queue; all that was "
            "acknowledged is. See to the disk and its permissions"
        ) from error


@contextlib.contextmanager
def refused_reads(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ReadFailed(f"can't read {path!r}: {error.strerror}") from error
