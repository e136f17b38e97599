"""Which jobs run on this machine: an entry for each, beside the socket by which it is steered.

Invariants. A folder is used only if it is this user's, closed to everybody else, and no link: whatever lies in it was
put there by this user. A live process holds a lock on the entry of its job, which the kernel frees however the process
dies; so an entry without a lock is stale, and whoever meets it removes it and its socket. An entry is created, and
locked, before its socket, and is told of (it has content) once the socket answers.

All of it is a few calls to the kernel, made in place: a thread would cost more, and could not be cancelled.
"""

import os
import socket
import stat
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, TypeVar

import msgspec

from streamactors import forks
from streamactors.checkpoint.storage.uris import normalise_uri
from streamactors.errors import AmbiguousJob, ControlUnavailable, InvalidConfig, NoSuchJob
from streamactors.settings import redacted

if sys.platform != "win32":
    import fcntl

LONGEST_SOCKET_PATH: Final = 100
"""In bytes: Linux takes 107 and macOS 103."""
_ENTRY: Final = ".json"
_SOCKET: Final = ".sock"
_ID_LENGTH: Final = len("4194304-01234567")


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """What a job tells those who look for it. `storage`: without secrets; `target`: the module:flow that it was started
    as, if by the command line."""

    flow: str
    pid: int
    started_ms: int
    storage: str | None = None
    target: str | None = None
    version: int = 1


class Findable(Protocol):
    @property
    def entry(self) -> Entry: ...


J = TypeVar("J", bound=Findable)


@dataclass(frozen=True, slots=True)
class RunningJob:
    entry: Entry
    socket: str

    def __str__(self) -> str:
        return told(self.entry)


def told(entry: Entry) -> str:
    storage = f", storage {redacted(entry.storage)}" if entry.storage else ""
    return f"{entry.flow} (pid {entry.pid}{storage})"


class Place:
    """The files of one job: its entry, held by a lock, and its socket."""

    def __init__(self, folder: Path, directory: int, id: str) -> None:
        self._directory = directory
        self._id = id
        self._entry: int | None = _claim(directory, id + _ENTRY)
        self._path = str(folder / (id + _SOCKET))
        forks.let_go_in_child(self)

    def listen(self) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(self._path)
            os.chmod(self._path, 0o600)
            listener.listen()
        except BaseException:
            listener.close()
            raise
        return listener

    def publish(self, entry: Entry) -> None:
        """From here on others find the job."""
        assert self._entry is not None
        os.write(self._entry, msgspec.json.encode(entry))

    def withdraw(self) -> None:
        """From here on nobody finds it."""
        if self._entry is not None:
            _remove(self._directory, self._id)

    def close(self) -> None:
        self.withdraw()
        self.let_go()

    def let_go(self) -> None:
        """Of the lock; the files are another's from here on."""
        forks.keep_in_child(self)
        entry, self._entry = self._entry, None
        if entry is not None:
            os.close(entry)


def _claim(directory: int, name: str) -> int:
    """A new file, locked. Whoever looks at it before it is locked takes it for stale, and removes it."""
    while True:
        entry = os.open(name, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW, 0o600, dir_fd=directory)
        fcntl.flock(entry, fcntl.LOCK_EX)
        if os.fstat(entry).st_nlink:
            return entry
        os.close(entry)


def _remove(directory: int, id: str) -> None:
    """What can't be removed is stale all the same, and keeps no job from ending."""
    for suffix in (_SOCKET, _ENTRY):
        with suppress(OSError):
            os.unlink(id + suffix, dir_fd=directory)


@contextmanager
def place(token: str) -> Iterator[Place]:
    """Room for one more job of this process; `token` makes its name unique. Raises ControlUnavailable."""
    with ExitStack() as stack:
        folder, directory = _folder_to_write(stack)
        # Those who clean temporary folders by age leave alone what is locked.
        fcntl.flock(directory, fcntl.LOCK_SH)
        list(_entries(folder, directory))  # and what was killed is cleared away
        yield stack.enter_context(closing(Place(folder, directory, f"{os.getpid()}-{token[:8]}")))


# ------------------------------------------------------------------------------------------------------------- finding
def running() -> tuple[list[RunningJob], list[str]]:
    """The jobs of this user, by name and age; and why a folder was not looked into. Clears away what is stale."""
    found, refused = list[RunningJob](), list[str]()
    for folder in _folders():
        try:
            with _opened(folder, create=False) as directory:
                found += _entries(folder, directory)
        except FileNotFoundError:
            continue
        except (ControlUnavailable, OSError) as error:
            refused.append(str(error))
    return sorted(found, key=lambda job: (job.entry.flow, job.entry.started_ms)), refused


def find(wanted: str | None, jobs: Sequence[J]) -> J:
    """By name, process id or storage; the only one where none is named. Raises NoSuchJob or AmbiguousJob, which tell
    what runs."""
    named = [job for job in jobs if wanted is None or wanted in _names(job)] or _stored_at(wanted, jobs)
    if len(named) == 1:
        return named[0]
    if not jobs:
        what = f"job {wanted!r} does not run here" if wanted is not None else "no job runs here"
        raise NoSuchJob(f"{what}: of this user, on this machine, there is none (streamactors list)")
    if not named:
        raise NoSuchJob(f"there is no job {wanted!r}. What runs:{_lines(jobs)}")
    which = "several jobs run" if wanted is None else f"{len(named)} jobs are called {wanted!r}"
    raise AmbiguousJob(f"{which}: name one of them by its process id or its storage, or by its name:{_lines(named)}")


def _names(job: Findable) -> tuple[str | None, ...]:
    return job.entry.flow, str(job.entry.pid), job.entry.storage


def _stored_at(folder: str | None, jobs: Sequence[J]) -> list[J]:
    """By the path that was given as storage; a name without a slash would be taken for a folder too easily."""
    if folder is None or "/" not in folder:
        return []
    try:
        uri = redacted(normalise_uri(folder))
    except InvalidConfig:
        return []
    return [job for job in jobs if job.entry.storage == uri]


def _lines(jobs: Sequence[Findable]) -> str:
    return "".join(f"\n  {job}" for job in jobs)


def _entries(folder: Path, directory: int) -> Iterator[RunningJob]:
    for name in os.listdir(directory):
        if (job := _read(folder, directory, name)) is not None:
            yield job


def _read(folder: Path, directory: int, name: str) -> RunningJob | None:
    """None for what is no entry, is not told of yet, or is stale, which is removed."""
    id, suffix = os.path.splitext(name)
    if suffix != _ENTRY:
        return None
    try:
        entry = os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=directory)
    except FileNotFoundError:
        return None  # it has just ended
    try:
        if not _is_held(entry):
            if os.fstat(entry).st_nlink:  # else another has removed it, and its name may be that of a new one
                _remove(directory, id)
            return None
        return RunningJob(msgspec.json.decode(os.read(entry, 1 << 16), type=Entry), str(folder / (id + _SOCKET)))
    except msgspec.DecodeError:
        return None
    finally:
        os.close(entry)


def _is_held(entry: int) -> bool:
    try:
        fcntl.flock(entry, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


# ------------------------------------------------------------------------------------------------------------- folders
def _folders() -> list[Path]:
    """Where entries may lie. A job that was started without XDG_RUNTIME_DIR (by cron, or as a service) is in the
    temporary folder, so that one is always looked into."""
    if sys.platform == "win32":
        raise ControlUnavailable("asyncio serves no Unix domain sockets on Windows")
    runtime = _session_folder() or f"/run/user/{os.geteuid()}"
    return [Path(runtime) / "streamactors", _temporary_folder()]


def _session_folder() -> str | None:
    folder = os.environ.get("XDG_RUNTIME_DIR", "")
    return folder if os.path.isabs(folder) else None


def _temporary_folder() -> Path:
    try:
        temporary = tempfile.gettempdir()
    except FileNotFoundError:  # none that can be written to, as in a container whose files are read-only
        temporary = "/tmp"
    return Path(temporary) / f"streamactors-{os.geteuid()}"


def _folder_to_write(stack: ExitStack) -> tuple[Path, int]:
    refused = []
    # The session's folder goes away with the user's last session: used only where the session itself says so.
    for folder in _folders() if _session_folder() else [_temporary_folder()]:
        try:
            _check_length(folder)
            return folder, stack.enter_context(_opened(folder, create=True))
        except (ControlUnavailable, OSError) as error:
            refused.append(str(error))
    raise ControlUnavailable("; ".join(refused))


def _check_length(folder: Path) -> None:
    if len(os.fsencode(folder)) + 1 + _ID_LENGTH + len(_SOCKET) > LONGEST_SOCKET_PATH:
        raise ControlUnavailable(f"{folder} is too long for a socket's path: set XDG_RUNTIME_DIR to another folder")


@contextmanager
def _opened(folder: Path, *, create: bool) -> Iterator[int]:
    """Its descriptor. Raises ControlUnavailable for one that others could have prepared, FileNotFoundError."""
    _check_parent(folder.parent, folder.parent.stat())
    if create:
        with suppress(FileExistsError):
            os.mkdir(folder, 0o700)
    try:
        directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except (NotADirectoryError, PermissionError) as error:
        raise ControlUnavailable(f"{folder} is a link, or no folder of yours ({error.strerror}): remove it") from None
    try:
        _check_private(folder, os.fstat(directory))
        yield directory
    finally:
        os.close(directory)


def _check_private(folder: Path, found: os.stat_result) -> None:
    if found.st_uid != os.geteuid():
        raise ControlUnavailable(f"{folder} belongs to another user ({found.st_uid}): it is not used")
    if (mode := stat.S_IMODE(found.st_mode)) & 0o077:
        raise ControlUnavailable(f"{folder} is open to other users (mode {mode:o}): chmod 700 {folder}")


def _check_parent(parent: Path, found: os.stat_result) -> None:
    """Where everybody may write, only a sticky folder keeps others from putting theirs in place of ours. Its owner may
    as well: after a plain `su`, XDG_RUNTIME_DIR is that of the user before."""
    if found.st_mode & stat.S_ISVTX:
        return
    if found.st_uid not in (0, os.geteuid()):
        raise ControlUnavailable(f"{parent} belongs to another user ({found.st_uid}): it is not used")
    if found.st_mode & stat.S_IWOTH:
        raise ControlUnavailable(f"{parent} lets everybody replace what is in it: chmod +t {parent}")
