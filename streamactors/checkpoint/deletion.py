"""Deleting checkpoints, in an order that a crash may cut anywhere.

Invariant: the name that makes a checkpoint complete goes first, durably; then those of its files that no other one
refers to. Nothing is deleted that is not named as a part of it, or found in the folder of a checkpoint of this flow.
"""

import logging
from collections.abc import Collection

from streamactors.checkpoint import layout, manifest
from streamactors.checkpoint.layout import Place
from streamactors.checkpoint.restorable import FlowFolder, Found, Restorable, load
from streamactors.checkpoint.storage.contract import Files
from streamactors.errors import InvalidConfig, StorageFailed, StorageInUse

log = logging.getLogger(__name__)


async def delete_all(folder: FlowFolder, doomed: Collection[Found], in_use: Collection[str]) -> None:
    """Checkpoints of a flow that the caller owns, the earliest first. The files `in_use` (paths relative to the flow's
    folder) stay, and so do the folders that they are in."""
    for found in doomed:
        if found.manifest or found.savepoint:
            name = layout.SAVEPOINT if found.savepoint else layout.MANIFEST
            await folder.files.delete(folder.path(f"{found.place.folder}/{name}"))
    for found in doomed:
        await _delete_files(folder, found, in_use)


async def _delete_files(folder: FlowFolder, found: Found, in_use: Collection[str]) -> None:
    start = f"{found.place.folder}/"
    needed = {path.removeprefix(start) for path in in_use if path.startswith(start)}
    if not needed:
        await folder.files.delete_tree(folder.path(found.place.folder))
        return
    for name in sorted(found.names - needed - {layout.MANIFEST, layout.SAVEPOINT}):
        await folder.files.delete(folder.path(f"{start}{name}"))


async def delete_claimed(files: Files, uri: str, owner: str) -> None:
    """What lies elsewhere and was claimed: a savepoint, or a checkpoint of another storage. No matter if it is gone."""
    if in_place := layout.split_checkpoint(uri):
        await _delete_of_other_flow(FlowFolder(files.at(in_place[0]), ""), in_place[1], owner)
        return
    try:
        await _delete_savepoint(await load(files, uri, verify="manifest"))
    except InvalidConfig:
        return


async def _delete_savepoint(savepoint: Restorable) -> None:
    """The root of its `files`, which is a folder of the user's: what else lies there stays."""
    files = savepoint.files
    await files.delete(layout.MANIFEST)
    for handle in savepoint.manifest.files:
        await files.delete(savepoint.path(handle))
    await files.delete(layout.RECEIPT)
    if not await files.list(""):
        await files.delete_tree("")


async def _delete_of_other_flow(folder: FlowFolder, place: Place, owner: str) -> None:
    """Raises StorageFailed while a live job owns it."""
    files = folder.files
    if not (await folder.look(place)).complete:
        return
    try:
        lock = await files.lock(layout.OWNER_LOCK, f"the checkpoints in {files.uri}", owner)
    except StorageInUse as error:
        raise StorageFailed(f"{folder.uri(place)} was claimed, and can't be deleted: {error}") from error
    try:
        await delete_all(folder, [await folder.look(place)], await _used_by_others(folder, place))
    finally:
        await lock.release()


async def _used_by_others(folder: FlowFolder, place: Place) -> frozenset[str]:
    used: set[str] = set()
    for found in await folder.scan_all():
        if found.manifest and found.place != place:
            file = folder.path(f"{found.place.folder}/{layout.MANIFEST}")
            content = manifest.decode_manifest(await folder.files.read(file), folder.files.uri_of(file))
            used.update(handle.path for handle in content.files)
    return frozenset(used)
