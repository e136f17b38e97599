"""What a test may leave behind: no asyncio task, no thread, no open file or socket."""

import asyncio
import functools
import gc
import inspect
import os
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

import pytest

P = ParamSpec("P")
R = TypeVar("R")

# What is on its way out may finish; only a leak costs this long.
GRACE_SECONDS = 20.0
OPEN_FILES = Path("/proc/self/fd")


@dataclass(frozen=True)
class Held:
    """What this process holds at one moment; `files` counts what descriptors point to (nothing without /proc)."""

    threads: frozenset[threading.Thread]
    files: Counter[str]


def held() -> Held:
    return Held(frozenset(threading.enumerate()), open_files())


def open_files() -> Counter[str]:
    files: Counter[str] = Counter()
    if OPEN_FILES.is_dir():
        for descriptor in os.listdir(OPEN_FILES):
            try:
                target = os.readlink(OPEN_FILES / descriptor)
            except FileNotFoundError:
                continue  # the descriptor by which /proc/self/fd was listed
            if not target.startswith(("/dev/", "/proc/")):
                files[target] += 1
    return files


def left_since(before: Held) -> list[str]:
    """What is held now and was not before, in words; waits a little for it to go away."""
    if not (left := _new_since(before)):
        return []
    gc.collect()
    give_up = time.monotonic() + GRACE_SECONDS
    while (left := _new_since(before)) and time.monotonic() < give_up:
        time.sleep(0.01)
    return left


def _new_since(before: Held) -> list[str]:
    now = held()
    threads = [f"thread {thread.name}" for thread in now.threads - before.threads]
    files = [f"open file {target}" for target in (now.files - before.files).elements()]
    return sorted(threads + files)


def leaving_no_task(test: Callable[P, Awaitable[R]]) -> Callable[P, Awaitable[R]]:
    """Fails a passing test that leaves tasks running; pytest-asyncio would cancel them and say nothing."""

    @functools.wraps(test)
    async def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        before = asyncio.all_tasks()
        result = await test(*args, **kwargs)
        if left := asyncio.all_tasks() - before:
            _, left = await asyncio.wait(left, timeout=GRACE_SECONDS)
        if left:
            pytest.fail("left running: " + "; ".join(sorted(repr(task) for task in left)), pytrace=False)
        return result

    assert inspect.iscoroutinefunction(checked)
    return checked
