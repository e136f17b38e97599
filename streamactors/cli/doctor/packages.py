"""What is installed, beside what the package's own metadata asks for.

Invariant: the advice holds wherever the package came from. `pip install` of a name that is installed stays with what is
there, and sees to what that needs; only `--upgrade` would ask an index for another.
"""

import re
import shlex
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Final, NamedTuple

import streamactors
from streamactors.diagnosis import Finding

PACKAGE: Final = "streamactors"
_EXTRA: Final = re.compile(r"extra == ['\"]([\w-]+)['\"]")


class Requirement(NamedTuple):
    """`bounds`: such as `>=0.13` and `<0.15`."""

    name: str
    bounds: tuple[str, ...]
    extra: str | None

    @classmethod
    def parse(cls, text: str) -> "Requirement":
        what, _, marker = text.partition(";")
        match = re.match(r"([\w.-]+)(?:\[[^\]]*\])?\s*\(?([^)]*)\)?", what.strip())
        assert match is not None, text
        extra = _EXTRA.search(marker)
        return cls(match[1], tuple(filter(None, map(str.strip, match[2].split(",")))), extra[1] if extra else None)

    def __str__(self) -> str:
        return self.name + ",".join(sorted(self.bounds, reverse=True))

    def met_by(self, installed: str) -> bool:
        return all(_within(installed, bound) for bound in self.bounds)


def _within(installed: str, bound: str) -> bool:
    """Releases only, which is all that our own bounds have."""
    if bound.startswith(">="):
        return _release(installed) >= _release(bound[2:])
    if bound.startswith("<"):
        return _release(installed) < _release(bound[1:])
    return True


def _release(text: str) -> tuple[int, ...]:
    numbers = re.match(r"\d+(\.\d+)*", text)
    return tuple(map(int, numbers[0].split("."))) if numbers else ()


def of_packages() -> Iterator[Finding]:
    try:
        own, wanted = version(PACKAGE), requires(PACKAGE) or ()
    except PackageNotFoundError:
        told = "not installed, only found on Python's path: nothing can be told of the packages that it needs"
        yield Finding("warning", PACKAGE, told, _to_install(Path(streamactors.__file__).parents[1]))
        return
    yield Finding("ok", PACKAGE, own)
    yield from of_requirements(map(Requirement.parse, _on_this_platform(wanted)))


def _to_install(folder: Path) -> str:
    """`folder`: where the package lies."""
    if (folder / "pyproject.toml").is_file():
        return f"pip install {shlex.quote(str(folder))}"
    return "pip install it: its wheel, or the folder of its sources"


def _on_this_platform(wanted: Iterable[str]) -> Iterator[str]:
    return (text for text in wanted if not (sys.platform == "win32" and "sys_platform" in text))


def of_requirements(wanted: Iterable[Requirement]) -> Iterator[Finding]:
    by_extra: defaultdict[str | None, list[Requirement]] = defaultdict(list)
    for requirement in wanted:
        if requirement.name != PACKAGE and requirement.extra != "all":  # which is made of the others
            by_extra[requirement.extra].append(requirement)
    yield _core(by_extra.pop(None, []))
    for extra, requirements in by_extra.items():
        yield _extra(extra or "", requirements)


def _core(requirements: Sequence[Requirement]) -> Finding:
    wrong = [told for one in requirements for told in _wrong(one)]
    if wrong:
        return Finding("problem", "packages", "; ".join(wrong), f"pip install {PACKAGE}")
    return Finding("ok", "packages", f"{len(requirements)}, all as required")


def _extra(extra: str, requirements: Sequence[Requirement]) -> Finding:
    check, install = f"extra {extra}", f"pip install '{PACKAGE}[{extra}]'"
    missing = [one.name for one in requirements if _installed(one.name) is None]
    if missing:
        return Finding("ok", check, f"not installed: {', '.join(missing)} ({install})")
    if wrong := [told for one in requirements for told in _wrong(one)]:
        return Finding("problem", check, "; ".join(wrong), install)
    return Finding("ok", check, ", ".join(f"{one.name} {_installed(one.name)}" for one in requirements))


def _wrong(requirement: Requirement) -> Iterator[str]:
    found = _installed(requirement.name)
    if found is None:
        yield f"{requirement.name} is missing"
    elif not requirement.met_by(found):
        yield f"{requirement.name} is {found}, and {requirement} is needed"


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
