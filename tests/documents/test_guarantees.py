"""docs/guarantees.md: each promise has its assumptions and the tests that show it, and these are there."""

import re
from pathlib import Path

import pytest

from tests.programs import ROOT

PAGE = ROOT / "docs" / "guarantees.md"
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL))


@pytest.mark.parametrize("title", SECTIONS)
def test_a_promise_has_assumptions_and_tests(title: str) -> None:
    text = SECTIONS[title]
    shown = re.search(r"^Shown by .*?(?=\n\n|\Z)", text, re.MULTILINE | re.DOTALL)
    assert shown, "the tests that show it are missing"
    assert re.search(r"^- ", text[: shown.start()], re.MULTILINE), "a list of its assumptions is missing"
    files = [(PAGE.parent / link).resolve() for link in re.findall(r"\]\((\.\./tests/[^)#]+)\)", shown[0])]
    assert files
    for name in re.findall(r"`(test_\w+)`(?!\])", shown[0]):
        assert any(defines(file, name) for file in files), f"{name} is in none of the files that are named"


def defines(file: Path, test: str) -> bool:
    return re.search(rf"^\s*(async )?def {test}\(", file.read_text(), re.MULTILINE) is not None
