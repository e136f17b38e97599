"""When a failed job tries again: pure decisions; time (seconds, monotonic) and randomness ([0, 1)) are passed in."""

from abc import ABC, abstractmethod
from collections import deque

from streamactors.config import ExponentialDelay, FailureRate, FixedDelay, Restart


class RestartPolicy(ABC):
    """The memory of one job's failures. Made by `RestartPolicy.of`, once per job."""

    @abstractmethod
    def delay_after_failure(self, now: float, random: float) -> float | None:
        """Seconds to wait before the next attempt, now that one has failed; None: give up."""

    @staticmethod
    def of(restart: Restart) -> "RestartPolicy":
        match restart:
            case FixedDelay():
                return _Fixed(restart)
            case ExponentialDelay():
                return _Exponential(restart)
            case FailureRate():
                return _Rate(restart)
            case _:
                return _Never()


class _Never(RestartPolicy):
    def delay_after_failure(self, now: float, random: float) -> float | None:
        return None


class _Fixed(RestartPolicy):
    def __init__(self, restart: FixedDelay) -> None:
        self._delay = restart.delay.total_seconds()
        self._left = restart.attempts

    def delay_after_failure(self, now: float, random: float) -> float | None:
        if not self._left:
            return None
        self._left -= 1
        return self._delay


class _Exponential(RestartPolicy):
    def __init__(self, restart: ExponentialDelay) -> None:
        self._initial = restart.initial.total_seconds()
        self._maximum = restart.maximum.total_seconds()
        self._jitter = restart.jitter
        self._reset_after = restart.reset_after.total_seconds()
        self._next = self._initial
        self._started_at: float | None = None  # when the attempt that now fails began

    def delay_after_failure(self, now: float, random: float) -> float | None:
        if self._started_at is not None and now - self._started_at >= self._reset_after:
            self._next = self._initial
        # Jitter keeps many jobs that one outage has felled from coming back in step.
        delay = min(self._next * (1 + self._jitter * (2 * random - 1)), self._maximum)
        self._next = min(self._next * 2, self._maximum)
        self._started_at = now + delay
        return delay


class _Rate(RestartPolicy):
    def __init__(self, restart: FailureRate) -> None:
        self._tolerated = restart.failures
        self._per = restart.per.total_seconds()
        self._delay = restart.delay.total_seconds()
        self._failures: deque[float] = deque()

    def delay_after_failure(self, now: float, random: float) -> float | None:
        self._failures.append(now)
        while now - self._failures[0] >= self._per:
            self._failures.popleft()
        return self._delay if len(self._failures) <= self._tolerated else None
