"""What a storage's refusal means, and what to do about it."""

import errno
from typing import Final

from streamactors.errors import StorageFailed

_FREE_SPACE = "Free space there, or give the job a storage with more room."
_PERMIT = "Let the user that runs this process write there, or give the job another storage."
_MORE_FILES = "Raise the limit of open files (ulimit -n)."
_CHECK_DISK = "Check that the disk or network folder is healthy and mounted."
_ADVICE: Final = {
    errno.ENOSPC: _FREE_SPACE,
    errno.EDQUOT: _FREE_SPACE,
    errno.EFBIG: _FREE_SPACE,
    errno.EACCES: _PERMIT,
    errno.EPERM: _PERMIT,
    errno.EROFS: _PERMIT,
    errno.EMFILE: _MORE_FILES,
    errno.ENFILE: _MORE_FILES,
    errno.ENOTDIR: "A file is in the way of a folder: give the job another storage.",
    errno.EEXIST: "A file of that name is in the way: was it put there by hand?",
    errno.ENAMETOOLONG: "Use shorter names for the flow and its operators, or a storage with a shorter path.",
    errno.ENOLCK: "This file system can't lock: put the storage on one that can (local disk, NFS 4).",
}


def storage_failed(doing: str, uri: str, error: OSError) -> StorageFailed:
    """Names what was tried on which file, the reason, and what to do."""
    advice = _ADVICE.get(error.errno or 0, _CHECK_DISK)
    return StorageFailed(f"can't {doing} {uri}: {error.strerror or error}. {advice}")
