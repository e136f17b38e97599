"""docs/nexmark.md shows a query as it stands in the code, names all of them, and gives commands that exist."""

import inspect
import re

from benchmarks.nexmark import run
from benchmarks.nexmark.queries import windows
from benchmarks.nexmark.queries.catalogue import QUERIES, Settle, every, final, rankings, totals
from tests.programs import ROOT

PAGE = (ROOT / "docs" / "nexmark.md").read_text()
COMPARED: dict[Settle, str] = {every: "all", totals: "sums", rankings: "the last of each key"}


def test_the_query_shown_is_the_one_that_runs() -> None:
    (shown,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert shown == inspect.getsource(windows.q7)


def test_the_table_names_every_query_and_how_it_is_compared() -> None:
    queries, _, _ = PAGE.partition("## Numbers")
    rows = re.findall(r"^\| (q\d+(?:, q\d+)*) \|.*\| ([^|]+) \|$", queries, re.MULTILINE)
    compared = {name: how for names, how in rows for name in names.split(", ")}
    assert compared == {name: COMPARED.get(query.settle, COMPARED[rankings]) for name, query in QUERIES.items()}
    assert all(QUERIES[name].settle.__qualname__.startswith(final.__name__) for name in ("q4", "q6", "q15", "q18"))


def test_the_command_shown_can_be_given() -> None:
    (arguments,) = re.findall(r"^\$ python -m benchmarks\.nexmark (.*)$", PAGE, re.MULTILINE)
    options = run._parser().parse_args(arguments.split())
    assert (options.events, options.query) == (1_000_000, ["q5"])
    assert "nexmark:" in (ROOT / "Makefile").read_text()
