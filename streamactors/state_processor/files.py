"""The storage that a URI names, for reading and writing snapshots outside of a job."""

from streamactors.checkpoint.storage.contract import Files
from streamactors.checkpoint.storage.opening import open_files
from streamactors.clock import Clock


def files_at(uri: str, clock: Clock) -> Files:
    """Raises InvalidConfig for a URI that names no storage, MissingExtra for one that needs a package."""
    return open_files(uri, clock=clock)


async def close_files(files: Files) -> None:
    """Let go of what they hold open."""
    await files.close()
