"""The snippets of docs/time.md about watermarks, run as they stand there."""

import asyncio
import datetime as dt
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import streamactors as sa
from connectors.files import FileSink
from connectors.memory import ListSink, ListSource
from tests.programs import ROOT
from tests.runtime.feeds import PATIENCE

PAGE = (ROOT / "docs" / "time.md").read_text()
NOW = 1_764_000_000_000
FUTURE = 4_000_000_000_000


def snippet(heading: str) -> str:
    """The first one under a heading."""
    found = re.search(rf"^#+ {heading}$.*?^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None, heading
    return found[1]


def run(stream: sa.Stream[Any], flow: sa.Dataflow) -> list[Any]:
    sink = ListSink[Any]()
    stream.sink("out", sink)

    async def finish() -> None:
        async with asyncio.timeout(PATIENCE):
            await sa.run(flow)

    asyncio.run(finish())
    return sink.values


def order(**times: int) -> Any:
    return SimpleNamespace(**times)


def test_watermarks() -> None:
    names: dict[str, Any] = {"sa": sa, "dt": dt, "source": ListSource([order(at=NOW)])}
    exec(snippet("Watermarks"), names)
    assert len(run(names["orders"], names["flow"])) == 1


def test_in_mid_stream() -> None:
    flow = sa.Dataflow("mid")
    orders = flow.source("in", ListSource([NOW, NOW + 1]))
    names: dict[str, Any] = {"sa": sa, "dt": dt, "orders": orders, "parse": lambda at: order(paid_at=at)}
    exec(snippet("In mid-stream"), names)
    assert len(run(names["timed"], flow)) == 2


def test_bad_time_stamps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    flow = sa.Dataflow("bad")
    source = ListSource([{"at": NOW}, {"at": FUTURE}, {"at": NOW + 1}])
    names: dict[str, Any] = {"sa": sa, "dt": dt, "flow": flow, "source": source, "FileSink": FileSink}
    exec(snippet("Bad time-stamps"), names)
    assert run(names["orders"], flow) == [{"at": NOW}, {"at": NOW + 1}]
    assert "".join(part.read_text() for part in (tmp_path / "early").iterdir()) == f'{{"at":{FUTURE}}}\n'
