"""When a window gives its result: pure decisions. (Akidau et al., *The Dataflow Model*, 2015: triggers.)

Invariants. A trigger keeps nothing: what it has to know, how many records have come since the window last fired, is
handed to it. Nothing that has come to a window is forgotten unseen: when the window's time is over, whatever has not
fired by then does.
"""

import datetime as dt
from dataclasses import dataclass, replace
from typing import Final

from streamactors.errors import InvalidDataflow
from streamactors.time.windows import CountWindow, WindowAssigner

_MILLISECOND: Final = dt.timedelta(milliseconds=1)


@dataclass(frozen=True, slots=True)
class Trigger:
    """Made by `event_time`, `processing_time` or `count`. May serve many steps."""

    at_end: bool = False
    """Fires when the watermark comes to the window's end, and with each record that comes later and is not too late."""
    records: int | None = None
    """Fires with each so many records."""
    period: int | None = None
    """Fires so many milliseconds apart, by the clock, where records have come since."""
    purges: bool = False
    """Whether the window forgets its records when it fires."""

    @classmethod
    def event_time(cls) -> "Trigger":
        """Once the watermark has come to the window's end; then again with each record that is late but allowed."""
        return cls(at_end=True)

    @classmethod
    def processing_time(cls, every: dt.timedelta) -> "Trigger":
        """Each `every`, by the clock, while records come. Raises InvalidDataflow."""
        return cls(period=_period("processing_time", every))

    @classmethod
    def count(cls, n: int) -> "Trigger":
        """With each `n`th record of the window. Raises InvalidDataflow."""
        if type(n) is not int or n < 1:
            raise InvalidDataflow(f"Trigger.count({n!r}): give a whole number of records, at least 1")
        return cls(records=n)

    def early(self, every: dt.timedelta) -> "Trigger":
        """Also before the end, each `every` by the clock, while records come. Raises InvalidDataflow."""
        if not self.at_end:
            raise InvalidDataflow(f"{self!r}.early(…): only Trigger.event_time() has an end to be earlier than")
        return replace(self, period=_period("early", every))

    def purging(self) -> "Trigger":
        """A window that fires forgets its records: the next result is of those that come after."""
        return replace(self, purges=True)

    # ------------------------------------------------------------------------------------------------------- decisions
    def fires_after(self, unfired: int, *, over: bool) -> int | None:
        """With how many more records it fires, at least one; None: with no number. `unfired` have come since it last
        fired; `over`: the watermark has come to the window's end."""
        if self.at_end and over:
            return 1
        return None if self.records is None else max(1, self.records - unfired)

    def ticks(self, *, over: bool) -> bool:
        """Whether it fires by the clock as well. Once the end has come, each record fires by itself."""
        return self.period is not None and not (self.at_end and over)

    def next_tick(self, now: int) -> int:
        """In milliseconds since the epoch, as `now` is: whole periods since then, so that all windows fire together."""
        assert self.period is not None
        return (now // self.period + 1) * self.period

    def __repr__(self) -> str:
        if self.at_end:
            made = "Trigger.event_time()"
            made += "" if self.period is None else f".early({_shown(self.period)})"
        else:
            made = (
                f"Trigger.count({self.records})"
                if self.period is None
                else f"Trigger.processing_time({_shown(self.period)})"
            )
        return f"{made}.purging()" if self.purges else made


def trigger_of(assigner: WindowAssigner, given: Trigger | None) -> Trigger:
    """The one given, else that which the windows ask for. Raises InvalidDataflow where they ask for none."""
    if given is not None:
        if not isinstance(given, Trigger):
            raise InvalidDataflow(f"trigger={given!r}: give a Trigger, such as sa.Trigger.count(100)")
        return given
    if assigner.timed:
        return Trigger.event_time()
    if isinstance(assigner, CountWindow):
        return Trigger.count(assigner.size).purging()
    raise InvalidDataflow(
        f"{assigner!r} never ends, so it would never give a result: give a trigger, such as "
        "trigger=sa.Trigger.count(100) or trigger=sa.Trigger.processing_time(every=…)"
    )


def _period(method: str, every: object) -> int:
    if not isinstance(every, dt.timedelta) or every < _MILLISECOND:
        raise InvalidDataflow(f"Trigger.{method}({every!r}): give a timedelta of at least a millisecond")
    return every // _MILLISECOND


def _shown(period: int) -> str:
    return str(dt.timedelta(milliseconds=period))
