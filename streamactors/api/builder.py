"""The steps of a flow while it is being built: names them, checks them, freezes them into a `LogicalGraph`."""

import functools
import re
from collections.abc import Callable
from typing import Any, Final, TypeVar, cast

from streamactors.errors import InvalidDataflow
from streamactors.graph.logical import Edge, LogicalGraph, Node, SourceSpec
from streamactors.operators.base import OperatorSpec

F = TypeVar("F", bound=Callable[..., Any])

_SAFE: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_AUTOMATIC: Final = re.compile(r"(map|filter|flat_map|print|with_timestamps)-[0-9]+")


class GraphBuilder:
    """Nodes in the order in which they were added; a node's id is its index."""

    def __init__(self, name: str) -> None:
        if not _is_safe(name):
            raise InvalidDataflow(f"a dataflow can't be named {name!r}: {_rule('the name of its folder')}")
        self.name = name
        self._nodes: list[Node] = []
        self._by_uid: dict[str, Node] = {}

    def add(
        self,
        spec: SourceSpec | OperatorSpec,
        inputs: tuple[Edge, ...] = (),
        *,
        uid: str | None = None,
        name: str | None = None,
        parallelism: int | None = None,
        chain: bool = True,
    ) -> int:
        """Returns the node's id. A step without `uid` is named by its place. Nothing is added where it raises."""
        place = len(self._nodes)
        if uid is not None:
            self._check_uid(uid)
        named = uid if uid is not None else f"{spec.kind}-{place}"
        _check_options(named, name, parallelism)
        if isinstance(spec, OperatorSpec):
            spec.validate(named)
        node = Node(place, named, name or named, spec, inputs, parallelism, chain, uid is not None)
        self._nodes.append(node)
        self._by_uid[named] = node
        return place

    def graph(self) -> LogicalGraph:
        """What has been added so far."""
        return LogicalGraph(self.name, tuple(self._nodes))

    def copy(self) -> "GraphBuilder":
        other = GraphBuilder(self.name)
        other._nodes, other._by_uid = list(self._nodes), dict(self._by_uid)
        return other

    def describe(self, node: int) -> str:
        return self._nodes[node].uid

    def _check_uid(self, uid: str) -> None:
        if not _is_safe(uid):
            raise InvalidDataflow(f"uid {uid!r} can't be used: {_rule('part of file names')}")
        if _AUTOMATIC.fullmatch(uid):
            raise InvalidDataflow(f"uid {uid!r} is of the form given to steps that have none: choose another")
        if uid in self._by_uid:
            raise InvalidDataflow(
                f"uid {uid!r} is already that of a {self._by_uid[uid].kind} step of dataflow {self.name!r}, and a uid "
                "is unique in its flow. In a notebook, running a cell again adds its steps again: make a new Dataflow "
                "in that cell"
            )


def _is_safe(name: object) -> bool:
    return isinstance(name, str) and _SAFE.fullmatch(name) is not None


def _rule(use: str) -> str:
    return (
        f"it becomes {use}, so use 1 to 128 of the letters A-Z and a-z, digits, '_', '-' and '.', "
        "beginning with a letter, a digit or '_'"
    )


def _check_options(uid: str, name: object, parallelism: object) -> None:
    if name is not None and not (isinstance(name, str) and name and name.isprintable()):
        raise InvalidDataflow(f"step {uid!r}: name={name!r} is not a line of text")
    whole = isinstance(parallelism, int) and not isinstance(parallelism, bool)
    if parallelism is not None and not (whole and cast(int, parallelism) >= 1):
        raise InvalidDataflow(f"step {uid!r}: parallelism={parallelism!r} is not a whole number from 1 up")


def needs_uid(method: F) -> F:
    """Says in plain words that the first argument, the uid, was left out; Python's own words name the last one."""

    @functools.wraps(method)
    def checked(self: Any, *args: Any, **options: Any) -> Any:
        uid = args[0] if args else options.get("uid")
        if not isinstance(uid, str):
            raise InvalidDataflow(
                f'{method.__name__} needs a uid first, as in .{method.__name__}("my-uid", …). State is found by it '
                "after a restart: it is unique in the flow, and stays the same over versions of the program"
            )
        return method(self, *args, **options)

    return cast(F, checked)
