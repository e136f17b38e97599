"""The steps as nodes of a graph: `reduce`, `aggregate` and `process` of a windowed stream."""

import datetime as dt
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from streamactors.elements import DeadLetter, ErrorRoute, OutputTag
from streamactors.errors import InvalidDataflow
from streamactors.operators.base import (
    Link,
    LinkContext,
    OperatorSpec,
    check_usage,
    make_operator,
    refuse_instance,
    refuse_one_tag,
)
from streamactors.operators.windows.base import WindowOperator
from streamactors.operators.windows.contents import ContentsSpec
from streamactors.operators.windows.link import WindowLink, waiting_states
from streamactors.state.descriptors import Declaration, declared_states
from streamactors.time.triggers import Trigger, trigger_of
from streamactors.time.windows import CountWindow, WindowAssigner

_MILLISECOND: Final = dt.timedelta(milliseconds=1)


@dataclass(frozen=True)
class Windowing:
    """Which windows, when they fire, and what becomes of late records. `lateness`: milliseconds."""

    assigner: WindowAssigner
    trigger: Trigger
    lateness: int
    late: OutputTag[Any] | None

    @classmethod
    def of(
        cls,
        uid: str,
        assigner: WindowAssigner,
        trigger: Trigger | None,
        allowed_lateness: dt.timedelta,
        late: OutputTag[Any] | None,
    ) -> "Windowing":
        """As users give it. Raises InvalidDataflow."""
        try:
            if not isinstance(assigner, WindowAssigner):
                raise InvalidDataflow(f"{assigner!r} is no kind of window: give one such as sa.Tumbling(size)")
            lateness = _lateness(allowed_lateness)
            if late is not None and not isinstance(late, OutputTag):
                raise InvalidDataflow(f"late={late!r}: give an OutputTag(name, type)")
            if not assigner.timed and (lateness or late is not None):
                raise InvalidDataflow(f"nothing is late for {assigner!r}: leave out allowed_lateness and late")
            if trigger is not None and isinstance(assigner, CountWindow):
                raise InvalidDataflow(
                    f"{assigner!r} fires with its last record, and has no other trigger: take GlobalWindow with it"
                )
            return cls(assigner, trigger_of(assigner, trigger), lateness, late)
        except InvalidDataflow as error:
            raise InvalidDataflow(f"window {uid!r}: {error}") from error

    @property
    def needs_watermarks(self) -> bool:
        return self.assigner.timed or self.trigger.at_end


def _lateness(given: object) -> int:
    if not isinstance(given, dt.timedelta) or given < dt.timedelta(0) or given % _MILLISECOND:
        raise InvalidDataflow(f"allowed_lateness={given!r}: give a timedelta of whole milliseconds, 0 or more")
    return given // _MILLISECOND


@dataclass(frozen=True)
class WindowSpec(OperatorSpec):
    """`factory` makes one operator per subtask; None: the result is what `contents` give."""

    windowing: Windowing
    contents: ContentsSpec
    factory: Callable[[], Any] | None = None
    on_error: ErrorRoute = "fail"

    @property
    def kind(self) -> str:
        return "window"

    @property
    def keyed_state(self) -> bool:
        return True

    @property
    def needs_watermarks(self) -> bool:
        return self.windowing.needs_watermarks

    def states(self) -> dict[str, Declaration]:
        """Whatever it keeps, by name: its own states, and those of its operator."""
        own = declared_states(self.factory()) if self.factory is not None else {}
        return {**self.contents.states(), **waiting_states(), **own}

    @property
    def error_tag(self) -> OutputTag[DeadLetter] | None:
        return None if self.on_error == "fail" else self.on_error

    @property
    def beside(self) -> Mapping[str, OutputTag[Any]]:
        return {} if self.windowing.late is None else {"late": self.windowing.late}

    def validate(self, uid: str) -> None:
        refuse_one_tag(f"window {uid!r}", late=self.windowing.late, on_error=self.error_tag)
        if self.factory is None:
            return
        refuse_instance(self.factory, (WindowOperator,), uid)
        made = getattr(self.factory, "func", self.factory)
        if isinstance(made, type):
            check_usage(made, (WindowOperator,), uid)
            declared_states(made)

    def link(self, ctx: LinkContext) -> Link:
        operator = None if self.factory is None else make_operator(self.factory, (WindowOperator,), ctx.uid)
        windowing = self.windowing
        return WindowLink(
            replace(ctx, on_error=self.on_error),
            windowing.assigner,
            windowing.trigger,
            windowing.lateness,
            windowing.late,
            self.contents,
            operator,
        )
