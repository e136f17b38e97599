"""The type of a stream's records, as far as annotations tell: what the serializer of a `reduce` needs.

Everything here answers `Any` where it can't tell; a wrong guess would be worse than none.
"""

import collections.abc
import functools
import inspect
import typing
from collections.abc import Callable, Iterable
from typing import Any

from streamactors.errors import InvalidDataflow
from streamactors.operators.base import KeyedOperator, Operator
from streamactors.operators.two_inputs import CoOperator, KeyedBroadcastOperator, KeyedCoOperator
from streamactors.operators.windows.base import WindowOperator
from streamactors.state.serialisation.serializers import serializer_for

_AWAITABLES = (collections.abc.Awaitable, collections.abc.Coroutine)
_SAY_NOTHING = (object, typing.Self, typing.Never, typing.NoReturn)


def mapped_type(fn: Callable[..., Any]) -> Any:
    """What `fn` returns, or what awaiting it gives."""
    fn = _unwrapped(fn)
    return _known(fn) if isinstance(fn, type) else _awaited(_returned(fn))


def flat_mapped_type(fn: Callable[..., Any]) -> Any:
    """The items of what `fn` returns."""
    return _item(mapped_type(fn))


def operator_type(factory: Callable[[], Any]) -> Any:
    """What the operators that `factory` makes emit."""
    factory = _unwrapped(factory)
    made = factory if isinstance(factory, type) else _returned(factory)
    if isinstance(made, type):
        for base in (Operator, KeyedOperator, CoOperator, KeyedCoOperator, KeyedBroadcastOperator, WindowOperator):
            if issubclass(made, base):
                return _known(_base_arguments(made, base)[-1])
    return Any


def common_type(element_types: Iterable[Any]) -> Any:
    """The one type of several streams."""
    first, *others = element_types
    return first if all(other == first for other in others) else Any


def stored_type(element_type: Any) -> Any:
    """As which type state can hold such records; as `Any`, each is stored as whatever class it has."""
    if inspect.isabstract(typing.get_origin(element_type) or element_type):
        return Any  # an annotation such as Sequence[int] or a base class: what comes is of another class
    try:
        serializer_for(element_type)
    except InvalidDataflow:
        return Any
    return element_type


def _unwrapped(fn: Any) -> Any:
    while isinstance(fn, functools.partial):
        fn = fn.func
    return fn


def _returned(fn: Any) -> Any:
    if not inspect.isroutine(fn):
        fn = getattr(fn, "__call__", fn)  # noqa: B004
    try:
        return typing.get_type_hints(fn).get("return", Any)
    except (NameError, TypeError, AttributeError, SyntaxError):
        return Any  # a name that exists for type checkers only, or nothing annotated at all


def _awaited(hint: Any) -> Any:
    if typing.get_origin(hint) in _AWAITABLES:
        return _known(typing.get_args(hint)[-1])
    return _known(hint)


def _item(hint: Any) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        return arguments[0] if len(arguments) == 2 and arguments[1] is Ellipsis else Any
    if isinstance(origin, type) and issubclass(origin, collections.abc.Iterable) and arguments:
        return _known(arguments[0])  # a dict gives its keys, a generator what it yields
    return Any


def _known(hint: Any) -> Any:
    """`hint` if it is complete."""
    if hint in _SAY_NOTHING or isinstance(hint, str | typing.ForwardRef | typing.TypeVar):
        return Any
    return Any if getattr(hint, "__parameters__", ()) else hint


def _base_arguments(cls: type, base: type) -> tuple[Any, ...]:
    """What `cls` fills the type parameters of its base class `base` with; TypeVars where it leaves them open."""
    if cls is base:
        return tuple(typing.cast(Any, base).__parameters__)
    for parent in cls.__dict__.get("__orig_bases__", cls.__bases__):
        origin = typing.get_origin(parent) or parent
        if isinstance(origin, type) and issubclass(origin, base):
            filled = dict(zip(getattr(origin, "__parameters__", ()), typing.get_args(parent), strict=False))
            return tuple(_filled(argument, filled) for argument in _base_arguments(origin, base))
    raise TypeError(f"{cls.__name__} does not derive from {base.__name__}")


def _filled(argument: Any, filled: dict[Any, Any]) -> Any:
    if isinstance(argument, typing.TypeVar):
        return filled.get(argument, argument)
    parameters = getattr(argument, "__parameters__", ())
    return argument[tuple(filled.get(parameter, parameter) for parameter in parameters)] if parameters else argument
