"""The control API of one job, from another process: blocking, since whoever asks has nothing else to do."""

import http.client
import socket
from collections.abc import Mapping
from typing import Any, Final, TypeVar
from urllib.parse import quote

import msgspec

from streamactors.deploy.detached import Answer
from streamactors.errors import ConnectionLost, JobNotRunning, RequestFailed
from streamactors.observe import model
from streamactors.observe.clusters import DetachedJob, last_status
from streamactors.observe.registry import RunningJob

T = TypeVar("T")

PATIENCE: Final = 5.0
"""Seconds that a job may take to begin with an answer. What it is then busy with may take as long as it likes."""
RESTARTED_WITHIN: Final = 60.0
"""The same, of a job whose coordinator the cluster may just be starting again."""
LOST: Final = "coordinator-lost"
SILENT: Final = "unreachable"
GONE: Final = "job-gone"
"""See `RequestFailed.is_gone`."""


Job = RunningJob | DetachedJob


class JobClient:
    """Every call raises RequestFailed."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._path = f"/v1/jobs/{quote(job.entry.flow, safe='')}"

    def summary(self) -> model.JobSummary:
        jobs = self._ask("GET", "/v1/jobs", model.Jobs, timeout=PATIENCE).jobs
        return next(job for job in jobs if job.name == self._job.entry.flow)

    def status(self) -> model.JobStatus:
        return self._ask("GET", self._path, model.JobStatus, timeout=PATIENCE)

    def checkpoints(self) -> model.Checkpoints:
        return self._ask("GET", f"{self._path}/checkpoints", model.Checkpoints, timeout=PATIENCE)

    def checkpoint(self) -> model.Checkpoint:
        return self._ask("POST", f"{self._path}/checkpoints", model.Checkpoint, {})

    def savepoint(self, uri: str) -> model.Checkpoint:
        return self._ask("POST", f"{self._path}/savepoints", model.Checkpoint, {"uri": uri})

    def stop(self, savepoint: str | None, *, drain: bool) -> model.Ended:
        return self._ended_by("stop", {"savepoint": savepoint, "drain": drain})

    def rescale(self, parallelism: int | None, steps: Mapping[str, int]) -> model.Rescaled:
        return self._ask("POST", f"{self._path}/rescale", model.Rescaled, {"parallelism": parallelism, "steps": steps})

    def cancel(self) -> model.Ended:
        return self._ended_by("cancel", {})

    def _ended_by(self, operation: str, body: Mapping[str, Any]) -> model.Ended:
        """Where the answer was lost with the job's process, what was stored of its end."""
        try:
            return self._ask("POST", f"{self._path}/{operation}", model.Ended, body)
        except RequestFailed as error:
            if not error.is_gone or not isinstance(self._job, DetachedJob):
                raise
            ending = self._job.cluster.ending(self._job.entry.flow)
            if ending is None or (last := last_status(ending)) is None:
                raise
            if ending.error is not None:
                raise RequestFailed("job-failed", ending.error) from None
            checkpoint = last.last_checkpoint
            if body.get("savepoint") is not None and (checkpoint is None or checkpoint.kind != "savepoint"):
                raise
            return model.Ended(name=last.name, status=last.status, checkpoint=checkpoint)

    def _ask(
        self,
        method: str,
        path: str,
        answer: type[T],
        body: Mapping[str, Any] | None = None,
        timeout: float | None = None,
    ) -> T:
        data = b"" if body is None else msgspec.json.encode(body)
        try:
            status, told = _exchanged(self._job, method, path, data, timeout)
        except (TimeoutError, BlockingIOError):  # the latter: as many others wait for it as the socket lets
            raise RequestFailed(SILENT, f"{self._job} does not answer: {_HELD_UP}") from None
        except ConnectionLost as error:
            raise RequestFailed(LOST, str(error)) from None
        except (OSError, http.client.HTTPException, JobNotRunning) as error:
            raise RequestFailed(GONE, f"{self._job} ended before it answered ({type(error).__name__})") from None
        return _decoded(status, told, answer)


_HELD_UP: Final = "its process is suspended, or something in it blocks the event loop"


def _exchanged(job: Job, method: str, path: str, body: bytes, timeout: float | None) -> Answer:
    if isinstance(job, RunningJob):
        return _over_socket(job, method, path, body, timeout)
    return job.cluster.ask(job.entry.flow, method, path, body, None if timeout is None else RESTARTED_WITHIN)


def _over_socket(job: RunningJob, method: str, path: str, body: bytes, timeout: float | None) -> Answer:
    connection = _Connection(job.socket, timeout)
    try:
        connection.request(method, path, body or None, {"content-type": "application/json", "connection": "close"})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def _decoded(status: int, data: bytes, answer: type[T]) -> T:
    try:
        if status == http.HTTPStatus.OK:
            return msgspec.json.decode(data, type=answer)
        problem = msgspec.json.decode(data, type=model.Error).error
    except msgspec.DecodeError as error:
        raise RequestFailed(
            "unknown-answer", f"an answer (status {status}) that this version can't read: {error}"
        ) from None
    raise RequestFailed(problem.code, problem.message)


class _Connection(http.client.HTTPConnection):
    """`timeout`: seconds for the answer, None for any time; the connection itself must not take long."""

    def __init__(self, path: str, timeout: float | None) -> None:
        super().__init__("localhost")
        self._path = path
        self._answers_within = timeout

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(PATIENCE)
        self.sock.connect(self._path)
        self.sock.settimeout(self._answers_within)
