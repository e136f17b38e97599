"""The snippets of docs/windows.md, run as they stand there."""

import asyncio
import datetime as dt
import re
from collections.abc import Iterable
from typing import Any

import msgspec

import streamactors as sa
from connectors.memory import ListSink, ListSource
from tests.programs import ROOT
from tests.runtime.feeds import PATIENCE

MINUTE = 60_000


class Click(msgspec.Struct, frozen=True):
    page: str
    user: str
    at: int


CLICKS = [
    Click("a", "ann", 1000), Click("a", "bob", 2000), Click("a", "ann", MINUTE + 1), Click("b", "bob", MINUTE + 2),
    Click("a", "ann", 10 * MINUTE), Click("a", "ann", 10 * MINUTE + 1), Click("a", "ann", 10 * MINUTE + 2),
]  # fmt: skip


def page() -> dict[str, Any]:
    """All snippets, run in their order; the names that they use and leave."""
    text = (ROOT / "docs" / "windows.md").read_text()
    names: dict[str, Any] = {
        "sa": sa,
        "dt": dt,
        "Click": Click,
        "Iterable": Iterable,
        "source": ListSource(CLICKS),
        "too_late": ListSink[Click](),
        "busy": ListSink[Any](),
    }
    for snippet in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        exec(snippet, names)
    return names


def test_windows() -> None:
    names = page()
    counts, hourly, longest = ListSink[Any](), ListSink[Any](), ListSink[str]()
    keyed = names["clicks"].key_by(lambda click: click.page)
    names["counts"].sink("counts", counts)
    names["busiest"](keyed.window("pages", sa.Tumbling(dt.timedelta(days=1))))
    names["impatient"](keyed).sink("hours", hourly)
    keyed.window("visits", sa.Session(dt.timedelta(minutes=5))).process(names["Longest"]).sink("longest", longest)

    async def finish() -> None:
        async with asyncio.timeout(PATIENCE):
            await sa.run(names["flow"])

    asyncio.run(finish())
    assert sorted((each.key, each.start, each.value) for each in counts.values) == [
        ("a", 0, 2), ("a", MINUTE, 1), ("a", 10 * MINUTE, 3), ("b", MINUTE, 1),
    ]  # fmt: skip
    by_page = {each.key: each.value for each in names["busy"].values}
    assert by_page == {"a": {"clicks": 6, "users": 2}, "b": {"clicks": 1, "users": 1}}
    assert {(each.key, each.value) for each in hourly.values} >= {("a", 6), ("b", 1)}
    assert sorted(longest.values) == ["a: 3 clicks from 1000", f"b: 1 clicks from {MINUTE + 2}"]
