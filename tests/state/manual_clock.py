"""A clock whose processing time a test moves."""

from streamactors.clock import SystemClock


class ManualClock(SystemClock):
    def __init__(self, now_ms: int = 1_700_000_000_000) -> None:
        self.now_ms = now_ms

    def time_ms(self) -> int:
        return self.now_ms

    def advance(self, seconds: float) -> None:
        self.now_ms += round(seconds * 1000)
