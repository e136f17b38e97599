"""All connections of one process cut, for as long as wanted, while it runs: to other workers, the coordinator, Ray's
head and the broker. Only the one to the raylet of its own node stays, whose end would be the process's own.

The process that is to be cut off watches for a file of its number, and adds a line for each connection that it cuts.
"""

import os
import socket
import threading
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Final

_TURN: Final = 0.005
"""Seconds: what is connected anew lives no longer."""
_DOORS: Final = "\0streamactors"
"""What the names of sockets between workers of one node begin with, at their one end."""


def file_of(folder: str, pid: int) -> Path:
    return Path(folder) / f"cut-off-{pid}"


@cache
def watch() -> None:
    """From a step of the flow, in the process that is to be cut off."""
    file = file_of(os.environ["RAY_TMPDIR"], os.getpid())
    threading.Thread(target=_watch, args=(file,), name="cuts", daemon=True).start()


def _watch(file: Path) -> None:
    while True:
        time.sleep(_TURN)
        if file.exists():
            _note(file, _cut_all())


def _note(file: Path, cut: list[str]) -> None:
    if cut:
        with suppress(FileNotFoundError), open(os.open(file, os.O_WRONLY | os.O_APPEND), "w") as noted:
            noted.writelines(f"{peer}\n" for peer in cut)


def _cut_all() -> list[str]:
    """The peers of what was connected."""
    found = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # gone meanwhile, or not connected
            if not os.readlink(descriptor).startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(descriptor.name))) as connection:
                if peer := _peer(connection):
                    connection.shutdown(socket.SHUT_RDWR)
                    found.append(peer)
    return found


def _peer(connection: socket.socket) -> str:
    """Nothing for what stays."""
    if connection.family in (socket.AF_INET, socket.AF_INET6):
        host, port, *_ = connection.getpeername()
        return f"{host}:{port}"
    if connection.family == socket.AF_UNIX:
        names = [
            name.decode() for name in (connection.getsockname(), connection.getpeername()) if isinstance(name, bytes)
        ]
        return next((name[1:] for name in names if name.startswith(_DOORS)), "")
    return ""
