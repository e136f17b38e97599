"""`streamactors demo`: what the viewer sees of it."""

import contextlib
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import msgspec
from rich.console import Console
from rich.live import Live
from rich.text import Text

from streamactors.cli.live import table
from streamactors.cli.printing import print_json_line
from streamactors.cli.progress import Progress, as_line
from streamactors.clock import SYSTEM
from streamactors.demo.check import Verdict
from streamactors.demo.crash import Killed, Reported, Scene, Told, play
from streamactors.errors import InvalidConfig

SECONDS_BETWEEN_LINES = 1.0


def show(
    events: int, keep: Path | None, *, as_json: bool = False, then: Callable[[Path], object] = lambda _: None
) -> bool:
    """Whether every result was there exactly once. `keep`: a new folder for all files, which otherwise are removed.
    `then` goes on in it, if so."""
    if keep is not None:
        if keep.exists() and any(keep.iterdir()):
            raise InvalidConfig(f"--keep {keep}: the folder is not empty; name a new one")
        keep.mkdir(parents=True, exist_ok=True)
        return _show(keep.absolute(), events, then, as_json=as_json)
    folder = Path(tempfile.mkdtemp(prefix="streamactors-demo-"))
    equal = True
    try:
        equal = _show(folder, events, then, as_json=as_json)
    finally:
        if equal:
            shutil.rmtree(folder, ignore_errors=True)
    return equal


def _show(folder: Path, events: int, then: Callable[[Path], object], *, as_json: bool) -> bool:
    stage = _stage(Console(highlight=False), as_json=as_json)
    equal = False
    with stage, contextlib.closing(play(folder, events)) as scenes:
        for scene in scenes:
            stage.show(scene)
            equal = isinstance(scene, Verdict) and scene.equal
    if equal:
        then(folder)
    return equal


class Stage(ABC):
    """Shows one scene after another."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        return None

    def show(self, scene: Scene) -> None:
        match scene:
            case Told(text):
                self._say(Text(text))
            case Killed(pid, records):
                text = f"SIGKILL to process {pid}, in the middle: it had read {records:,} orders"
                self._say(Text(text, style="bold red"))
            case Verdict():
                self._say(Text(str(scene), style="bold green" if scene.equal else "bold red"))
            case Reported(report):
                self._progress(msgspec.convert(report, Progress))

    def _say(self, text: Text) -> None:
        self._console.print(text, soft_wrap=True)

    @abstractmethod
    def _progress(self, progress: Progress) -> None: ...


def _stage(console: Console, *, as_json: bool) -> Stage:
    if as_json:
        return JsonStage(console)
    return TerminalStage(console) if console.is_terminal else PlainStage(console)


class JsonStage(Stage):
    """An object a line."""

    def show(self, scene: Scene) -> None:
        match scene:
            case Told(text):
                self._object("told", {"text": text})
            case Killed(pid, records):
                self._object("killed", {"pid": pid, "records": records})
            case Verdict():
                self._object("verdict", {"equal": scene.equal, "text": str(scene)})
            case Reported(report):
                self._object("progress", report)

    def _object(self, scene: str, content: Mapping[str, Any]) -> None:
        print_json_line({"scene": scene, **content})

    def _progress(self, progress: Progress) -> None:
        self._object("progress", msgspec.to_builtins(progress))


class PlainStage(Stage):
    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._last = SYSTEM.monotonic()

    def _progress(self, progress: Progress) -> None:
        if (now := SYSTEM.monotonic()) >= self._last + SECONDS_BETWEEN_LINES:
            self._last = now
            self._say(Text(f"  {as_line(progress)}"))


class TerminalStage(Stage):
    """One table, always at the bottom; what it showed last of each process stays."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._live: Live | None = None

    def __exit__(self, *raised: object) -> None:
        self._freeze()

    def _say(self, text: Text) -> None:
        self._freeze()
        super()._say(text)

    def _freeze(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _progress(self, progress: Progress) -> None:
        if self._live is None:
            self._live = Live(console=self._console, auto_refresh=False)
            self._live.start()
        self._live.update(table(progress), refresh=True)
