"""Fixtures and checks for all tests: one Kafka broker per session, and nothing left behind by any test."""

import inspect
import signal
import tempfile
import uuid
from collections.abc import Generator, Iterator
from pathlib import Path

import hypothesis
import pytest

from streamactors.testing import KafkaBroker, session_broker
from tests.kafka_topics import Topics
from tests.leaks import held, leaving_no_task, left_since
from tests.s3_server import S3Bucket, S3Server

FAILED = pytest.StashKey[bool]()

# A busy machine makes an example slow, and that is no bug. The examples are the same in every run, so that a change is
# judged by what it changed; `--hypothesis-profile=random` (and `make test-fast`) looks for new ones.
ANY_MACHINE = hypothesis.settings(
    deadline=None, print_blob=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.register_profile("random", ANY_MACHINE)
hypothesis.settings.register_profile("same", ANY_MACHINE, derandomize=True, database=None)
hypothesis.settings.load_profile("same")

# A shell that starts the tests in the background lets them ignore this, and every program that they start inherits it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

USES_KAFKA = {"kafka", "own", "secured"}
"""Fixtures that start a broker."""


def pytest_itemcollected(item: pytest.Item) -> None:
    if USES_KAFKA & set(getattr(item, "fixturenames", ())):
        item.add_marker("kafka")


LONGEST = (
    "test_simulation_runs.py",
    "test_mutations.py",
    "test_harsh_flow.py",
    "test_dashboard.py",
    "test_kill_files.py",
    "test_kill_kafka.py",
    "test_typing.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A file is one worker's: begun last, the longest would be waited for by all the others."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    with pytest.MonkeyPatch.context() as patch:
        if isinstance(item, pytest.Function):
            target, name = _coroutine_of(item)
            if inspect.iscoroutinefunction(test := getattr(target, name)):
                patch.setattr(target, name, leaving_no_task(test))
        try:
            return (yield)
        except BaseException:
            item.stash[FAILED] = True
            raise


def _coroutine_of(item: pytest.Function) -> tuple[object, str]:
    """Where the test itself hangs: hypothesis puts a plain function in front of it."""
    hypothesis = getattr(item.obj, "hypothesis", None)
    return (item, "obj") if hypothesis is None else (hypothesis, "inner_test")


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Set up first and torn down last, so after the test's event loop and its executor have been closed."""
    before = held()
    yield
    if FAILED in request.node.stash:
        return  # its traceback keeps alive what it held
    if left := left_since(before):
        pytest.fail("left behind: " + "; ".join(left), pytrace=False)


@pytest.fixture(scope="session")
def kafka() -> Iterator[KafkaBroker]:
    """The session's broker, started by the first test that asks; KAFKA_BOOTSTRAP names another one.

    Tests that stop or kill a broker start their own: `KafkaBroker(own=True)`.
    """
    with session_broker() as broker:
        yield broker


@pytest.fixture
def topics(kafka: KafkaBroker) -> Topics:
    return Topics(kafka)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    with S3Server() as server:
        yield server


@pytest.fixture
def bucket(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Bucket:
    """An empty one, which the environment says how to reach."""
    bucket = s3_server.bucket(f"bucket-{uuid.uuid4().hex[:12]}")
    for name, value in bucket.environ().items():
        monkeypatch.setenv(name, value)
    return bucket


@pytest.fixture
def registry_folder(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the jobs of this test, and of the processes that it starts, are found; by nobody else, and nobody else's.
    A short path: a socket's has little room."""
    tmp_path_factory.getbasetemp()  # pytest's own place is settled by the first who asks
    with tempfile.TemporaryDirectory(prefix="sa-") as folder:
        for variable, name in (("XDG_RUNTIME_DIR", "run"), ("TMPDIR", "tmp")):
            (Path(folder) / name).mkdir(mode=0o700)
            monkeypatch.setenv(variable, f"{folder}/{name}")
        monkeypatch.setattr(tempfile, "tempdir", f"{folder}/tmp")
        yield Path(folder) / "run" / "streamactors"
