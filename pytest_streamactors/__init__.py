"""Fixtures for tests of flows; pytest finds them by itself where streamactors is installed (docs/testing.md).

It stands beside the package, not in it: pytest loads its plugins in every session, and this one costs next to nothing
there. What a fixture needs is imported when a test asks for the fixture.
"""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

F = TypeVar("F", bound=Callable[..., Any])

try:
    import pytest_asyncio
except ImportError:  # another plugin, such as anyio's, runs coroutines
    _fixture: Any = pytest.fixture
else:
    _fixture = pytest_asyncio.fixture


def async_fixture(function: F) -> F:
    made: F = _fixture(function)
    return made


MARKER = "kafka_broker"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", f"{MARKER}: needs a Kafka broker (set by itself on every test that uses the fixture of this name)"
    )


def pytest_itemcollected(item: pytest.Item) -> None:
    if MARKER in getattr(item, "fixturenames", ()):
        item.add_marker(MARKER)


@asynccontextmanager
async def harnesses() -> AsyncIterator[Any]:
    """Opens harnesses; on leaving, closes them all."""
    import asyncio

    from streamactors.errors import InvalidConfig
    from streamactors.testing import OperatorHarness

    loop = asyncio.get_running_loop()
    async with AsyncExitStack() as stack:

        async def open_harness(factory: Any, *, snapshot: Any = None, **options: Any) -> Any:
            if asyncio.get_running_loop() is not loop:  # nor could it be closed there: that would hang
                raise InvalidConfig(
                    "the test and its fixture operator_harness run in different event loops: give "
                    "asyncio_default_fixture_loop_scope the loop_scope of the test, or use "
                    "`async with OperatorHarness(…)` in the test"
                )
            made = OperatorHarness[Any]
            harness = made(factory, **options) if snapshot is None else made.restore(factory, snapshot, **options)
            return await stack.enter_async_context(harness)

        yield open_harness


@async_fixture
async def operator_harness() -> AsyncIterator[Any]:
    """`h = await operator_harness(RunningTotal, key=…)`: an OperatorHarness that is open until the test ends. With
    `snapshot=…` it goes on from there."""
    async with harnesses() as open_harness:
        yield open_harness


@pytest.fixture
def flow_harness() -> Any:
    """`result = await flow_harness(flow, inputs, …)`: see `streamactors.testing.run_flow`."""
    from streamactors.testing import run_flow

    return run_flow


@pytest.fixture
def streamactors_storage(tmp_path: Path) -> str:
    """The URI of an empty folder for checkpoints, of this test alone."""
    return (tmp_path / "checkpoints").as_uri()


@pytest.fixture(scope="session")
def kafka_broker() -> Iterator[Any]:
    """A real Kafka broker on loopback, started by the first test that asks, for the whole session. KAFKA_BOOTSTRAP
    names another one, which is used then. Where Java or Maven is missing, the test fails, and says what to install."""
    from streamactors.errors import StreamactorsError
    from streamactors.testing import session_broker

    with ExitStack() as stack:
        try:
            broker = stack.enter_context(session_broker())
        except StreamactorsError as error:
            pytest.fail(f"{error}\n(or name a running broker: KAFKA_BOOTSTRAP=host:port)", pytrace=False)
        yield broker


@pytest.fixture
def kafka_topics(kafka_broker: Any) -> Any:
    """`topic = await kafka_topics.new("orders", partitions=4)`: a topic that no other test uses."""
    from streamactors.testing import KafkaTopics

    return KafkaTopics(kafka_broker)
