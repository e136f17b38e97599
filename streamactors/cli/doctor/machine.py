"""This process and this machine: Python, its event loop, limits, cores."""

import os
import platform
import sys
from collections.abc import Iterator
from typing import Final

from streamactors.diagnosis import Finding

if sys.platform != "win32":
    import resource

OLDEST: Final = (3, 11)
FEW_FILES: Final = 4096
"""RocksDB has some hundred open for each subtask, and each connection is one."""
QUOTA: Final = "/sys/fs/cgroup/cpu.max"
"""Of a container: microseconds of processor time in a period, and the period."""


def of_machine() -> Iterator[Finding]:
    yield _python()
    yield _event_loop()
    if sys.platform != "win32":
        yield of_open_files(*resource.getrlimit(resource.RLIMIT_NOFILE))
    yield of_cores(_usable_cores(), _quota())


def _python() -> Finding:
    told = f"{platform.python_version()} ({platform.python_implementation()})"
    if sys.version_info < OLDEST:
        return Finding("problem", "python", told, "use Python 3.11 or newer")
    if sys.flags.dev_mode or os.environ.get("PYTHONASYNCIODEBUG"):
        remedy = "unset PYTHONDEVMODE and PYTHONASYNCIODEBUG, leave out -X dev"
        return Finding("warning", "python", f"{told}, in development mode: slow", remedy)
    return Finding("ok", "python", told)


def _event_loop() -> Finding:
    if sys.platform == "win32":
        return Finding("ok", "event loop", "asyncio's own; there is no uvloop for Windows")
    try:
        import uvloop
    except ImportError as error:
        told = f"asyncio's own: uvloop can't be used ({error})"
        return Finding("warning", "event loop", told, "pip install uvloop: a job is faster on it")
    return Finding("ok", "event loop", f"uvloop {getattr(uvloop, '__version__', '')}")


def of_open_files(soft: int, hard: int) -> Finding:
    """`soft` and `hard` as `getrlimit` has them: -1 is no limit."""
    told = "no limit" if soft == -1 else f"at most {soft:,}"
    if soft == -1 or soft >= FEW_FILES:
        return Finding("ok", "open files", told)
    most = FEW_FILES if hard == -1 else min(FEW_FILES, hard)
    if most > soft:
        remedy = f"ulimit -n {most} before the start (systemd: LimitNOFILE={most})"
    else:
        remedy = "have the hard limit raised (limits.conf, or systemd: LimitNOFILE=)"
    return Finding("warning", "open files", f"{told}: little for many subtasks, RocksDB or Kafka brokers", remedy)


def of_cores(usable: int, quota: float | None) -> Finding:
    """`quota`: how many cores' time this container may use, None without a limit."""
    told = f"{usable}" if quota is None else f"{usable}, of which this container may use the time of {quota:g}"
    if quota is not None and quota < 1:
        remedy = "give the container at least a whole core"
        return Finding("warning", "cores", f"{told}: a job is stopped again and again", remedy)
    return Finding("ok", "cores", told)


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quota() -> float | None:
    try:
        with open(QUOTA) as file:
            quota, period = file.read().split()[:2]
    except (OSError, ValueError):
        return None
    return None if quota == "max" else round(int(quota) / int(period), 2)
