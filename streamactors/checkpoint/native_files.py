"""Native files of checkpoints, on their way back: into a backend of their format, or as canonical blocks of entries.

Invariant: a file is given to a backend only after its bytes were verified; whatever fails or is cancelled, no thread is
left at work, and the local files go with the backend that they were fetched for.
"""

import contextlib
import dataclasses
import functools
import hashlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

from streamactors.checkpoint import manifest
from streamactors.checkpoint.manifest import NativeFileHandle, NativeHandle, NodeState
from streamactors.checkpoint.restorable import Restorable
from streamactors.checkpoint.storage.contract import DIGEST_SIZE, READ_BLOCK, Written
from streamactors.clock import SYSTEM, Clock, uninterrupted
from streamactors.state.backend import KeyedSnapshot, NativeBackend, NativePart, StateBlock
from streamactors.state.backends import native_reader
from streamactors.state.descriptors import Declaration
from streamactors.state.key_groups import KeyGroupRange

Receive = Callable[[bytes], None]
Fetch = Callable[[NativeFileHandle, Receive], Awaitable[None]]
"""Hands over the bytes of one file bit by bit, in a thread. Raises CorruptCheckpoint, at the end at the latest, if they
are not what was written: what was received is to be trusted only when it has returned."""

_BLOCKS_AT_ONCE: Final = 32


async def fetch(restorable: Restorable, part: NativeFileHandle, receive: Receive, clock: Clock) -> None:
    """See `Fetch`."""
    path = restorable.path(part.file)
    await restorable.verify_size(part.file)
    if part.size < part.file.size:
        await restorable.verify_digest(part.file)
        await _copy(restorable, part, receive, clock)
        return
    digest = hashlib.blake2b(digest_size=DIGEST_SIZE)

    def take(block: bytes) -> None:
        digest.update(block)
        receive(block)

    await _copy(restorable, part, take, clock)
    manifest.verify(part.file, Written(part.size, digest.digest()), restorable.files.uri_of(path))


async def _copy(restorable: Restorable, part: NativeFileHandle, receive: Receive, clock: Clock) -> None:
    path = restorable.path(part.file)
    for offset in range(0, max(part.size, 1), READ_BLOCK):  # an empty file is received, too
        length = min(READ_BLOCK, part.size - offset)
        [block] = await restorable.files.read_ranges(path, [(part.file.start + part.offset + offset, length)])
        await uninterrupted(clock.run_blocking(receive, block))


async def restore_native(backend: NativeBackend, handles: Sequence[NativeHandle], fetch: Fetch, clock: Clock) -> None:
    """Fetch what the backend takes over, and have it do so. Raises what `Fetch` and its `restore_native` do."""
    parts = [await _fetch_part(backend, handle, fetch, clock) for handle in handles]
    await uninterrupted(clock.run_blocking(backend.restore_native, parts))
    for part in parts:
        await uninterrupted(clock.run_blocking(backend.drop, part))


async def _fetch_part(backend: NativeBackend, handle: NativeHandle, fetch: Fetch, clock: Clock) -> NativePart:
    part = await uninterrupted(clock.run_blocking(backend.new_part, KeyGroupRange(handle.start, handle.stop)))
    for file in handle.files:
        await fetch(file, functools.partial(backend.receive, part, file.name))
        if file.size == file.file.size:
            part.digests[file.name] = file.file.digest
    return part


async def converted(
    handles: Sequence[NativeHandle],
    declarations: Mapping[str, Declaration],
    groups: KeyGroupRange,
    max_parallelism: int,
    fetch: Fetch,
    *,
    schemas: Mapping[str, Any],
    uid: str,
    clock: Clock,
) -> AsyncGenerator[StateBlock, None]:
    """What the key groups hold, as any backend reads it; of the states declared, which were stored under `schemas`.
    Close it.

    Raises MissingExtra if what can read the files is not installed; besides, as `restore_native`."""
    for format in dict.fromkeys(handle.format for handle in handles):
        of_format = [handle for handle in handles if handle.format == format]
        backend = native_reader(format, declarations, groups, max_parallelism, uid=uid, clock=clock)
        try:
            backend.check_schemas(schemas, allow_dropped=True)
            await restore_native(backend, of_format, fetch, clock)
            snapshot = await uninterrupted(clock.run_blocking(backend.begin_snapshot, 0))
            while blocks := await uninterrupted(clock.run_blocking(_next_blocks, snapshot)):
                for block in blocks:
                    yield dataclasses.replace(block, rewritten=True)
        finally:
            await uninterrupted(clock.run_blocking(backend.close))


def _next_blocks(snapshot: KeyedSnapshot) -> list[StateBlock]:
    blocks: list[StateBlock] = []
    while len(blocks) < _BLOCKS_AT_ONCE and (block := snapshot.next_block()) is not None:
        blocks.append(block)
    return blocks


async def keyed_blocks(
    restorable: Restorable,
    node: NodeState,
    declarations: Mapping[str, Declaration],
    max_parallelism: int,
    *,
    uid: str = "",
    groups: KeyGroupRange | None = None,
    clock: Clock = SYSTEM,
) -> AsyncGenerator[StateBlock, None]:
    """The keyed state of one operator subtask of a checkpoint, in whatever format it is stored, as canonical blocks; of
    the states declared and of `groups` (None: all). Close it: native files are read by way of a local folder.

    Raises CorruptCheckpoint, IncompatibleState; and MissingExtra if what can read the files is not installed.
    """
    wanted = KeyGroupRange(0, max_parallelism) if groups is None else groups
    for handle in node.keyed:
        refs = [ref for ref in handle.blocks if ref.group in wanted and ref.state in declarations]
        for ref, data in zip(refs, await restorable.read_blocks(handle, refs), strict=True):
            yield StateBlock(ref.state, ref.group, ref.entries, data)

    async def fetch_one(part: NativeFileHandle, receive: Receive) -> None:
        await fetch(restorable, part, receive, clock)

    natives = [handle for handle in node.native if KeyGroupRange(handle.start, handle.stop).intersect(wanted)]
    blocks = converted(
        natives, declarations, wanted, max_parallelism, fetch_one, schemas=node.schemas, uid=uid, clock=clock
    )
    async with contextlib.aclosing(blocks):
        async for block in blocks:
            yield block
