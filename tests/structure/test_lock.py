"""The pinned versions are what `make lock` writes, as far as that can be told without an index."""

import tomllib
from collections.abc import Iterator

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.programs import ROOT

LINES = (ROOT / "constraints.txt").read_text().splitlines()
PINS = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in LINES[1:])}


def wanted() -> Iterator[Requirement]:
    """By the core, and by those who work on it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    groups = project["dependency-groups"]
    for requirement in [*project["project"]["dependencies"], *groups["dev"], *groups["docs"]]:
        if isinstance(requirement, str):
            yield Requirement(requirement)


def test_each_package_once_in_order() -> None:
    names = [line.partition("==")[0] for line in LINES[1:]]
    assert len(PINS) == len(names) > 100
    assert names == sorted(names, key=lambda name: name.lower().replace("_", "-").replace(".", "-"))


@pytest.mark.parametrize("requirement", list(wanted()), ids=lambda requirement: requirement.name)
def test_what_is_asked_for_is_pinned_within_its_bounds(requirement: Requirement) -> None:
    assert PINS[canonicalize_name(requirement.name)] in requirement.specifier, "run: make lock"
