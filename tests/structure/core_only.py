"""Run by the Python of a fresh environment with nothing but the core (test_fresh_install.py), in an empty folder: what
can be imported, whether a flow runs, and whether each optional part says which extra it needs. Prints a JSON object."""

import asyncio
import datetime as dt
import importlib
import json
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import connectors
import streamactors as sa
from connectors.files import FileSink, FileSource
from connectors.memory import ListSink, ListSource
from streamactors import service
from streamactors.config import Ray
from streamactors.testing import KafkaBroker

HOUR = dt.timedelta(hours=1)


def flow_of(values: list[int]) -> sa.Dataflow:
    flow = sa.Dataflow("numbers")
    flow.source("in", ListSource(values)).sink("out", ListSink())
    return flow


# ------------------------------------------------------------------------------------------------------- what is there
def imported() -> dict[str, str | None]:
    """Every module that was installed, and the error of those that can't be imported."""
    names = sorted(name for package in (sa, connectors) for name in modules(package))
    return {name: error_of(name) for name in [*names, "pytest_streamactors"] if not name.endswith("__main__")}


def modules(package: ModuleType) -> Iterator[str]:
    for root in map(Path, package.__path__):
        for path in root.rglob("*.py"):
            parts = path.relative_to(root.parent).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def error_of(module: str) -> str | None:
    try:
        importlib.import_module(module)
    except (ImportError, sa.StreamactorsError) as error:
        return f"{type(error).__name__}: {error}"
    return None


async def stored_totals() -> list[str]:
    """A small flow from files to files, under checkpoints."""
    Path("in").mkdir()
    Path("in/numbers.txt").write_text("1\n2\n3\n")
    flow = sa.Dataflow("lines")
    lines = flow.source("in", FileSource("in", value=sa.Text())).map(lambda line: str(int(line) * 2))
    lines.sink("out", FileSink("out", value=sa.Text()))
    await sa.run(flow, sa.Config(checkpoints=sa.Checkpoints("stored", interval=HOUR)))
    return sorted(line for file in Path("out").iterdir() if file.is_file() for line in file.read_text().split())


# ---------------------------------------------------------------------------------------------------------- the extras
async def kafka() -> None:
    importlib.import_module("connectors.kafka")


async def kafka_for_tests() -> None:
    broker = KafkaBroker.__new__(KafkaBroker)  # started or not: it is asked for a topic
    await broker.create_topics(["orders"])


async def rocksdb() -> None:
    await sa.run(flow_of([1]), sa.Config(state_backend="rocksdb"))


async def ray() -> None:
    await sa.run(flow_of([1]), sa.Config(deployment=Ray(workers=1)))


async def stored_at(uri: str) -> None:
    await sa.run(flow_of([1]), sa.Config(checkpoints=sa.Checkpoints(uri, interval=HOUR)))


async def s3() -> None:
    await stored_at("s3://bucket/jobs")


async def objectstore() -> None:
    await stored_at("memory://jobs")


async def metrics() -> None:
    answered: list[Any] = []

    async def send(message: Any) -> None:
        answered.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async with sa.start(flow_of([1])) as job:
        headers = [(b"host", b"localhost")]
        scope = {"type": "http", "http_version": "1.1", "method": "GET", "path": "/metrics", "raw_path": b"/metrics",
                 "root_path": "", "query_string": b"", "headers": headers, "scheme": "http"}  # fmt: skip
        await service.control_app(job)(scope, receive, send)
    raise RuntimeError(b"".join(message.get("body", b"") for message in answered).decode())


async def otel() -> None:
    async with sa.start(flow_of([1])) as job, service.traced(job):
        raise AssertionError("traced without OpenTelemetry")


async def parquet() -> None:
    importlib.import_module("streamactors.state_processor.arrow").pyarrow()


async def pandas() -> None:
    importlib.import_module("streamactors.state_processor.arrow").to_pandas(None)


EXTRAS: dict[str, Callable[[], Awaitable[None]]] = {
    "kafka": kafka,
    "kafka ": kafka_for_tests,
    "rocksdb": rocksdb,
    "ray": ray,
    "s3": s3,
    "objectstore": objectstore,
    "metrics": metrics,
    "otel": otel,
    "parquet": parquet,
    "pandas": pandas,
}


def said(part: Callable[[], Awaitable[None]]) -> str:
    try:
        asyncio.run(part())  # type: ignore[arg-type]
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


if __name__ == "__main__":
    told = {
        "where": sa.__file__,
        "imported": imported(),
        "totals": asyncio.run(stored_totals()),
        "said": {extra: said(part) for extra, part in EXTRAS.items()},
    }
    print(json.dumps(told))
