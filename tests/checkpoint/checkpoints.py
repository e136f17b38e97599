"""What the tests of the store take checkpoints with: one operator, one state, its bytes telling the checkpoint's id."""

from streamactors.checkpoint.manifest import (
    BlockRef,
    FileHandle,
    KeyedHandle,
    Manifest,
    NodeState,
    OperatorMeta,
    SubtaskState,
    requirements,
)
from streamactors.checkpoint.restorable import Restorable
from streamactors.checkpoint.store import CheckpointStore
from streamactors.checkpoint.writer import CheckpointWriter
from streamactors.errors import CorruptCheckpoint
from streamactors.state.blocks import codec_for
from streamactors.state.descriptors import ValueState

BLOCKS = (BlockRef("total", 0, 1, 0, 8), BlockRef("total", 1, 1, 8, 8), BlockRef("total", 2, 1, 16, 8))


SCHEMAS = {"total": codec_for(ValueState(int)).schema()}


def state(checkpoint: int) -> list[bytes]:
    """One chunk a block."""
    return [checkpoint.to_bytes(8, "big"), b"........", checkpoint.to_bytes(8, "little")]


def manifest_of(
    store: CheckpointStore,
    checkpoint: int,
    *files: FileHandle,
    transactional: bool = False,
    final: bool = False,
    savepoint: bool = False,
) -> Manifest:
    node = NodeState("totals", keyed=tuple(KeyedHandle(file, BLOCKS) for file in files), schemas=SCHEMAS)
    subtasks = (SubtaskState("totals", 0, (node,)),)
    return Manifest(
        flow=store.flow,
        run=store.run,
        attempt=store.attempt,
        checkpoint=checkpoint,
        time_ms=checkpoint,
        operators=(OperatorMeta("totals", "process", 1, 128),),
        subtasks=subtasks,
        requires=requirements(subtasks),
        transactional=transactional,
        final=final,
        savepoint=savepoint,
    )


async def begin(store: CheckpointStore, *, savepoint: str | None = None) -> CheckpointWriter:
    if not store.attempt:
        await store.begin_attempt({})
    return await store.writer(store.next_checkpoint_id(), savepoint=savepoint)


async def take(
    store: CheckpointStore, *, transactional: bool = False, final: bool = False, savepoint: str | None = None
) -> Restorable:
    writer = await begin(store, savepoint=savepoint)
    file = await writer.write("totals", state(writer.checkpoint))
    content = manifest_of(
        store, writer.checkpoint, file, transactional=transactional, final=final, savepoint=savepoint is not None
    )
    return await store.complete(content)


async def restored(restorable: Restorable) -> int:
    """The id that the state's bytes tell, after verification of all of them."""
    checkpoint = restorable.manifest.checkpoint
    await restorable.verify("digests")
    [(_, node)] = restorable.manifest.nodes("totals")
    [handle] = node.keyed
    if await restorable.read_blocks(handle, BLOCKS) != state(checkpoint):
        raise CorruptCheckpoint("the state is another checkpoint's")
    return checkpoint
