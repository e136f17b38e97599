"""docs/savepoints.md, done as it stands there: every file written, every command given, in this order."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tests.documents.terminal import Terminal, steps
from tests.programs import ROOT

pytestmark = pytest.mark.slow

PAGE = ROOT / "docs" / "savepoints.md"
REFUSED = "--restore savepoints/thursday"
"""The one command that the page says is refused: this, without `--drop-state`."""


class Shop(Terminal):
    def totals(self) -> dict[str, int]:
        """The last total of each customer that is visible."""
        found: dict[str, int] = {}
        for path in (self.folder / "totals").glob("[!.]*"):
            for line in path.read_bytes().splitlines():
                total = msgspec.json.decode(line)
                found[total["customer"]] = max(total["cents"], found.get(total["customer"], 0))
        return found


@pytest.fixture
def terminal(tmp_path: Path, registry_folder: Path) -> Iterator[Shop]:
    found = Shop(tmp_path)
    try:
        yield found
    finally:
        found.close()


EXPECTED = {"alice": 537, "bob": 204, "carol": 1}


def test_every_step_of_the_page_works_as_it_stands_there(terminal: Shop) -> None:
    refused = []
    for kind, step in steps(PAGE):
        if kind == "file":
            name = step.partition("\n")[0].removeprefix("# ")
            (terminal.folder / name).write_text(step)
            continue
        if step == "streamactors stop shop":  # the last one: until then whatever was ordered has to come out
            terminal.wait(lambda: terminal.totals() == EXPECTED, f"the totals are {EXPECTED}, not {terminal.totals()}")
        done = terminal.give(step)
        if done is not None and REFUSED in step and "--drop-state" not in step:
            refused.append(done)
        elif done is not None:
            assert done.returncode == 0, f"{step}: {done.stdout}{done.stderr}"
    terminal.settled()
    assert terminal.totals() == EXPECTED
    (refusal,) = refused
    assert refusal.returncode != 0 and "'larger'" in refusal.stderr + refusal.stdout
    assert sorted(path.name for path in (terminal.folder / "savepoints").iterdir()) == [
        "first",
        "monday",
        "thursday",
        "tuesday",
        "wednesday",
    ]
