"""Files that only this process needs, and only for a while: what does not fit into memory.

Invariant: nothing is left of one, however the process ends: it has no name from the beginning, so the system frees it
with its last handle.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from streamactors.errors import CorruptCheckpoint, StorageFailed


class ScratchFile:
    """Written front to back, and then read. Blocks: for threads. `folder` None: where temporary files go."""

    def __init__(self, folder: str | None) -> None:
        import tempfile  # slow, and most programs never get here

        self.size = 0
        self._where = folder or tempfile.gettempdir()
        with self._refusals():
            Path(self._where).mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=self._where, prefix="streamactors-", buffering=0)  # noqa: SIM115

    def append(self, data: bytes) -> None:
        """Raises StorageFailed where there is no room."""
        rest = memoryview(data)
        with self._refusals():
            while rest:
                rest = rest[self._file.write(rest) :]
        self.size += len(data)

    def read(self, offset: int, length: int) -> bytes:
        """Exactly so many bytes."""
        data = bytearray()
        with self._refusals():
            while len(data) < length:
                more = os.pread(self._file.fileno(), length - len(data), offset + len(data))
                if not more:
                    break
                data += more
        if len(data) < length:
            raise CorruptCheckpoint(f"a temporary file in {self._where} is truncated: is its disk healthy?")
        return bytes(data)

    def close(self) -> None:
        """No matter if it is closed."""
        self._file.close()

    @contextlib.contextmanager
    def _refusals(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            why = error.strerror or error
            raise StorageFailed(f"can't keep temporary files in {self._where}: {why}") from error
