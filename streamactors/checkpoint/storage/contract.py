"""What checkpoints are written to and read from, wherever they lie.

Invariants of every `Files`:
1. A file appears whole under its name or not at all, except that a crash may leave a part of one made by `write`.
2. What `create` and `replace` have returned for survives a crash. What `write` has made survives once `sync_folder` has
   returned for its folder.
3. An operation that failed or was cancelled leaves no file behind that it made, and no thread at work.
"""

from collections.abc import AsyncIterable, Iterable, Sequence
from typing import Final, NamedTuple, Protocol

Chunks = Iterable[bytes] | AsyncIterable[bytes]

DIGEST_SIZE: Final = 16
READ_BLOCK: Final = 4 * 1024 * 1024
HASH_INLINE: Final = 32 * 1024
"""Up to this many bytes (about 30 µs) are hashed on the loop."""


class Entry(NamedTuple):
    """A file or folder; `size` in bytes, 0 for a folder."""

    name: str
    folder: bool
    size: int


class Written(NamedTuple):
    """`digest` is blake2b over the whole file."""

    size: int
    digest: bytes


class Lock(Protocol):
    """Ownership of a lock file, until released or until the process dies."""

    async def held(self) -> bool:
        """False if the lock file was removed or replaced, so that somebody else may hold a lock of that name."""

    async def release(self) -> None: ...


class Files(Protocol):
    """Paths are relative to the root `uri`, with slashes, "" being the root itself.

    Raises StorageFailed where the storage refuses, CorruptCheckpoint where a file to be read is missing or too short.
    """

    @property
    def uri(self) -> str: ...
    def uri_of(self, path: str) -> str: ...
    def at(self, uri: str) -> "Files":
        """The same kind of files, rooted elsewhere."""

    async def write(self, path: str, chunks: Chunks) -> Written:
        """A new file. `sync_folder` makes its name durable."""

    async def create(self, path: str, data: bytes) -> bool:
        """Create durably if absent: False, and nothing done, if it exists."""

    async def replace(self, path: str, data: bytes) -> None:
        """Create durably, or replace in one step."""

    async def read(self, path: str) -> bytes: ...
    async def read_ranges(self, path: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """The bytes of each (offset, length)."""

    async def digest(self, path: str) -> Written:
        """What `write` returned, computed anew from the stored bytes."""

    async def stat(self, path: str) -> Entry | None:
        """None if there is nothing."""

    async def list(self, folder: str) -> list[Entry]:
        """Sorted by name; empty if there is no such folder."""

    async def make_folder(self, path: str) -> None:
        """With its parents, durably; no matter if it exists."""

    async def sync_folder(self, path: str) -> None: ...
    async def delete(self, path: str) -> None:
        """Delete a file durably; no matter if it is gone."""

    async def delete_tree(self, path: str, *, keep_folder: bool = False) -> None:
        """Delete all that a folder holds, and the folder; no matter if it is gone."""

    async def lock(self, path: str, what: str, owner: str) -> Lock:
        """Take a lock that dies with the process, and note `owner` in it; `what` names the locked thing in the
        StorageInUse that is raised if a live process, this one included, holds it."""

    async def close(self) -> None:
        """Give up connections, also those of all that came by `at`. For whoever opened the first of them."""


class Elsewhere(Protocol):
    """Files of other kinds, by normalised URI."""

    def files(self, uri: str) -> Files: ...
    async def close(self) -> None: ...
