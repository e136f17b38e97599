"""A flow's own code on its way to other processes: functions and classes, by name where they have one.

What a module defines goes by its name; what a script defines, by its name in the script (`main_script`); lambdas and
functions within functions go as they are, with what they refer to. Errors go as data (`cluster.failures`).
"""

import dataclasses
import functools
import inspect
import pickle
import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FunctionType, MethodType
from typing import Any, Final, NotRequired, TypedDict, get_origin, is_typeddict

import msgspec

from streamactors.cluster import failures
from streamactors.deploy.main_script import find_in_script, reference_to
from streamactors.errors import ClusterUnfit, InvalidDataflow
from streamactors.graph.parallelism import Parallelism
from streamactors.runtime.job import JobSpec

_DEEPEST: Final = 12

_CODECS: Final[Mapping[type, Sequence[str]]] = {
    msgspec.json.Decoder: ("type", "strict", "dec_hook", "float_hook"),
    msgspec.json.Encoder: ("enc_hook", "decimal_format", "uuid_format", "order"),
    msgspec.msgpack.Decoder: ("type", "strict", "dec_hook", "ext_hook"),
    msgspec.msgpack.Encoder: ("enc_hook", "decimal_format", "uuid_format", "order"),
}
"""What msgspec's own are made of: they can't be pickled, and formats hold them."""

Dumps = Callable[[Any], bytes]


def reduced(thing: Any) -> Any:
    """How `thing` goes, as `__reduce__` has it; NotImplemented for what needs nothing of its own."""
    if isinstance(thing, type | FunctionType):
        if (found := reference_to(thing)) is not None:
            return find_in_script, found
        if isinstance(thing, type) and issubclass(thing, msgspec.Struct) and not _is_importable(thing):
            raise InvalidDataflow(
                f"the Struct {thing.__qualname__} can't be sent to other processes, since no module has it by name: "
                "define it at the top of a module, or of the script"
            )
        if isinstance(thing, type) and is_typeddict(thing) and not _is_importable(thing):
            return _typed_dict, (thing.__name__, thing.__qualname__, thing.__module__, _items_of(thing))
    if (settings := _CODECS.get(type(thing))) is not None:
        return _codec, (type(thing), {name: getattr(thing, name) for name in settings})
    if isinstance(thing, BaseException):
        return failures.received, (failures.to_send(thing),)
    return NotImplemented


def not_here(error: Exception, who: str) -> ClusterUnfit:
    """Of what goes by name, and was not found by it. `who`: which process has looked for it; may be empty."""
    return ClusterUnfit(
        f"the flow's own code can't be loaded{who and f' by {who}'} on node {platform.node()!r} ({error}): install it "
        "there, or hand it over with the job, such as by `ray job submit --working-dir .`"
    )


def _items_of(typed_dict: Any) -> Mapping[str, Any]:
    """Their types, those of its bases among them: whether an item is required depends on where it was declared."""
    items: Mapping[str, Any] = typed_dict.__annotations__
    optional = typed_dict.__optional_keys__
    return {
        name: NotRequired[type] if name in optional and get_origin(type) is not NotRequired else type
        for name, type in items.items()
    }


def _typed_dict(name: str, qualname: str, module: str, items: Mapping[str, Any]) -> Any:
    """A TypedDict says that its base is dict, from which it can't be made again."""
    make: Any = TypedDict  # for items that are known when it runs
    made = make(name, dict(items))
    made.__qualname__, made.__module__ = qualname, module
    return made


def _codec(cls: Callable[..., Any], settings: Mapping[str, Any]) -> Any:
    return cls(**settings)


def _is_importable(thing: type) -> bool:
    found: Any = None if thing.__module__ == "__main__" else sys.modules.get(thing.__module__)
    for name in thing.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is thing


def refuse_unsendable_job(spec: JobSpec, dumps: Dumps) -> None:
    """Raises InvalidDataflow, naming the step or resource."""
    for name, resource in spec.resources.items():
        refuse_unsendable(f"resources[{name!r}]", resource, dumps)
    for vertex in spec.plan(spec.config.max_parallelism, Parallelism(spec.config.parallelism)).vertices:
        for node in vertex.nodes:
            name = "" if node.name == node.uid else f" ({node.name})"
            refuse_unsendable(f"step {node.uid!r}{name}", node.spec, dumps)
    refuse_unsendable("the flow", spec, dumps)


def refuse_unsendable(what: str, thing: Any, dumps: Dumps) -> None:
    """Raises InvalidDataflow, naming what of `thing` it is, if it can't be sent to other processes."""
    error = _failure(thing, dumps)
    if error is None:
        return
    names, culprit = _culprit(thing, dumps)
    if isinstance(error, InvalidDataflow):
        raise InvalidDataflow(f"{what}: {error}")
    where = f"{' → '.join(names)}, " if names else ""
    advice = "" if _refuses_by_itself(culprit) else "; make it where it is used, in open()"
    raise InvalidDataflow(
        f"{what} can't be sent to other processes: it holds {where}a {type(culprit).__qualname__} "
        f"({_failure(culprit, dumps) or error}){advice}"
    ) from error


def _refuses_by_itself(thing: Any) -> bool:
    """Whether its own class does so, and says why: not because of something in it."""
    if not isinstance(getattr(type(thing), "__reduce__", None), FunctionType):
        return False
    try:
        thing.__reduce_ex__(pickle.DEFAULT_PROTOCOL)
    except Exception:  # whatever its class raises
        return True
    return False


def _failure(thing: Any, dumps: Dumps) -> Exception | None:
    try:
        dumps(thing)
    except Exception as error:  # whatever the classes in it raise
        return error
    return None


def _culprit(thing: Any, dumps: Dumps) -> tuple[list[str], Any]:
    """The innermost part that can't go, and the names that lead to it."""
    names: list[str] = []
    for _ in range(_DEEPEST):
        if _refuses_by_itself(thing):
            break
        found = next(((name, part) for name, part in _parts(thing) if _failure(part, dumps) is not None), None)
        if found is None:
            break
        names.append(found[0])
        thing = found[1]
    return names, thing


def _parts(thing: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(thing, FunctionType):
        variables = inspect.getclosurevars(thing)
        for each in (variables.nonlocals, variables.globals):
            yield from ((f"the variable {name!r}", value) for name, value in each.items())
    elif isinstance(thing, MethodType):
        yield f"the method {thing.__name__!r}", thing.__self__
    elif isinstance(thing, functools.partial):
        yield from (
            (f"the function {_name(part)}", part) for part in (thing.func, *thing.args, *thing.keywords.values())
        )
    elif isinstance(thing, Mapping):
        yield from ((repr(key), value) for key, value in thing.items())
    elif isinstance(thing, list | tuple | set | frozenset):
        yield from ((_name(value), value) for value in thing)
    else:
        yield from _fields(thing)


def _name(thing: Any) -> str:
    return str(getattr(thing, "__qualname__", type(thing).__qualname__))


def _fields(thing: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(thing, type):
        methods = {name: value for name, value in vars(thing).items() if isinstance(value, FunctionType)}
        yield from ((f"{thing.__qualname__}.{name}", value) for name, value in methods.items())
    elif dataclasses.is_dataclass(thing):
        yield from ((f"{field.name!r}", getattr(thing, field.name)) for field in dataclasses.fields(thing))
    else:
        yield from ((repr(name), value) for name, value in getattr(thing, "__dict__", {}).items())
