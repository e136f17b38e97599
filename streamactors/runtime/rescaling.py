"""A rescale that is under way: the attempt by the old parallelism ends in peace, and the next one begins by the new.

Invariant: it ends once, or with its job, and whoever waits for that is told how. It is accepted when the sources are
told to stop; from then on every new attempt, whatever the old one has ended by, begins by the new parallelism. Only
where the checkpoint in between fails, or what is stored can't be restored by the new parallelism, does the job go on by
the old one. It goes back to that, once, where the first attempt by the new one fails before a checkpoint is complete.
"""

import asyncio
import datetime as dt
import logging
from collections.abc import Callable, Mapping

from streamactors.checkpoint.manifest import Manifest
from streamactors.clock import Clock
from streamactors.errors import RescaleFailed, RescaleUnderWay, StorageFailed
from streamactors.graph.parallelism import Parallelism, restored, widths
from streamactors.graph.physical import PhysicalPlan
from streamactors.runtime.events import JobEvent, RescaleAbandoned, RescaleBegun, Rescaled
from streamactors.runtime.info import RescaleInfo

log = logging.getLogger("streamactors.job")


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


class Rescales:
    """Of one job, which calls what happens as it does: by which parallelism its attempts run."""

    def __init__(self, job: str, parallelism: Parallelism, clock: Clock, tell: Callable[[JobEvent], None]) -> None:
        self._job = job
        self._clock = clock
        self._tell = tell
        self._configured = parallelism
        self.parallelism = parallelism
        """Of the attempt that runs, or begins next."""
        self.under_way: Rescaling | None = None
        self.last: RescaleInfo | None = None
        self.restored: Mapping[str, int] = {}
        """By uid, of what this process began with, where that is another than it began by."""
        self._on_trial: Rescaling | None = None
        """By which the job runs, without a complete checkpoint yet."""

    @property
    def rescaled(self) -> bool:
        """Whether it runs by another parallelism than it was started with."""
        return self.parallelism != self._configured

    @property
    def has_switched(self) -> bool:
        """Whether the attempt is one by the new parallelism, which has not come to run yet."""
        return self.under_way is not None and self.parallelism is self.under_way.new

    def refuse_another(self) -> None:
        if self.under_way is not None:
            raise RescaleUnderWay(
                f"job {self._job!r} is being rescaled already ({self.under_way.changes}): ask again once it runs"
            )

    def begin(self, parallelism: Parallelism, before: Mapping[str, int], after: Mapping[str, int]) -> Rescaling:
        rescaling = self.under_way = Rescaling(self.parallelism, parallelism, before, after)
        self._on_trial = None  # whatever ends this attempt, the next one begins by yet another
        log.info("%s: rescaling: %s", self._job, rescaling.changes)
        self._tell(RescaleBegun(before, after))
        return rescaling

    def attempt_begins(self) -> None:
        if self.under_way is not None:
            self.parallelism = self.under_way.new
            self._on_trial = None if self.under_way.back else self.under_way

    def attempt_ended(self, read_until: float | None) -> None:
        """`read_until`: when the sources had stopped, in monotonic seconds; None: they have read to its end."""
        if self.under_way is not None and self.under_way.read_until is None:
            self.under_way.read_until = self._clock.monotonic() if read_until is None else read_until

    def checkpointed(self) -> None:
        self._on_trial = None

    def running(self) -> None:
        """An attempt runs: by the new parallelism, if there is one."""
        rescaling, self.under_way = self.under_way, None
        if rescaling is None:
            return
        info = self.last = rescaling.done(self._clock.time_ms(), self._clock.monotonic())
        log.info(
            "%s: rescaled: %s; nothing was read for %.3f s. A new process starts with the parallelism of its Config",
            self._job,
            rescaling.changes,
            info.pause.total_seconds(),
        )
        self._tell(Rescaled(info))

    def give_up(self, error: Exception) -> None:
        """The job goes on by the old one."""
        self._on_trial = None
        rescaling, self.under_way = self.under_way, None
        if rescaling is None:
            return
        self.parallelism = rescaling.old
        log.warning("%s: not rescaled (%s): %s", self._job, rescaling.changes, error)
        self._tell(RescaleAbandoned(rescaling.before, rescaling.after, error))
        rescaling.failed(error)

    def go_back(self, error: Exception) -> bool:
        """Whether the new parallelism is given up for it: it may be the reason."""
        rescaling = self._on_trial
        if rescaling is None or isinstance(error, StorageFailed):
            return False
        self._on_trial = None
        error.add_note(
            f"It was the first attempt by another parallelism ({rescaling.changes}), and no checkpoint was complete "
            "yet: the job goes back to the parallelism before."
        )
        if self.under_way is rescaling:
            failed = RescaleFailed(
                f"job {self._job!r} was not rescaled ({rescaling.changes}), and goes on as it was: the first attempt "
                f"by the new parallelism failed: {type(error).__name__}: {error}"
            )
            failed.__cause__ = error
            self.give_up(failed)
            return True
        assert self.under_way is None  # or whoever waits for it would wait for ever
        back = self.under_way = rescaling.reversed(self._clock.monotonic())
        log.warning("%s: goes back to the parallelism before, since it failed at once: %s", self._job, back.changes)
        self._tell(RescaleBegun(back.before, back.after))
        return True

    def go_on(self, plan: PhysicalPlan, stored: Manifest) -> None:
        """By what the process before was rescaled to, whose place this one takes. `plan`: by the settings."""
        now = widths(plan)
        found = {each.uid: each.parallelism for each in stored.operators if each.uid in now}
        self.parallelism = restored(self._configured, found, plan)
        log.info("%s: goes on as it was rescaled: %s", self._job, changes(now, found))

    def compare(self, now: Mapping[str, int], stored: Manifest) -> None:
        """What the first attempt runs by with what it goes on from: a rescale holds until its process ends."""
        before = {each.uid: each.parallelism for each in stored.operators if each.uid in now}
        self.restored = {uid: width for uid, width in before.items() if width != now[uid]}
        if self.restored and stored.rescaled:
            log.warning(
                "%s: it was rescaled before this process began, which has the parallelism of its settings: %s. Set it "
                "there, or rescale again",
                self._job,
                changes(before, {uid: now[uid] for uid in before}),
            )


def changes(before: Mapping[str, int], after: Mapping[str, int]) -> str:
    """Of the steps that change, such as `totals 2 → 4`."""
    return ", ".join(f"{uid} {before[uid]} → {width}" for uid, width in after.items() if width != before[uid])
