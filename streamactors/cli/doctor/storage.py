"""Where checkpoints would lie, and the folders for what does not fit into memory.

A storage is tried out as a job would use it, in a folder of its own that is removed again. A local folder that is not
there yet is not made: what would hold it is looked at instead.
"""

import contextlib
import os
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from streamactors.checkpoint.storage.contract import Files
from streamactors.checkpoint.storage.opening import open_files
from streamactors.checkpoint.storage.uris import is_object_uri, local_path, normalise_uri
from streamactors.clock import SYSTEM
from streamactors.diagnosis import Finding, nearest_there, of_room, of_written_folder
from streamactors.errors import StorageInUse, StreamactorsError
from streamactors.settings import redacted

SLOW_SECONDS: Final = 1.0
SKEW_SECONDS: Final = 2.0
PROBE: Final = b"streamactors doctor"


async def of_storage(uri: str, options: Mapping[str, Any] | None = None) -> list[Finding]:
    """Raises InvalidConfig and MissingExtra for a URI that can't be used at all."""
    uri = normalise_uri(uri)
    local = None if is_object_uri(uri) else nearest_there(local_path(uri))
    findings: list[Finding] = []
    files = open_files(uri if local is None else local.as_uri(), options=options)
    try:
        async with _own_folder(files) as folder:
            findings.append(await _tried_out(files, folder, uri))
            findings.append(await _locked(files, folder))
            findings += [] if local is None else [await _clock(files, folder, local)]
    except StreamactorsError as error:
        return [*findings, Finding("problem", "storage", str(error))]
    finally:
        await files.close()
    return findings if local is None else [*findings, *of_room("room", local)]


@contextlib.asynccontextmanager
async def _own_folder(files: Files) -> AsyncIterator[str]:
    """Its name; a storage from which it can't be removed again is no good either."""
    folder = f".doctor-{SYSTEM.token()}"
    try:
        await files.make_folder(folder)
        yield folder
    except BaseException:
        with contextlib.suppress(StreamactorsError):  # what went wrong first is what is to be told
            await files.delete_tree(folder)
        raise
    await files.delete_tree(folder)


async def _tried_out(files: Files, folder: str, uri: str) -> Finding:
    began = SYSTEM.monotonic()
    path, shown = f"{folder}/probe", redacted(uri)
    first, second = await files.create(path, PROBE), await files.create(path, b"again")
    seconds = SYSTEM.monotonic() - began
    if not first or second:
        told = f"{shown} lets a file be created twice: two processes could own one job"
        return Finding("problem", "storage", told, "use another storage: checkpoints need create-if-absent")
    if await files.read(path) != PROBE:
        return Finding("problem", "storage", f"{shown} does not give back what was written", "use another storage")
    if seconds > SLOW_SECONDS:
        told = f"{shown} can be written, but slowly: {seconds:.1f} s for two small files"
        return Finding("warning", "storage", told, "look at its disk or network: every checkpoint waits for it")
    return Finding("ok", "storage", f"{shown} can be written ({seconds * 1000:.0f} ms for two small files)")


async def _locked(files: Files, folder: str) -> Finding:
    path, what = f"{folder}/lock", "the probe"
    lock = await files.lock(path, what, "streamactors doctor")
    try:
        second = await files.lock(path, what, "streamactors doctor")
    except StorageInUse:
        return Finding("ok", "locking", "one process at a time")
    else:
        await second.release()
        remedy = "put the storage on a file system that can lock (local disk, NFS 4)"
        return Finding("problem", "locking", "two had the same lock at once: two processes could own one job", remedy)
    finally:
        await lock.release()


async def _clock(files: Files, folder: str, local: Path) -> Finding:
    """Who keeps the files also dates them."""
    await files.replace(f"{folder}/now", PROBE)
    dated = await SYSTEM.run_blocking(os.stat, local / folder / "now")
    skew = dated.st_mtime - SYSTEM.time_ms() / 1000
    if abs(skew) > SKEW_SECONDS:
        ahead = "ahead of" if skew > 0 else "behind"
        told = f"the storage's clock is {abs(skew):.1f} s {ahead} this machine's"
        return Finding("warning", "clock", told, "set both by NTP: timers and event times go by this machine's")
    return Finding("ok", "clock", "the storage's agrees with this machine's")


# ---------------------------------------------------------------------------------------------------------------- room
def of_folder(check: str, folder: str | None, setting: str) -> Iterator[Finding]:
    """A folder for the time of a run; None: where temporary files go."""
    remedy = f"give the user access, or name another folder: {setting}"
    return of_written_folder(check, folder or tempfile.gettempdir(), remedy)
