"""The step of a flow that an operator under test is: which inputs it has, and how they are partitioned."""

import datetime as dt
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from streamactors.api.dataflow import KeyedStream, Stream
from streamactors.elements import ErrorRoute, OutputTag
from streamactors.errors import InvalidConfig, InvalidDataflow
from streamactors.operators.async_io.keyed import AsyncKeyedOperator
from streamactors.operators.base import KeyedOperator, Lifecycle, Operator
from streamactors.operators.record_ids import uses_record_id
from streamactors.operators.two_inputs import CoOperator, KeyedBroadcastOperator, KeyedCoOperator
from streamactors.operators.windows.base import WindowOperator
from streamactors.state.descriptors import Declaration, declared_states
from streamactors.time.triggers import Trigger
from streamactors.time.windows import WindowAssigner

U = TypeVar("U")

AnyOperator = (
    Operator[Any, U]
    | KeyedOperator[Any, Any, U]
    | CoOperator[Any, Any, U]
    | KeyedCoOperator[Any, Any, Any, U]
    | KeyedBroadcastOperator[Any, Any, Any, U]
    | WindowOperator[Any, Any, U]
)
"""What can be put into an OperatorHarness."""
TWO_INPUTS = (CoOperator, KeyedCoOperator, KeyedBroadcastOperator)
KEYED = (KeyedOperator, KeyedCoOperator, KeyedBroadcastOperator, WindowOperator)


@dataclass(frozen=True)
class Windowing:
    """The arguments of `window(…)` beside the assigner."""

    trigger: Trigger | None = None
    allowed_lateness: dt.timedelta = dt.timedelta(0)
    late: OutputTag[Any] | None = None


@dataclass(frozen=True)
class OperatorStep(Generic[U]):
    """`operators`: those that have been made, by subtask."""

    uid: str
    factory: Callable[[], AnyOperator[U]]
    key: Callable[[Any], Any] | None
    right_key: Callable[[Any], Any] | None
    window: WindowAssigner | None
    windowing: Windowing
    on_error: ErrorRoute
    operators: list[AnyOperator[U]] = field(default_factory=list)

    @functools.cached_property
    def cls(self) -> type:
        """Of the operator; a factory is called for it once."""
        made: Any = getattr(self.factory, "func", self.factory)
        if isinstance(made, Lifecycle):
            raise InvalidDataflow(
                f"operator {self.uid!r} is given as an instance, which a restore could not make anew: give the class, "
                f"or a factory such as functools.partial({type(made).__name__}, …)"
            )
        return made if isinstance(made, type) else type(self.factory())

    @property
    def two_inputs(self) -> bool:
        return issubclass(self.cls, TWO_INPUTS)

    def key_of(self, value: Any, side: int) -> Any:
        """None where it has none."""
        select = self.right_key if side else self.key
        broadcast = side and issubclass(self.cls, KeyedBroadcastOperator)
        return None if select is None or broadcast else select(value)

    def watchable(self) -> list[AnyOperator[U]]:
        """The operators whose state can be changed in place; an async one has copies."""
        if issubclass(self.cls, AsyncKeyedOperator):
            return []
        return [operator for operator in self.operators if isinstance(operator, KEYED)]

    def declared(self, attribute: str) -> Declaration | None:
        return declared_states(self.cls).get(attribute)

    def add(self, inputs: Sequence[Stream[Any]]) -> Stream[Any]:
        """The operator behind these inputs. Raises InvalidConfig where something is missing that its kind needs."""
        left = inputs[0]
        if self.window is not None or issubclass(self.cls, WindowOperator):
            return self._windowed(left)
        if issubclass(self.cls, KeyedBroadcastOperator):
            return self._keyed(left).connect_broadcast(inputs[1]).process(self.uid, self._made, on_error=self.on_error)
        if issubclass(self.cls, KeyedCoOperator):
            both = self._keyed(left).connect(inputs[1].key_by(self._needed(self.right_key)))
            keyed_made: Stream[Any] = both.process(self.uid, self._made, on_error=self.on_error)
            return keyed_made
        if issubclass(self.cls, CoOperator):
            return left.connect(inputs[1]).process(self.uid, self._made, on_error=self.on_error)
        keyed = self.key is not None or issubclass(self.cls, KEYED)
        stream: Stream[Any] = self._keyed(left) if keyed else left
        made: Stream[Any] = stream.process(self.uid, self._made, on_error=self.on_error)
        return made

    def _windowed(self, left: Stream[Any]) -> Stream[Any]:
        if self.window is None:
            raise InvalidConfig(
                f"operator {self.uid!r}: {self.cls.__name__} works on windows: give window=sa.Tumbling(…)"
            )
        how = self.windowing
        windows = self._keyed(left).window(
            self.uid, self.window, trigger=how.trigger, allowed_lateness=how.allowed_lateness, late=how.late
        )
        return windows.process(self._made, on_error=self.on_error)

    def _keyed(self, stream: Stream[Any]) -> KeyedStream[Any, Any]:
        return stream.key_by(self._needed(self.key))

    def _needed(self, key: Callable[[Any], Any] | None) -> Callable[[Any], Any]:
        if key is None:
            raise InvalidConfig(
                f"operator {self.uid!r}: {self.cls.__name__} works key by key: give key=, a function of a record"
            )
        return key

    @property
    def _made(self) -> "_Making":
        return _Making(self)


@dataclass(frozen=True)
class _Making:
    """A factory that keeps what it has made."""

    step: OperatorStep[Any]

    @property
    def uses_record_id(self) -> bool:
        """What is planned is the operator's, of which nothing can be seen here."""
        return uses_record_id(self.step.cls)

    def __call__(self) -> Any:
        operator = self.step.factory()
        self.step.operators.append(operator)
        return operator
