"""An exclusive lock on an open file, which the operating system frees with the process however that ends."""

import sys
from typing import IO

if sys.platform == "win32":
    import msvcrt

    _LOCKED_BYTE = 1 << 30  # locks are mandatory there: one far behind the content, which others must be able to read

    def try_lock(file: IO[bytes]) -> bool:
        """Whether it is held now. Raises OSError where the file system has no locks."""
        file.seek(_LOCKED_BYTE)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        finally:
            file.seek(0)
        return True

else:
    import fcntl

    def try_lock(file: IO[bytes]) -> bool:
        """Whether it is held now. Raises OSError where the file system has no locks."""
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
