"""All that a handle offers, and what is refused, on a Ray cluster: prints what came of it as JSON. A program."""

import asyncio
import dataclasses
import datetime as dt
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import ray
from ray._raylet import GcsClient  # type: ignore[attr-defined]

import streamactors as sa
from connectors.files import FileSink, FileSource
from connectors.memory import ListSource

FEW = dt.timedelta(seconds=1)
MANY = dt.timedelta(minutes=10)


class Seen(msgspec.Struct):
    value: int


class Fragile(sa.Operator[int, Seen]):
    """Slow, so that there are checkpoints meanwhile; takes its worker with it, once."""

    def __init__(self, fallen: Path) -> None:
        self.fallen = fallen

    async def process(self, value: int, ctx: sa.Context[None, Seen]) -> None:
        await asyncio.sleep(0.001)
        if value == 700 and not self.fallen.exists():
            self.fallen.touch()
            os._exit(1)
        ctx.emit(Seen(value))


class Sum(sa.KeyedOperator[int, int, int]):
    total = sa.ValueState(int, default=0)

    def process(self, value: int, ctx: sa.Context[int, int]) -> None:
        if value < 0:
            raise ValueError(f"{value} is negative")
        self.total.set(self.total.get() + value)
        ctx.emit(self.total.get())


class SlowSum(sa.KeyedOperator[int, int, int]):
    """Does some 200 a second. Takes its worker with it at the first negative number, once."""

    total = sa.ValueState(int, default=0)

    def __init__(self, fallen: Path) -> None:
        self.fallen = fallen

    async def process(self, value: int, ctx: sa.Context[int, int]) -> None:
        await asyncio.sleep(0.005)
        if value < 0 and not self.fallen.exists():
            self.fallen.touch()
            os._exit(1)
        self.total.set(self.total.get() + abs(value))
        ctx.emit(self.total.get())


def output(folder: Path) -> FileSink[int]:
    return FileSink(str(folder / "out"), value=sa.Json(int))


def summing(folder: Path) -> sa.Dataflow:
    flow = sa.Dataflow("summing")
    numbers = flow.source("in", FileSource(str(folder / "in.jsonl"), value=sa.Json(int), follow=True))
    numbers.key_by(lambda value: value % 4).process("sum", Sum).sink("out", output(folder))
    return flow


def config(folder: Path, **ray: Any) -> sa.Config:
    return sa.Config(
        parallelism=2,
        checkpoints=sa.Checkpoints((folder / "checkpoints").as_uri(), interval=dt.timedelta(hours=1)),
        restart=sa.Restart.none(),
        deployment=sa.Ray(address=os.environ["CLUSTER"], **{"workers": 2, **ray}),
    )


def records_in(job: sa.JobHandle) -> int:
    subtasks = job.metrics()["subtasks"].values()
    return sum(node["records_in"] for subtask in subtasks for uid, node in subtask["nodes"].items() if uid == "sum")


async def handle(folder: Path) -> dict[str, Any]:
    told: dict[str, Any] = {}
    (folder / "in.jsonl").write_text("".join(f"{value}\n" for value in range(100)))
    async with sa.start(summing(folder), config(folder), on_exit="cancel") as job:
        while records_in(job) < 100:
            await asyncio.sleep(0.01)
        told["query"] = await job.query("sum", Sum.total, 1)
        info = await job.checkpoint()
        told["subtasks"] = sorted(str(part.subtask) for part in info.subtasks)
        told["savepoint"] = await job.savepoint((folder / "savepoint").as_uri())
        await job.rescale(parallelism=4)
        assert job.plan is not None
        told["rescaled"] = job.plan.vertex["sum"].parallelism
        async with job.subscribe("sum") as results:
            with (folder / "in.jsonl").open("a") as file:
                file.write("1000\n")
            told["subscribed"] = await anext(results)
        told["stopped"] = await job.stop()
    told["status"], told["restarts"] = job.status, job.restarts
    return told


async def collected(folder: Path) -> dict[str, Any]:
    numbers = sa.Dataflow("collected").source("in", ListSource(list(range(1000))))
    seen = numbers.process("fragile", partial(Fragile, folder / "fallen"), parallelism=2)
    checkpoints = sa.Checkpoints((folder / "checkpoints").as_uri(), interval=dt.timedelta(milliseconds=50))
    restart = sa.Restart.fixed(dt.timedelta(0), 100)
    values = await sa.collect(seen, dataclasses.replace(config(folder), checkpoints=checkpoints, restart=restart))
    assert (folder / "fallen").exists() and all(type(each) is Seen for each in values)
    return {"values": sorted(each.value for each in values)}


async def autoscaled(folder: Path) -> dict[str, Any]:
    """Too slow for what comes, until the autoscaler has seen to it; then a worker dies of a record. Mailboxes are full,
    and checkpoints that overtake what is in them."""
    flow = sa.Dataflow("autoscaled")
    source = flow.source("in", FileSource(str(folder / "in.jsonl"), value=sa.Json(int), follow=True))
    summed = source.key_by(lambda value: abs(value) % 4).process("sum", partial(SlowSum, folder / "fallen"))
    summed.sink("out", output(folder))
    storage, soon = (folder / "checkpoints").as_uri(), dt.timedelta(milliseconds=500)
    given = dataclasses.replace(
        config(folder),
        parallelism=1,
        mailbox_capacity=256,
        checkpoints=sa.Checkpoints(storage, interval=soon / 5, alignment="unaligned"),
        restart=sa.Restart.fixed(dt.timedelta(0), 100),
        autoscale=sa.Autoscale(max_parallelism=4, every=soon, window=2 * soon, cooldown=soon, scale_down_after=MANY),
    )
    fed = feed(folder, 0, 400)
    async with sa.start(flow, given) as job:
        while parallelism(job) == 1:
            fed += feed(folder, fed, 200) if fed - visible(folder) < 400 else 0
            await asyncio.sleep(0.05)
        fed += feed(folder, fed, 200, sign=-1)
        while visible(folder) < fed:
            await asyncio.sleep(0.05)
    return {"status": job.status, "restarted": job.restarts > 0, "numbers": fed}


def parallelism(job: sa.JobHandle) -> int:
    return job.plan.vertex["sum"].parallelism if job.plan is not None else 1


def feed(folder: Path, first: int, count: int, sign: int = 1) -> int:
    with (folder / "in.jsonl").open("a") as file:
        file.writelines(f"{sign * value}\n" for value in range(first, first + count))
    return count


def visible(folder: Path) -> int:
    """Lines of output."""
    return sum(len(path.read_text().splitlines()) for path in (folder / "out").glob("[!.]*"))


@contextmanager
def refused(told: dict[str, str], name: str) -> Iterator[None]:
    try:
        yield
    except sa.StreamactorsError as error:
        cause = error.__cause__
        told[name] = f"{type(error).__name__}: {error}" + (f" | {type(cause).__name__}" if cause else "")


async def refusals(folder: Path) -> dict[str, str]:
    told: dict[str, str] = {}
    ray.init(os.environ["CLUSTER"])  # a connection that is there already is used, and stays
    (folder / "in.jsonl").write_text("1\n-1\n")
    with refused(told, "failing"):
        await sa.run(summing(folder), config(folder))
    with refused(told, "too small"):
        await sa.run(summing(folder), config(folder, workers=50, patience=FEW))
    with refused(told, "no such resource"):
        await sa.run(summing(folder), config(folder, resources={"GPU": 1}, patience=FEW))
    with refused(told, "not there"):
        await sa.run(missing(folder), config(folder))
    (folder / "in.jsonl").write_text("1\n")
    async with sa.start(summing(folder), config(folder), fresh=True, on_exit="cancel"):
        with refused(told, "twice"):
            await sa.run(summing(folder), config(folder))
    ray.shutdown()
    return told


async def other_versions(folder: Path) -> dict[str, str]:
    told: dict[str, str] = {}
    (folder / "in.jsonl").write_text("1\n")
    with refused(told, "other"):
        await sa.run(summing(folder), config(folder, resources={"CPU": 0, "other": 1}))
    return told


async def room(folder: Path) -> dict[str, Any]:
    """Each of its jobs takes all that one node has; the test adds two, when it sees that one is waited for."""
    told: dict[str, Any] = {}
    logging.basicConfig(level=logging.INFO)
    ray.init(os.environ["CLUSTER"])
    node = partial(config, folder, resources={"CPU": 0, "other": 1})
    again = sa.Restart.fixed(dt.timedelta(0), 100)
    (folder / "in.jsonl").write_text("1\n")
    async with sa.start(summing(folder), node(patience=MANY), on_exit="cancel") as first:
        while records_in(first) < 1:
            await asyncio.sleep(0.01)
        with refused(told, "taken"):
            await sa.run(counting(folder), dataclasses.replace(node(patience=FEW), restart=again))
        await sa.run(counting(folder), node(patience=MANY))
    ray.shutdown()
    return told


def counting(folder: Path) -> sa.Dataflow:
    flow = sa.Dataflow("counting")
    flow.source("in", ListSource([1, 2, 3])).sink("out", FileSink(str(folder / "counted"), value=sa.Json(int)))
    return flow


async def not_everywhere(folder: Path) -> dict[str, str]:
    """A module that all nodes have but the other one, with a worker on each."""
    from tests.deploy.prices import doubled

    told: dict[str, str] = {}
    flow = sa.Dataflow("prices")
    flow.source("in", ListSource([1])).map(doubled, parallelism=4).sink("out", output(folder))
    with refused(told, "missing"):
        await sa.run(flow, config(folder, workers=4, resources={"CPU": 2}))
    return told


async def another_python(folder: Path) -> dict[str, str]:
    told: dict[str, str] = {}
    (folder / "in.jsonl").write_text("1\n")
    with said_to_be_of("3.99.0"), refused(told, "python"):
        await sa.run(summing(folder), config(folder))
    return told


@contextmanager
def said_to_be_of(python: str) -> Iterator[None]:
    """The cluster."""
    head: Any = GcsClient(address=os.environ["CLUSTER"])
    key, namespace = b"CLUSTER_METADATA", b"cluster"
    told = head.internal_kv_get(key, namespace)
    head.internal_kv_put(key, json.dumps(json.loads(told) | {"python_version": python}).encode(), True, namespace)
    try:
        yield
    finally:
        head.internal_kv_put(key, told, True, namespace)


def missing(folder: Path) -> sa.Dataflow:
    module: Any = type(sys)("only_in_the_driver")
    exec("def double(value): return 2 * value", module.__dict__)
    sys.modules["only_in_the_driver"] = module
    flow = sa.Dataflow("missing")
    flow.source("in", ListSource([1])).map(module.double).sink("out", output(folder))
    return flow


async def unreachable(folder: Path) -> dict[str, str]:
    told: dict[str, str] = {}
    flow = sa.Dataflow("unreachable")
    flow.source("in", ListSource([1])).sink("out", output(folder))
    for address in ("127.0.0.1:1", "ray://127.0.0.1:1"):
        with refused(told, address):
            await sa.run(flow, sa.Config(deployment=sa.Ray(workers=1, address=address)))
    return told


async def alone(folder: Path) -> dict[str, Any]:
    """On a Ray of its own."""
    flow = sa.Dataflow("alone")
    stream = flow.source("in", ListSource(list(range(1000)))).key_by(lambda value: value % 4)
    stream.process("sum", Sum, parallelism=2).sink("out", output(folder))
    await sa.run(flow, sa.Config(deployment=sa.Ray(workers=2)))
    return {}


async def terminated(folder: Path) -> dict[str, Any]:
    """How long it may live after SIGTERM, which Ray would limit by an alarm; 0: as long as it likes."""
    seen = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, seen.set)
    (folder / "in.jsonl").write_text("1\n")
    async with sa.start(summing(folder), config(folder), on_exit="cancel"):
        os.kill(os.getpid(), signal.SIGTERM)
        await seen.wait()
        return {"seconds": str(signal.getitimer(signal.ITIMER_REAL)[0])}


SCENES: dict[str, Callable[[Path], Coroutine[Any, Any, Any]]] = {
    "handle": handle,
    "autoscaled": autoscaled,
    "collected": collected,
    "refusals": refusals,
    "other versions": other_versions,
    "another python": another_python,
    "not everywhere": not_everywhere,
    "room": room,
    "unreachable": unreachable,
    "alone": alone,
    "terminated": terminated,
}

if __name__ == "__main__":
    print(json.dumps(asyncio.run(SCENES[sys.argv[1]](Path(sys.argv[2])))))
