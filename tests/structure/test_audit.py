"""`make audit`, without the service that it asks: what it makes of an answer, and that no answer is no pass."""

import runpy
from typing import Any

import pytest

from tests.programs import ROOT

AUDIT = runpy.run_path(str(ROOT / ".ci" / "audit"))
WANTED = {"starlette": "1.0.0", "typing_extensions": "4.0"}
CLEAN = {"name": "typing-extensions", "version": "4.0", "vulns": []}
DEFECT = {"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["1.0.1"]}


def verdict(*dependencies: Any) -> tuple[int, str]:
    code, lines = AUDIT["verdict"](WANTED, {"dependencies": list(dependencies)})
    return code, "\n".join(lines)


def test_it_reads_every_pin() -> None:
    text = (ROOT / "constraints.txt").read_text()
    pins = AUDIT["pins"](text)
    assert len(pins) == len(text.splitlines()) - 1 > 100
    assert pins["starlette"] and all(pins.values())


def test_none_known() -> None:
    code, said = verdict({"name": "starlette", "version": "1.0.0", "vulns": []}, CLEAN)
    assert (code, said) == (0, "2 of 2 packages looked up, 0 known defects")


def test_a_known_defect() -> None:
    code, said = verdict({"name": "starlette", "version": "1.0.0", "vulns": [DEFECT]}, CLEAN)
    assert code == 1
    assert said.startswith("starlette 1.0.0: PYSEC-1 CVE-1 → 1.0.1\n2 of 2 packages looked up, 1 known defects")


@pytest.mark.parametrize("dependencies", [[CLEAN], [CLEAN, {"name": "starlette", "skip_reason": "not found"}]])
def test_a_package_that_the_service_does_not_know_is_no_pass(dependencies: list[Any]) -> None:
    code, said = verdict(*dependencies)
    assert code == 2 and "nothing was found out of: starlette. This is no pass." in said


def test_no_answer_is_no_pass() -> None:
    code, lines = AUDIT["verdict"](WANTED, None)
    assert code == 2 and "no pass" in lines[0]
