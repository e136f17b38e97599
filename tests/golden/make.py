"""Writes the checkpoints that later versions have to read, into `tests/golden/<version>.zip`.

To be run once for each release, and whenever something was added to `flow` before it:

    unshare --uts --map-root-user sh -c 'hostname golden && .venv/bin/python -m tests.golden.make'

- `heap` and `rocksdb`: an unaligned checkpoint of each backend, with records in flight, watermarks, and transactions of
  the file sink that were prepared and never committed;
- `savepoint`: canonical and self-contained;
- `out-heap` and so on: the hidden parts that these transactions stand for;
- `digests`: a line for each record of a whole run: what it saw; and one for each step in event time: what came of it.

Nothing of the machine may go into them, which is checked. RocksDB notes the host's name in its tables, hence the
command.
"""

import asyncio
import dataclasses
import datetime as dt
import importlib.metadata
import shutil
import socket
import sys
import tempfile
import zipfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

import streamactors as sa
from streamactors.checkpoint.manifest import Manifest, NodeState, decode_manifest, encode_manifest
from tests.golden.flow import (
    AFTER,
    BEFORE,
    FLOW,
    FLYING,
    MAX_PARALLELISM,
    RULES,
    Log,
    digest,
    flow_of,
    lines_in,
    records,
)
from tests.runtime.feeds import Feed

VERSIONS = Path(__file__).parent
BACKENDS: tuple[Any, ...] = ("heap", "rocksdb")
SAVEPOINT = "savepoint"
DIGESTS = "digests"
NEVER = dt.timedelta(hours=1)
EPOCH = (2024, 1, 1, 0, 0, 0)


def config_of(storage: Path, backend: Any) -> sa.Config:
    checkpoints = sa.Checkpoints(storage.as_uri(), interval=NEVER, alignment="unaligned")
    return sa.Config(
        checkpoints=checkpoints, restart=sa.Restart.none(), max_parallelism=MAX_PARALLELISM, state_backend=backend
    )


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.001)


# -------------------------------------------------------------------------------------------------------- running jobs
async def whole_run() -> Log:
    """What comes of everything where nothing is ever restored."""
    with tempfile.TemporaryDirectory() as folder:
        return await run_through(Path(folder), Log(), restore=None)


def digests_of(log: Log) -> dict[str, str]:
    """Of a whole run: for each record what it saw, and for each step in event time what came of it."""
    seen = {str(number): digest(number, text).digest for number, text in sorted(log.seen.items())}
    return seen | {uid: digest(0, str(sorted(results))).digest for uid, results in sorted(log.came.items())}


async def run_through(
    folder: Path, log: Log, *, restore: str | None, backend: Any = "heap", parallelism: int = 2
) -> Log:
    """A job to its end. What is restored has seen the rules already."""
    numbers, rules = Feed(), Feed()
    everything = records(BEFORE + FLYING + AFTER)
    if restore is not None:
        numbers.values[0] += everything
        rules.values[0] += RULES
    flow = flow_of(numbers, rules, log, folder / "out", parallelism)
    async with sa.start(flow, config_of(folder / "storage", backend), restore=restore, on_exit="cancel") as job:
        if restore is None:
            await tell_the_rules(job, rules)
            numbers.put(*everything)
        numbers.end()
        rules.end()
        await job.wait()
    return log


async def tell_the_rules(job: sa.JobHandle, rules: Feed) -> None:
    """Before any record comes, so that each sees them all."""
    rules.put(*RULES)

    def known() -> list[int]:
        subtasks = [subtask["nodes"] for subtask in job.metrics()["subtasks"].values()]
        return [nodes["kinds"]["entries"]["rules"] for nodes in subtasks if "kinds" in nodes]

    await until(lambda: set(known()) == {len(RULES)})


@dataclasses.dataclass
class Running:
    job: sa.JobHandle
    numbers: Feed
    log: Log
    folder: Path


Take = Callable[[Running], Awaitable[str]]
"""Gives the URI of what is to be kept."""


async def checkpoint_with_records_in_flight(running: Running) -> str:
    running.numbers.put(*records(BEFORE + FLYING)[BEFORE:])
    await until(lambda: running.log.entered > BEFORE)
    checkpoint = asyncio.create_task(running.job.checkpoint())
    while not checkpoint.done():
        running.log.gate.release()  # a barrier overtakes records between two of them, never within one
        await asyncio.sleep(0.01)
    info = await checkpoint
    assert info.inflight_bytes
    return info.uri


async def savepoint(running: Running) -> str:
    uri = await running.job.savepoint((running.folder / "kept").as_uri())
    await running.job.checkpoint()  # since a savepoint commits nothing
    return uri


async def write(target: Path, name: str, backend: Any, take: Take) -> None:
    with tempfile.TemporaryDirectory() as folder:
        parts = Path(folder) / "out"
        numbers, rules, log = Feed(), Feed(), Log(BEFORE)
        flow, config = flow_of(numbers, rules, log, parts), config_of(Path(folder) / "storage", backend)
        async with sa.start(flow, config, on_exit="cancel") as job:
            await tell_the_rules(job, rules)
            numbers.put(*records(BEFORE))
            await until(lambda: len(log.seen) == BEFORE)
            uri = await take(Running(job, numbers, log, Path(folder)))
            await until(lambda: lines_in(parts))
        keep(Path(uri.removeprefix("file://")), target / name)
        keep_hidden(parts, target / f"out-{name}")


# ------------------------------------------------------------------------------------------------- what is kept of them
def place_in(target: Path) -> Path:
    """Where the checkpoint lies in the folder that `keep` has filled."""
    (manifest,) = target.rglob("manifest")
    return manifest.parent


def keep(checkpoint: Path, target: Path) -> None:
    """Its files, at their paths: those of a checkpoint are relative to the flow's folder, of a savepoint to its own."""
    own = checkpoint if checkpoint.name == "kept" else checkpoint.parents[2]
    target = target if own == checkpoint else target / FLOW
    manifest = decode_manifest((checkpoint / "manifest").read_bytes(), "manifest")
    (target / checkpoint.relative_to(own)).mkdir(parents=True)
    for file in manifest.files:
        shutil.copyfile(own / file.path, target / file.path)
    (target / checkpoint.relative_to(own) / "manifest").write_bytes(encode_manifest(without_folders(manifest)))


def without_folders(manifest: Manifest) -> Manifest:
    """The file sink notes where its parts lay; it looks for them in its folder of today first."""

    def neutral(node: NodeState) -> NodeState:
        pending = tuple(["/somewhere/out", *rest] for _, *rest in node.pending)
        return msgspec.structs.replace(node, pending=pending)

    subtasks = tuple(
        msgspec.structs.replace(subtask, nodes=tuple(map(neutral, subtask.nodes))) for subtask in manifest.subtasks
    )
    return msgspec.structs.replace(manifest, subtasks=subtasks)


def keep_hidden(parts: Path, target: Path) -> None:
    """As before they were committed."""
    target.mkdir(parents=True)
    for part in parts.iterdir():
        if not part.name.startswith("."):
            shutil.copyfile(part, target / f".{part.name}.pending")


def refuse_traces(target: Path) -> None:
    traces = [socket.gethostname(), tempfile.gettempdir(), str(Path.home()), str(Path.cwd())]
    for path in target.rglob("*"):
        data = path.read_bytes() if path.is_file() else b""
        found = [trace for trace in traces if trace != "golden" and len(trace) > 1 and trace.encode() in data]
        if found:
            raise SystemExit(f"{path.relative_to(target)} names this machine: {', '.join(found)}. See how to run this")


def pack(folder: Path, archive: Path) -> None:
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as packed:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                entry = zipfile.ZipInfo(path.relative_to(folder).as_posix(), EPOCH)
                packed.writestr(entry, path.read_bytes(), zipfile.ZIP_DEFLATED, 9)


async def make(archive: Path) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        target = Path(temporary)
        for backend in BACKENDS:
            await write(target, backend, backend, checkpoint_with_records_in_flight)
        await write(target, SAVEPOINT, "heap", savepoint)
        digests = digests_of(await whole_run())
        (target / DIGESTS).write_text("".join(f"{name} {found}\n" for name, found in digests.items()))
        refuse_traces(target)
        pack(target, archive)


if __name__ == "__main__":
    version = importlib.metadata.version("streamactors")
    asyncio.run(make(Path(sys.argv[1]) if len(sys.argv) > 1 else VERSIONS / f"{version}.zip"))
