"""What can go wrong with files, by condition. `retryable = False`: a restart would meet the same condition."""

from streamactors.errors import StreamactorsError


class NoSuchFiles(StreamactorsError):
    """A bounded source's path matches no file."""

    retryable = False


class FileChanged(StreamactorsError):
    """A file that is being read was truncated, replaced, or removed: a position in it means nothing any more."""

    retryable = False


class ReadFailed(StreamactorsError):
    """The operating system refused to read."""


class WriteFailed(StreamactorsError):
    """The operating system refused to write (disk full, permission)."""
