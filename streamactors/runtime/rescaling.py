"""A rescale that is under way: the attempt by the old parallelism ends in peace, and the next one begins by the new.

Invariant: it ends once, or with its job, and whoever waits for that is told how. It is accepted when the sources are
told to stop; from then on every new attempt, whatever the old one has ended by, begins by the new parallelism. Only
where the checkpoint in between fails, or what is stored can't be restored by the new parallelism, does the job go on by
the old one. It goes back to that, once, where the first attempt by the new one fails before a checkpoint is complete.
"""

import asyncio
import datetime as dt
from collections.abc import Mapping

from streamactors.graph.parallelism import Parallelism
from streamactors.runtime.info import RescaleInfo


class Rescaling:
    """`before` and `after` by uid of each step. `read_until`: when reading stopped, in monotonic seconds; None: it goes
    on yet."""

    def __init__(self, old: Parallelism, new: Parallelism, before: Mapping[str, int], after: Mapping[str, int]) -> None:
        self.back = False
        """Whether it goes back to a parallelism that the job ran by."""
        self.old = old
        self.new = new
        self.before = before
        self.after = after
        self.read_until: float | None = None
        self._answer: asyncio.Future[RescaleInfo] = asyncio.get_running_loop().create_future()

    def reversed(self, now: float) -> "Rescaling":
        """The way back, from an attempt that has failed."""
        back = Rescaling(self.new, self.old, self.after, self.before)
        back.back, back.read_until = True, now
        return back

    def done(self, time_ms: int, now: float) -> RescaleInfo:
        since = now if self.read_until is None else self.read_until
        info = RescaleInfo(time_ms, dt.timedelta(seconds=now - since), self.before, self.after)
        self._answer.set_result(info)
        return info

    def failed(self, error: BaseException) -> None:
        self._answer.set_exception(error)
        self._answer.exception()  # retrieved: whoever asked may have gone

    async def ended(self) -> None:
        """However it does; never, if the job ends meanwhile."""
        await asyncio.wait([self._answer])

    async def answer(self) -> RescaleInfo:
        """Raises what it has failed by. It goes on if the caller does not wait any longer."""
        return await asyncio.shield(self._answer)

    @property
    def changes(self) -> str:
        """For people."""
        return changes(self.before, self.after)


def changes(before: Mapping[str, int], after: Mapping[str, int]) -> str:
    """Of the steps that change, such as `totals 2 → 4`."""
    return ", ".join(f"{uid} {before[uid]} → {width}" for uid, width in after.items() if width != before[uid])
