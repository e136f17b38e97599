"""Runs commands one after the other and lets none of them outlive the process that asked for them.

Started as a script: `python process_guard.py FOLDER COMMAND... -- COMMAND...`. The parent holds the write end of stdin
and writes `T` (terminate) or `K` (kill). The end of the file without either means that the parent is gone, even by
SIGKILL: the command is killed and FOLDER removed. A pipe works in any thread and on any POSIX system, where
PR_SET_PDEATHSIG follows a thread and is Linux only.
"""

import os
import shutil
import subprocess
import sys
import threading

TERMINATE = b"T"
KILL = b"K"
STDIN = 0


class Guard:
    """One command at a time; `obey` runs in a thread of its own, since a wait for a child can't be interrupted."""

    def __init__(self) -> None:
        self.orphaned = False
        self._child: subprocess.Popen[bytes] | None = None
        self._ending = False
        self._lock = threading.Lock()

    def run(self, command: list[str]) -> int:
        """Its exit code."""
        with self._lock:
            if self._ending:
                return 1
            self._child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        return self._child.wait()

    def obey(self) -> None:
        """Until the parent is gone."""
        while order := os.read(STDIN, 1):
            self._end(kill=order == KILL)
        self.orphaned = True
        self._end(kill=True)

    def _end(self, *, kill: bool) -> None:
        with self._lock:
            self._ending = True
            if self._child is not None:
                self._child.kill() if kill else self._child.terminate()


def split(arguments: list[str]) -> list[list[str]]:
    """`a b -- c` gives [[a, b], [c]]."""
    commands: list[list[str]] = [[]]
    for argument in arguments:
        if argument == "--":
            commands.append([])
        else:
            commands[-1].append(argument)
    return commands


def main(folder: str, arguments: list[str]) -> int:
    guard = Guard()
    threading.Thread(target=guard.obey, daemon=True).start()
    code = 0
    for command in split(arguments):
        code = guard.run(command)
        if code:
            break
    if guard.orphaned:
        shutil.rmtree(folder, ignore_errors=True)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
