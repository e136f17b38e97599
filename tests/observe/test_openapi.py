"""The description of the API: valid, and kept by what answers."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck
from openapi_spec_validator import validate
from schemathesis import GenerationMode

import streamactors as sa
from streamactors.clock import SYSTEM
from streamactors.observe import openapi
from streamactors.observe.control import JOB, OPERATIONS, SteeredJob, control_app
from streamactors.observe.steering import entry_of
from streamactors.service import Served
from tests.observe.jobs import config, flow_of, running, taken
from tests.runtime.feeds import Feed

pytestmark = pytest.mark.slow

ENDING = ("/stop", "/cancel")
EXAMPLES = 4
KNOWN = {"name": "sums", "vertex": "sum", "index": 0, "id": 1}


def test_the_document_is_valid() -> None:
    validate(openapi.document("1.2.3"))


async def test_every_route_is_described(tmp_path: Path) -> None:
    async with sa.start(flow_of(Feed()), config(tmp_path), on_exit="cancel") as job:
        app = control_app([SteeredJob(job, entry_of(job), SYSTEM)])
    routes = {route.path for route in app.routes if hasattr(route, "path")}
    described = {path.removeprefix(openapi.PREFIX) for path in openapi.document("1")["paths"]}
    plain = {path.replace(":path}", "}").replace(":int}", "}") for path in routes}
    assert plain == described == {"/v1/jobs", f"{JOB}/events"} | {each.path for each in OPERATIONS}


@pytest.mark.parametrize("end_first", [False, True])
async def test_no_request_meets_a_fault(tmp_path: Path, end_first: bool) -> None:
    """Whatever fits the description, and much that does not: no 5xx, and every answer is one that is described. A job
    that has ended answers as well."""
    feed = Feed()
    async with running(tmp_path, feed) as (job, api):
        feed.put(1, 2, 3)
        await taken(job, 3)
        await job.checkpoint()
        if end_first:
            await job.cancel()
        await asyncio.to_thread(ask_all, api.where, end_first)
        assert job.status == ("cancelled" if end_first else "running")


def ask_all(where: Served, ending: bool) -> None:
    """In a thread: it asks one request after another, and the job answers on the loop."""
    schema: Any = schemathesis.openapi.from_url(f"{where.url}/api/v1/openapi.json")
    for operation in operations(schema, ending):
        requests_of(operation, where)()


def operations(schema: Any, ending: bool) -> Iterator[Any]:
    for result in schema.get_all_operations():
        operation = result.ok()
        if operation.path.endswith("/events") or (operation.path.endswith(ENDING) and not ending):
            continue
        yield operation


def requests_of(operation: Any, where: Served) -> Callable[[], None]:
    headers = {"Authorization": f"Bearer {where.token}"}
    modes = [GenerationMode.POSITIVE, GenerationMode.NEGATIVE]
    strategy = hypothesis.strategies.one_of(*(operation.as_strategy(generation_mode=mode) for mode in modes))

    @hypothesis.settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
        phases=[hypothesis.Phase.generate],
    )
    @hypothesis.given(case=strategy, known=hypothesis.strategies.booleans())
    def asked(case: Any, known: bool) -> None:
        if known:
            case.path_parameters = {name: KNOWN[name] for name in case.path_parameters or {}}
        answer = case.call(headers=headers)
        assert answer.status_code < 500, answer.text
        case.validate_response(answer, checks=[described_status, described_body])

    return asked


def described_status(_ctx: Any, response: Any, _case: Any) -> None:
    assert response.headers["content-type"][0].startswith("application/json")


def described_body(_ctx: Any, response: Any, case: Any) -> None:
    case.operation.validate_response(response)
