"""The pytest plugin, as a user's project has it: each test is a session of its own, in another process."""

from pathlib import Path

import pytest

from streamactors.testing import KafkaBroker

pytest_plugins = ["pytester"]
pytestmark = pytest.mark.slow

OPERATOR = """
import asyncio
import pytest
import streamactors as sa
from connectors.memory import ListSource

class Count(sa.KeyedOperator[str, str, int]):
    count = sa.ValueState(int, default=0)

    def process(self, value: str, ctx: sa.Context[str, int]) -> None:
        self.count.set(self.count.get() + 1)
        ctx.emit(self.count.get())
"""
USES = """
@pytest.mark.asyncio
async def test_harness(operator_harness):
    h = await operator_harness(Count, key=str)
    await h.push("a")
    again = await operator_harness(Count, key=str, snapshot=await h.snapshot(), parallelism=2)
    await again.push("a")
    assert (h.take(), again.take()) == ([1], [2])

@pytest.mark.asyncio
async def test_flow(flow_harness, streamactors_storage, tmp_path):
    assert streamactors_storage == (tmp_path / "checkpoints").as_uri()
    stream = sa.Dataflow("counts").source("in", ListSource([])).key_by(str).process("count", Count)
    assert (await flow_harness(stream, {"in": ["a", "b", "a"]})).output == [1, 1, 2]
"""
FAILS = """
@pytest.mark.asyncio
async def test_failing(operator_harness):
    h = await operator_harness(Count, key=str)
    await h.push("a")
    raise LookupError("the test's own")
"""
ANOTHER_LOOP = """
@pytest.mark.asyncio(loop_scope="module")
async def test_another_loop(operator_harness):
    with pytest.raises(sa.InvalidConfig, match="different event loops.*asyncio_default_fixture_loop_scope"):
        await operator_harness(Count, key=str)
"""
ANYIO = """
@pytest.fixture
def anyio_backend():
    return "asyncio"
"""
OWN_FIXTURE = """
@pytest.fixture
def flow_harness():
    return "the project's own"

def test_it_comes_first(flow_harness):
    assert flow_harness == "the project's own"
"""
COSTS = """
import sys

def test_nothing_was_imported():
    assert "pytest_streamactors" in sys.modules
    assert not [name for name in sys.modules if name.split(".")[0] in ("streamactors", "connectors")]
"""
KAFKA = """
import pytest

@pytest.mark.asyncio
async def test_topics(kafka_broker, kafka_topics):
    first, second = await kafka_topics.new("orders"), await kafka_topics.new("orders", partitions=2)
    assert first != second and first.startswith("orders-")
    print("the broker is at", kafka_broker.bootstrap)

def test_marker(request, kafka_broker):
    assert request.node.get_closest_marker("kafka_broker") is not None

def test_without(request):
    assert request.node.get_closest_marker("kafka_broker") is None
"""
INI = """
[pytest]
addopts = --strict-markers --strict-config
filterwarnings = error
asyncio_default_fixture_loop_scope = function
"""
QUIET = ("-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:hypothesispytest")


@pytest.fixture(autouse=True)
def settings(pytester: pytest.Pytester) -> None:
    pytester.makeini(INI)


def test_fixtures(pytester: pytest.Pytester, tmp_path: Path) -> None:
    pytester.makepyfile(OPERATOR + USES + FAILS)
    result = pytester.runpytest_subprocess(*QUIET)
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["*LookupError: the test's own*"])
    result.stdout.no_fnmatch_line("*never awaited*")


def test_without_marks(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(OPERATOR + USES.replace("@pytest.mark.asyncio", ""))
    pytester.runpytest_subprocess(*QUIET, "-o", "asyncio_mode=auto", timeout=300).assert_outcomes(passed=2)


def test_with_anyio_in_the_place_of_pytest_asyncio(pytester: pytest.Pytester) -> None:
    """As a project has it that has no pytest-asyncio."""
    pytester.makeini("[pytest]\nfilterwarnings = error\nanyio_mode = auto\n")
    pytester.makepyfile(OPERATOR + ANYIO + USES.replace("@pytest.mark.asyncio", ""))
    pytester.runpytest_subprocess(*QUIET, "-p", "no:asyncio", timeout=300).assert_outcomes(passed=2)


def test_a_test_in_another_loop_is_told(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(OPERATOR + ANOTHER_LOOP + OWN_FIXTURE)
    pytester.runpytest_subprocess(*QUIET, timeout=300).assert_outcomes(passed=2)


def test_a_session_that_uses_none_imports_nothing(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(COSTS)
    pytester.runpytest_subprocess(*QUIET).assert_outcomes(passed=1)


def test_broker(pytester: pytest.Pytester, kafka: KafkaBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAFKA_BOOTSTRAP", kafka.bootstrap)
    pytester.makepyfile(KAFKA)
    result = pytester.runpytest_subprocess(*QUIET, "-s")
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines([f"*the broker is at {kafka.bootstrap}*"])


def test_no_java(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("KAFKA_BOOTSTRAP", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    pytester.makepyfile(KAFKA)
    result = pytester.runpytest_subprocess(*QUIET)
    result.assert_outcomes(passed=1, errors=2)
    result.stdout.fnmatch_lines(["*java is not installed*apt install*", "*KAFKA_BOOTSTRAP=host:port*"])
