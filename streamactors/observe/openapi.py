"""The OpenAPI document of the control API, made of the routes' own table and the documents' own types."""

import re
from typing import Any, Final

import msgspec

from streamactors.observe import model
from streamactors.observe.control import JOB, NUMBERS, OPERATIONS, Operation

PREFIX: Final = "/api"
"""In front of every path, where the API is reached over the network."""
_REF: Final = "#/components/schemas/{name}"


def document(version: str) -> dict[str, Any]:
    """`version`: of the package."""
    types = {each.gives for each in OPERATIONS} | {each.takes for each in OPERATIONS if each.act}
    types |= {model.Jobs, model.Tick, model.Error}
    _, schemas = msgspec.json.schema_components(sorted(types, key=lambda type: type.__name__), ref_template=_REF)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "streamactors",
            "version": version,
            "description": "How jobs do, and their checkpoints, savepoints and end. Changes need a bearer token.",
        },
        "paths": _paths(),
        "components": {
            "schemas": schemas,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _paths() -> dict[str, Any]:
    paths: dict[str, Any] = {
        f"{PREFIX}/v1/jobs": {"get": _operation("listJobs", "The jobs that run", _json("Jobs"), "/v1/jobs")},
        f"{PREFIX}{JOB}/events": {
            "get": _operation(
                "streamEvents",
                "How a job does, twice a second at most: events called tick, each with the document Tick",
                {"text/event-stream": {"schema": {"type": "string"}}},
                f"{JOB}/events",
            )
        },
    }
    for each in OPERATIONS:
        paths.setdefault(PREFIX + each.path, {})[each.method.lower()] = _described(each)
    return paths


def _described(operation: Operation) -> dict[str, Any]:
    verb = "get" if operation.act is None else "post"
    named = verb + "".join(part.title() for part in re.findall(r"\w+", operation.path) if part != "v1")
    described = _operation(named, operation.summary, _json(operation.gives.__name__), operation.path)
    if operation.act is not None:
        required = operation.takes is model.SavepointRequest
        described["requestBody"] = {"required": required, "content": _json(operation.takes.__name__)}
        described["security"] = [{"token": []}]
    return described


def _operation(id: str, summary: str, content: dict[str, Any], path: str) -> dict[str, Any]:
    return {
        "operationId": id,
        "summary": summary,
        "parameters": [_parameter(name) for name in re.findall(r"{(\w+)}", path)],
        "responses": {
            "200": {"description": "Done", "content": content},
            "default": {"description": "Refused", "content": _json("Error")},
        },
    }


def _parameter(name: str) -> dict[str, Any]:
    schema = {"type": "integer", "minimum": 0} if name in NUMBERS else {"type": "string", "minLength": 1}
    return {"name": name, "in": "path", "required": True, "schema": schema}


def _json(name: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": _REF.format(name=name)}}}
