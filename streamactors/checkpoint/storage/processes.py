"""Processes, told apart, so that what a dead one has left can be known as such."""

import os
import socket
from datetime import UTC, datetime
from pathlib import Path

from streamactors.clock import Clock


def this_process(clock: Clock) -> str:
    """Names this process to people: pid, host, time."""
    since = datetime.fromtimestamp(clock.time_ms() // 1000, UTC).isoformat()
    return f"process {os.getpid()} on {socket.gethostname()}, since {since}"


def process_identity(pid: int | None = None) -> str | None:
    """Tells a live process (this one) from all others, of whatever machine and time; None if there is no such process,
    or the system does not say."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink("/proc/self/ns/pid")
        status = Path(f"/proc/{os.getpid() if pid is None else pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    since = status.rpartition(")")[2].split()[19]
    return f"{boot} {namespace} {os.getpid() if pid is None else pid} {since}"


def is_dead(identity: str) -> bool:
    """Whether that process is known to have ended: it ran here, and does no more."""
    mine = (process_identity() or "").split()
    other = identity.split()
    if len(mine) != 4 or len(other) != 4 or other[:2] != mine[:2] or not other[2].isdigit():
        return False
    return process_identity(int(other[2])) != identity
