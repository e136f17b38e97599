"""Aggregates: many values folded into one accumulator, from which the result is read. For `AggregatingState`, and for
windows.

Invariant: `merge` of the accumulators of any two parts of some values, in their order, is an accumulator of them all.
(Sums of floats are plain addition, so they may differ in the last digits.)

`None` and NaN stand for "no value" in `Min`, `Max`, `Distinct` and as the rank in `TopN`: they are passed over.
"""

import inspect
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any, ClassVar, Final, Generic, TypedDict, TypeVar, cast, overload

from streamactors.errors import InvalidDataflow
from streamactors.state.serialisation.tagged import TaggedCodec

T = TypeVar("T")
A = TypeVar("A")
R = TypeVar("R")


class Aggregate(ABC, Generic[T, A, R]):
    """How values become an accumulator, and that a result. One instance serves all keys and subtasks, so it keeps
    nothing itself. Plain functions only.
    """

    accumulator: Any
    """The accumulator's type, for its schema: what a state may be declared with."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "add" in vars(cls) and "add_many" not in vars(cls):
            cls.add_many = Aggregate.add_many  # type: ignore[method-assign]  # not one that goes with another `add`
            cls._in_place = vars(cls).get("_in_place", True)
        if {"add", "add_many", "merge"} & vars(cls).keys():
            cls._even = vars(cls).get("_even", False)

    @abstractmethod
    def create(self) -> A:
        """The accumulator of no values."""

    @abstractmethod
    def add(self, accumulator: A, value: T) -> A:
        """May change the accumulator in place, and return it."""

    def add_many(self, accumulator: A, values: Sequence[T]) -> A:
        """All of them, in their order: what `add` of one after the other gives, only faster where it is overridden."""
        add = self.add
        for value in values:
            accumulator = add(accumulator, value)
        return accumulator

    @abstractmethod
    def merge(self, left: A, right: A) -> A:
        """`left` is of the earlier values. May change both."""

    @abstractmethod
    def result(self, accumulator: A) -> R:
        """Leaves the accumulator as it is, and gives nothing away by which it could be changed."""

    _in_place: bool = True
    """Whether `add` may change the accumulator that it gets."""
    _even: bool = False
    """Whether a value that can be added to the accumulator of no values can be added to any other, and any two can be
    merged."""

    def _signature(self) -> Any:
        """What else has to agree for an accumulator to be read by another aggregate; None: nothing."""
        return None


def changes_in_place(aggregate: Aggregate[Any, Any, Any]) -> bool:
    """Whether its `add` may change the accumulator that it gets."""
    return aggregate._in_place


def takes_evenly(aggregate: Aggregate[Any, Any, Any]) -> bool:
    """Whether its accumulators all take the same values, and merge with each other, whatever is in them."""
    return aggregate._even


def signature_of(aggregate: Aggregate[Any, Any, Any]) -> Any:
    """For the schema: an Avg can't go on with what a TopN has stored, even if the types agree. None for users' own,
    which may change their names."""
    return aggregate._signature()


class _BuiltIn(Aggregate[T, A, R]):
    def _signature(self) -> Any:
        return type(self).__name__


# ------------------------------------------------------------------------------------------------------- numbers
class Count(_BuiltIn[Any, int, int]):
    """How many values; None and NaN count."""

    _in_place = False
    _even = True
    accumulator = int

    def create(self) -> int:
        return 0

    def add(self, accumulator: int, value: Any) -> int:
        return accumulator + 1

    def add_many(self, accumulator: int, values: Sequence[Any]) -> int:
        return accumulator + len(values)

    def merge(self, left: int, right: int) -> int:
        return left + right

    def result(self, accumulator: int) -> int:
        return accumulator


def _number(found: Any) -> float:
    """As a float that can be stored, and whose sums keep their precision: numpy's own are neither."""
    if type(found) is float or type(found) is int:
        return found
    if isinstance(found, Real):
        return float(found)
    raise TypeError(f"expected a number, found {found!r}")


class Sum(_BuiltIn[T, float, float]):
    """The sum of `fn(value)`, by plain addition of floats; 0.0 of nothing. NaN makes it NaN, None is an error."""

    _in_place = False
    _even = True
    accumulator = float

    def __init__(self, fn: Callable[[T], float]) -> None:
        self._fn = fn

    def create(self) -> float:
        return 0.0

    def add(self, accumulator: float, value: T) -> float:
        return accumulator + _number(self._fn(value))

    def add_many(self, accumulator: float, values: Sequence[T]) -> float:
        fn = self._fn
        for value in values:  # not sum(), which newer versions of Python round otherwise
            found = fn(value)
            accumulator += found if type(found) is int or type(found) is float else _number(found)
        return accumulator

    def merge(self, left: float, right: float) -> float:
        return left + right

    def result(self, accumulator: float) -> float:
        return accumulator


class Avg(_BuiltIn[T, tuple[float, int], float]):
    """The mean of `fn(value)`, by plain addition of floats; NaN of nothing. NaN makes it NaN, None is an error."""

    _in_place = False
    _even = True
    accumulator = tuple[float, int]

    def __init__(self, fn: Callable[[T], float]) -> None:
        self._fn = fn

    def create(self) -> tuple[float, int]:
        return 0.0, 0

    def add(self, accumulator: tuple[float, int], value: T) -> tuple[float, int]:
        total, count = accumulator
        return total + _number(self._fn(value)), count + 1

    def add_many(self, accumulator: tuple[float, int], values: Sequence[T]) -> tuple[float, int]:
        total, count = accumulator
        fn = self._fn
        for value in values:
            total += _number(fn(value))
        return total, count + len(values)

    def merge(self, left: tuple[float, int], right: tuple[float, int]) -> tuple[float, int]:
        return left[0] + right[0], left[1] + right[1]

    def result(self, accumulator: tuple[float, int]) -> float:
        total, count = accumulator
        return total / count if count else float("nan")


# ------------------------------------------------------------------------------------------ values of undeclared types
class _Storable:
    """Refuses a class that could not be stored at its first value, rather than at the next checkpoint."""

    _codec: ClassVar = TaggedCodec()

    def __init__(self) -> None:
        self._proven: set[type] = set()

    def check(self, value: T) -> T:
        """The value. Raises UnserialisableValue."""
        if type(value) not in self._proven:
            self._codec.encode(value)
            self._proven.add(type(value))
        return value


def _is_nothing(value: Any) -> bool:
    """None or NaN, whose comparisons tell nothing."""
    if value is None:
        return True
    try:
        return bool(value != value)  # NaN, of whatever numeric type
    except ValueError:  # a numpy array, which is neither
        return False


class _Extreme(_BuiltIn[T, Any, R]):
    accumulator = Any
    _better: ClassVar[Callable[[Any, Any], bool]]

    def __init__(self, fn: Callable[[T], R]) -> None:
        self._fn = fn
        self._storable = _Storable()

    def create(self) -> Any:
        return None

    def add(self, accumulator: Any, value: T) -> Any:
        found = self._fn(value)
        if _is_nothing(found):
            return accumulator
        return self._storable.check(found) if accumulator is None else self._first(accumulator, found)

    def merge(self, left: Any, right: Any) -> Any:
        if left is None or right is None:
            return right if left is None else left
        return self._first(left, right)

    def _first(self, accumulator: Any, found: Any) -> Any:
        """Of equal ones, the one that came first."""
        return self._storable.check(found) if type(self)._better(found, accumulator) else accumulator

    def result(self, accumulator: Any) -> R:
        return cast(R, accumulator)


class Min(_Extreme[T, R]):
    """The smallest `fn(value)`; None of nothing. Of equal ones, the first."""

    _better = operator.lt


class Max(_Extreme[T, R]):
    """The largest `fn(value)`; None of nothing. Of equal ones, the first."""

    _better = operator.gt


class Distinct(_BuiltIn[T, set[Any], int]):
    """How many different `fn(value)`, exactly: each of them is kept. 1, True and 1.0 are equal, as in a set."""

    _even = True
    accumulator = set[Any]

    def __init__(self, fn: Callable[[T], Any]) -> None:
        self._fn = fn
        self._storable = _Storable()

    def create(self) -> set[Any]:
        return set()

    def add(self, accumulator: set[Any], value: T) -> set[Any]:
        found = self._fn(value)
        if not _is_nothing(found):
            accumulator.add(self._storable.check(found))
        return accumulator

    def merge(self, left: set[Any], right: set[Any]) -> set[Any]:
        return left | right

    def result(self, accumulator: set[Any]) -> int:
        return len(accumulator)


class TopN(_BuiltIn[T, list[T], list[T]]):
    """The `n` values with the largest `fn(value)`, the largest first; of equal ones, those that came first."""

    accumulator = list[Any]

    def __init__(self, n: int, fn: Callable[[T], Any]) -> None:
        if type(n) is not int or n < 1:
            raise InvalidDataflow(f"TopN({n!r}, …): give a whole number from 1 up")
        self._n = n
        self._fn = fn
        self._storable = _Storable()

    def create(self) -> list[T]:
        return []

    def add(self, accumulator: list[T], value: T) -> list[T]:
        fn, rank = self._fn, self._fn(value)
        place = len(accumulator)
        if _is_nothing(rank):
            return accumulator
        while place and fn(accumulator[place - 1]) < rank:
            place -= 1
        if place < self._n:
            accumulator.insert(place, self._storable.check(value))
            del accumulator[self._n :]
        return accumulator

    def merge(self, left: list[T], right: list[T]) -> list[T]:
        return sorted([*left, *right], key=self._fn, reverse=True)[: self._n]  # stable, also in reverse

    def result(self, accumulator: list[T]) -> list[T]:
        return accumulator.copy()


class Collect(_BuiltIn[T, list[T], list[T]]):
    """All values, in the order in which they came."""

    _even = True
    accumulator = list[Any]

    def __init__(self) -> None:
        self._storable = _Storable()

    def create(self) -> list[T]:
        return []

    def add(self, accumulator: list[T], value: T) -> list[T]:
        accumulator.append(self._storable.check(value))
        return accumulator

    def merge(self, left: list[T], right: list[T]) -> list[T]:
        return [*left, *right]

    def result(self, accumulator: list[T]) -> list[T]:
        return accumulator.copy()


# ----------------------------------------------------------------------------------------------------- several at once
_TO_DICT: Final[Callable[..., Any]] = dict
_typed_dict: Final[Any] = TypedDict  # for fields that are known when it runs


class Aggregates(_BuiltIn[T, Any, R]):
    """Several at once: a dict by name, or an instance of the class given first.

    Stored by name: one that is added later is refused on restore, since it would not have seen the values before.
    """

    @overload
    def __init__(self: "Aggregates[T, dict[str, Any]]", /, **aggregates: Aggregate[T, Any, Any]) -> None: ...
    @overload
    def __init__(self, into: Callable[..., R], /, **aggregates: Aggregate[T, Any, Any]) -> None: ...
    def __init__(self, into: Callable[..., Any] = _TO_DICT, /, **aggregates: Aggregate[T, Any, Any]) -> None:
        if not aggregates:
            raise InvalidDataflow("Aggregates(): name at least one, as in Aggregates(count=Count())")
        for name, aggregate in aggregates.items():
            refuse_no_aggregate(aggregate, f"Aggregates({name}=…)")
        self._into = into
        self._parts = aggregates
        self._adders = [(name, aggregate.add_many) for name, aggregate in aggregates.items()]
        self._in_place = any(map(changes_in_place, aggregates.values()))
        self._even = all(map(takes_evenly, aggregates.values()))
        fields = {name: accumulator_type(aggregate) for name, aggregate in aggregates.items()}
        self.accumulator = _typed_dict("Aggregates", fields)

    def create(self) -> Any:
        return {name: aggregate.create() for name, aggregate in self._parts.items()}

    def add(self, accumulator: Any, value: T) -> Any:
        # Made anew: if one of them fails, and the record becomes a dead letter, none has counted it.
        return {name: aggregate.add(accumulator[name], value) for name, aggregate in self._parts.items()}

    def add_many(self, accumulator: Any, values: Sequence[T]) -> Any:
        return {name: add_many(accumulator[name], values) for name, add_many in self._adders}

    def merge(self, left: Any, right: Any) -> Any:
        return {name: aggregate.merge(left[name], right[name]) for name, aggregate in self._parts.items()}

    def result(self, accumulator: Any) -> R:
        return cast(R, self._into(**{name: part.result(accumulator[name]) for name, part in self._parts.items()}))

    def _signature(self) -> Any:
        return {name: signature_of(aggregate) for name, aggregate in self._parts.items()}


def accumulator_type(aggregate: Aggregate[Any, Any, Any]) -> Any:
    """Raises InvalidDataflow for an aggregate that does not tell."""
    found = getattr(aggregate, "accumulator", None)
    if found is None:
        raise InvalidDataflow(
            f"{type(aggregate).__name__}.accumulator: give its type, as in `accumulator = tuple[float, int]`"
        )
    return found


def refuse_no_aggregate(aggregate: object, where: str) -> None:
    """Raises InvalidDataflow for what is no instance of an Aggregate, such as its class, or has an `async def`."""
    if isinstance(aggregate, Aggregate):
        for name in ("create", "add", "add_many", "merge", "result"):
            if inspect.iscoroutinefunction(getattr(aggregate, name)):
                raise InvalidDataflow(f"{where}: make {type(aggregate).__name__}.{name} a plain function, not async")
        return
    if isinstance(aggregate, type) and issubclass(aggregate, Aggregate):
        raise InvalidDataflow(f"{where}: {aggregate.__name__} is a class; give an instance, {aggregate.__name__}(…)")
    raise InvalidDataflow(f"{where}: expected an Aggregate such as Count(), found {aggregate!r}")


def signature_problems(old: Any, new: Any) -> list[str]:
    """Why what one aggregate has stored is not for the other; empty if it is, or if nobody can tell."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            f"aggregate {name!r}: {problem}"
            for name in old.keys() & new.keys()
            for problem in signature_problems(old[name], new[name])
        ]
    if old is None or new is None or old == new:
        return []
    return [f"stored by {_shown(old)}, now {_shown(new)}"]


def _shown(signature: Any) -> str:
    return "Aggregates" if isinstance(signature, dict) else str(signature)
