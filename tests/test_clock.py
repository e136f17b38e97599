"""The system's clock."""

import threading

from streamactors.clock import SYSTEM


async def test_blocking_work_runs_off_the_loop() -> None:
    def add(one: int, other: int) -> tuple[threading.Thread, int]:
        return threading.current_thread(), one + other

    thread, total = await SYSTEM.run_blocking(add, 1, other=2)
    assert thread is not threading.current_thread() and total == 3


async def test_time_and_chance() -> None:
    before, millis = SYSTEM.monotonic(), SYSTEM.time_ms()
    await SYSTEM.sleep(0.001)
    assert SYSTEM.monotonic() > before and SYSTEM.time_ms() >= millis > 1_600_000_000_000
    assert 0 <= SYSTEM.random() < 1
    assert len({SYSTEM.token() for _ in range(100)}) == 100 and len(SYSTEM.token()) == 16
