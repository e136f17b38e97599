"""The snippet of docs/batch.md, run as it stands there."""

import ast
import asyncio
import datetime as dt
import inspect
import re
from typing import Any

import streamactors as sa
from connectors.memory import ListSink, ListSource
from tests.programs import ROOT
from tests.runtime.feeds import PATIENCE


async def test_the_snippet() -> None:
    text = (ROOT / "docs" / "batch.md").read_text()
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    results: ListSink[Any] = ListSink()
    names: dict[str, Any] = {
        "sa": sa, "dt": dt, "ListSource": ListSource, "results": results, "Order": tuple[str, int, int],
    }  # fmt: skip
    ran = eval(compile(code, "docs/batch.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), names)
    assert inspect.isawaitable(ran)
    async with asyncio.timeout(PATIENCE):
        await ran
    assert sorted(results.values) == [("ann", 8), ("bob", 7)]
