"""What all joins have in common.

Invariant: a row is late if its time-stamp is not after the watermark, the least one of both sides. Late rows are joined
with nothing, as what would have matched them may be gone, but for the exceptions that a join names: each of them goes
to the side output `late`, if there is one, and is counted as `late_records`.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from streamactors.elements import OutputTag
from streamactors.errors import InvalidDataflow
from streamactors.operators.base import Context, Link, LinkContext, OperatorContext, OperatorSpec
from streamactors.operators.process import Hook
from streamactors.operators.two_inputs import KeyedCoOperator, TwoInputLink


class Join(KeyedCoOperator[Any, Any, Any, Any]):
    """Base of the operators behind the joins."""

    late: OutputTag[Any] | None = None

    def open(self, ctx: OperatorContext, /) -> None:
        self._late_records = ctx.metrics.counter("late_records")

    def _put_aside(self, row: Any, ctx: Context[Any, Any]) -> None:
        """A late row."""
        self._late_records.inc()
        if self.late is not None:
            ctx.emit_to(self.late, row)


def time_of(ctx: Context[Any, Any]) -> int:
    """Of the row in hand. Raises InvalidDataflow."""
    if ctx.timestamp is None:
        raise InvalidDataflow(
            "a step in event time was given a record without a time-stamp: give all sources before it "
            "watermarks=sa.Watermarks.…, or, if an operator has emitted it, emit(value, timestamp=…)"
        )
    return ctx.timestamp


@dataclass(frozen=True)
class JoinSpec(OperatorSpec):
    """`left_type`, `right_type`: as which state holds the rows."""

    left_type: Any
    right_type: Any
    late: OutputTag[Any] | None

    @property
    def inputs(self) -> tuple[str, ...]:
        return ("left", "right")

    @property
    def keyed_state(self) -> bool:
        return True

    @property
    def needs_watermarks(self) -> bool:
        return True

    @property
    def beside(self) -> Mapping[str, OutputTag[Any]]:
        return {} if self.late is None else {"late": self.late}

    def validate(self, uid: str) -> None:
        if self.late is not None and not isinstance(self.late, OutputTag):
            raise InvalidDataflow(f"{self.kind} {uid!r}: late= is an OutputTag, not {self.late!r}")

    @abstractmethod
    def operator(self) -> Join:
        """One for a subtask."""

    def link(self, ctx: LinkContext) -> Link:
        made = self.operator()
        made.late = self.late
        left, right, on_timer = (
            Hook.of(hook, keyed=True) for hook in (made.process_left, made.process_right, made.on_timer)
        )
        return self._link(ctx, made, left, right, on_timer)

    def _link(self, ctx: LinkContext, made: Any, left: Hook, right: Hook, on_timer: Hook) -> Link:
        return TwoInputLink(ctx, made, left, right, on_timer)
