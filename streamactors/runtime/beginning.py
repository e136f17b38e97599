"""What a job does before its first attempt: it becomes the owner of its storage, and chooses what it goes on from."""

import logging
from collections.abc import Callable
from typing import Final

from streamactors.checkpoint.restorable import Restorable
from streamactors.checkpoint.storage.contract import Files
from streamactors.checkpoint.store import CheckpointStore
from streamactors.clock import Clock
from streamactors.errors import InvalidConfig, StorageInUse

log = logging.getLogger("streamactors.job")

HANDOVER_LOOK: Final = 0.5
"""Seconds between two looks whether the owner of a storage still lives."""


async def open_store(storage: str, flow: str, files: Files, handover: float, clock: Clock) -> CheckpointStore:
    """`handover`: seconds for which a live owner is waited for. Raises StorageInUse, StorageFailed."""
    until = clock.monotonic() + handover
    while True:
        try:
            return await CheckpointStore.open(storage, flow, clock=clock, files=files)
        except StorageInUse as error:
            if clock.monotonic() >= until:
                raise
            log.info("%s: waiting for the one before to end: %s", flow, error)
        await clock.sleep(HANDOVER_LOOK)


async def choose_restore(
    store: CheckpointStore | None,
    flow: str,
    restore: str | None,
    *,
    fresh: bool,
    claim: bool,
    check: Callable[[Restorable], object],
) -> Restorable | None:
    """`check` refuses what can't be restored, before it is recorded as what the next start begins with. Raises
    InvalidConfig."""
    if claim and (restore is None or fresh):
        raise InvalidConfig("claim=True goes with restore=<the URI of a checkpoint or savepoint>: name it")
    if store is None:
        return None
    if fresh:
        if restore not in (None, "latest"):
            raise InvalidConfig(f"fresh=True and restore={restore!r} exclude each other")
        await store.record_base(None)
        return None
    if restore == "latest":
        return await store.latest()
    if restore is not None:
        restored = await store.load(restore)
        check(restored)
        await store.record_base(restored, claim=claim)
        return restored
    if await store.holds_checkpoints():
        raise InvalidConfig(
            f"restore=None, but the storage already holds checkpoints of flow {flow!r}: go on from the "
            'last one by restore="latest", or begin anew, leaving them behind, by fresh=True'
        )
    return None
