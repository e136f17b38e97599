"""Event time of one subtask: over its input channels, and while it gets back what was in flight.

Invariant: what goes into the chain is merged over all inputs (`merged`), so that in a checkpoint it can be told from
what one channel's sender said. Restored watermarks are merged at once, in the order in which they would have been
taken, by the inputs that the subtask had with which they lay: its *lane*.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

from streamactors.checkpoint.manifest import ChannelTime, EdgeKey, FrameRef
from streamactors.elements import MIN_TIME, Idle, TimeMark, Watermark
from streamactors.time.progress import GroupTimes, InputTime, WatermarkMerge

K = TypeVar("K", bound=Hashable)

Source = tuple[EdgeKey, int]
"""An edge, and the subtask that sends on it."""


@dataclass(frozen=True, slots=True)
class LaneStart:
    """The inputs of one old subtask of a step. `scope`: the key groups of it that this subtask has taken over; None:
    this is the same subtask."""

    channels: tuple[ChannelTime, ...]
    scope: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class NodeTime:
    """Where event time stands at one node of one subtask when it is restored. `lanes` by old subtask; `kept`: the edges
    into it whose channels are what they were; `splits` of a source, by split."""

    current: int = MIN_TIME
    ahead: GroupTimes = ()
    idle: bool = False
    lanes: Mapping[int, LaneStart] = field(default_factory=dict)
    kept: frozenset[EdgeKey] = frozenset()
    splits: Mapping[str, Any] = field(default_factory=dict)


class _Lane:
    def __init__(self, start: LaneStart) -> None:
        told = {(channel.edge, channel.sender): _input_time(channel) for channel in start.channels}
        self.merge: WatermarkMerge[Source] = WatermarkMerge(told)
        self._scope = start.scope

    def take(self, source: Source, mark: TimeMark) -> Iterable[TimeMark]:
        """A mark that lay with this subtask, as one for all its inputs."""
        if mark.merged:
            return self._scoped([mark])
        return self._scoped(merged_by(self.merge, source, mark))

    def _scoped(self, marks: Iterable[TimeMark]) -> Iterable[TimeMark]:
        if self._scope is None:
            return [msgspec.structs.replace(mark, merged=True) for mark in marks]
        first, last = self._scope
        return [
            Watermark(mark.time_ms, True, (max(first, low), min(last, high)))
            for mark in marks
            if isinstance(mark, Watermark)
            for low, high in [mark.groups or self._scope]
        ]


class Lanes:
    """By node uid and old subtask."""

    def __init__(self, times: Mapping[str, NodeTime]) -> None:
        self._kept = {uid: time.kept for uid, time in times.items()}
        self._lanes = {(uid, index): _Lane(start) for uid, time in times.items() for index, start in time.lanes.items()}

    def take(self, edge: EdgeKey, ref: FrameRef, mark: TimeMark) -> Iterable[TimeMark]:
        """What a restored mark tells the step that `edge` enters."""
        lane = self._lanes.get((edge.downstream, ref.receiver))
        return () if lane is None else lane.take((edge, ref.sender), mark)

    def told(self, uid: str, index: int) -> Mapping[Source, InputTime]:
        """What the channels into a node that are what they were have told, by the end of what was taken."""
        lane, kept = self._lanes.get((uid, index)), self._kept.get(uid, ())
        return {} if lane is None else {source: time for source, time in lane.merge.inputs.items() if source[0] in kept}


class InputTimes:
    """Over the input channels of a subtask (none, of a source)."""

    def __init__(self, channels: Sequence[Source]) -> None:
        self._channels = channels
        self._merge: WatermarkMerge[int] = WatermarkMerge({})
        self.restore({})

    def restore(self, told: Mapping[Source, InputTime]) -> None:
        """Go on from what these inputs have told; the others will tell it again."""
        times = (told.get(channel) or InputTime() for channel in self._channels)
        self._merge = WatermarkMerge(dict(enumerate(times)))

    def took(self, channel: int, mark: TimeMark) -> Sequence[TimeMark]:
        return _all_merged(merged_by(self._merge, channel, mark))

    def ended(self, channel: int) -> Sequence[TimeMark]:
        return _all_merged(self._merge.ended(channel))

    def snapshot(self) -> tuple[ChannelTime, ...]:
        times = self._merge.inputs
        return tuple(
            ChannelTime(edge, sender, time.watermark, time.idle, time.ended)
            for (edge, sender), time in zip(self._channels, times.values(), strict=True)
        )


def merged_by(merge: WatermarkMerge[K], key: K, mark: TimeMark) -> Sequence[TimeMark]:
    return merge.idled(key) if isinstance(mark, Idle) else merge.advanced(key, mark.time_ms)


def _all_merged(marks: Sequence[TimeMark]) -> Sequence[TimeMark]:
    return [msgspec.structs.replace(mark, merged=True) for mark in marks]


def _input_time(channel: ChannelTime) -> InputTime:
    return InputTime(channel.watermark, idle=channel.idle, ended=channel.ended)
