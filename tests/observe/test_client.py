"""What a client says of a job that gives no answer, or one that makes no sense."""

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest

from streamactors.errors import RequestFailed
from streamactors.observe import client, registry
from streamactors.observe.client import JobClient
from streamactors.observe.registry import Entry, RunningJob

pytestmark = pytest.mark.usefixtures("registry_folder")
ENTRY = Entry(flow="orders", pid=11, started_ms=7)


@contextmanager
def listening() -> Iterator[tuple[RunningJob, socket.socket]]:
    with registry.place("0123456789") as place, place.listen() as listener:
        yield RunningJob(ENTRY, listener.getsockname()), listener


def failure(job: RunningJob) -> RequestFailed:
    with pytest.raises(RequestFailed) as failed:
        JobClient(job).status()
    return failed.value


def test_a_job_that_has_ended() -> None:
    with listening() as (job, _):
        pass
    error = failure(job)
    assert error.is_gone and "orders (pid 11) ended before it answered" in str(error)


def test_a_job_whose_loop_is_blocked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "PATIENCE", 0.05)
    with listening() as (job, _):
        error = failure(job)
    assert error.code == "unreachable" and not error.is_gone and "blocks the event loop" in str(error)


def test_a_job_for_which_as_many_wait_as_its_socket_lets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as whoever looks at a suspended job again and again."""
    monkeypatch.setattr(client, "PATIENCE", 0.05)
    with listening() as (job, listener), ExitStack() as stack:
        listener.listen(0)
        with suppress(BlockingIOError):
            while True:
                waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
                waiting.setblocking(False)
                waiting.connect(job.socket)
        error = failure(job)
    assert error.code == "unreachable" and not error.is_gone


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (b"", "job-gone"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{", "job-gone"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", "unknown-answer"),
        (b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 4\r\n\r\nbusy", "unknown-answer"),
    ],
)
def test_answers_without_sense(answer: bytes, code: str) -> None:
    def answer_once() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(answer)

    with listening() as (job, listener):
        answering = threading.Thread(target=answer_once)
        answering.start()
        assert failure(job).code == code
        answering.join()
