"""How a job runs: value objects that are checked when they are made, and what lays their sources over each other.

Durations are `datetime.timedelta`. Every error is InvalidConfig and names the setting by its dotted name, as TOML,
environment and flags have it.
"""

import dataclasses
import datetime as dt
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from os import PathLike
from typing import Any, ClassVar, Literal, Protocol

from streamactors.durations import EXPECTED as EXPECTED_DURATION
from streamactors.durations import format_duration, parse_duration
from streamactors.errors import InvalidConfig
from streamactors.settings import (
    Given,
    Layer,
    layer_of_environ,
    layer_of_flags,
    layer_of_toml,
    redacted,
    refuse_unknown,
)

MAX_KEY_GROUPS = 32768
OPTIONS = "storage_options"


class StateBackend(Protocol):
    """Where keyed state lives; settings only."""

    @property
    def name(self) -> str: ...


@dataclass(frozen=True, kw_only=True)
class Heap(StateBackend):
    """Keyed state in Python dictionaries. `incremental`: a checkpoint holds only the key groups that may have changed
    since the last one, and refers to earlier ones for the rest, unless `Checkpoints.incremental` is off; `full_every`:
    to none that is so many checkpoints old, so that all is written at least so often."""

    name: ClassVar[str] = "heap"
    incremental: bool = False
    full_every: int = 10

    def __post_init__(self) -> None:
        _check_type("Heap.incremental", self.incremental, bool, "True or False")
        _check_whole("Heap.full_every", self.full_every, remedy="checkpoints")


@dataclass(frozen=True, kw_only=True)
class RocksDB(StateBackend):
    """Keyed state in RocksDB on the local disk, larger than memory. `folder`: where its files lie while the job runs
    (None: where temporary files go); `memory`: bytes for all of it in this process, but for `cache` decoded entries per
    operator subtask. What a checkpoint holds, either backend restores."""

    name: ClassVar[str] = "rocksdb"
    folder: str | None = None
    memory: int = 256 << 20
    cache: int = 100_000

    def __post_init__(self) -> None:
        if self.folder is not None:
            _check_text("RocksDB.folder", self.folder, "a folder on a local disk")
        _check_whole("RocksDB.memory", self.memory, least=4 << 20, remedy="bytes")
        _check_whole("RocksDB.cache", self.cache, least=16, remedy="entries")


class Deployment(Protocol):
    """Where subtasks run; settings only."""

    @property
    def name(self) -> str: ...


@dataclass(frozen=True)
class Local(Deployment):
    """All subtasks in this process, on the loop that starts the job."""

    name: ClassVar[str] = "local"


PATIENCE = dt.timedelta(seconds=60)
_RAY_SPELLS = {"cpu": "CPU", "gpu": "GPU"}


@dataclass(frozen=True, kw_only=True, repr=False)
class Ray(Deployment):
    """Subtasks over `workers` processes on Ray. `address`: a cluster to join, such as "auto" or "10.0.0.1:6379"; None:
    a Ray of this machine alone, which ends with the job. `resources`: what each worker takes of a node, in Ray's names
    ({"CPU": 1} by default). `patience`: how long to wait for workers, such as while a cluster grows. `strategy`:
    "spread" (every step over all workers) or "pack" (as few workers as will do). `slots`: subtasks of each step that
    one worker takes at most; None: as many as come to it."""

    name: ClassVar[str] = "ray"
    workers: int
    address: str | None = None
    resources: Mapping[str, float] | None = None
    patience: dt.timedelta = PATIENCE
    strategy: Literal["spread", "pack"] = "spread"
    slots: int | None = None

    def __post_init__(self) -> None:
        _check_whole("ray.workers", self.workers)
        _check_choice("ray.strategy", self.strategy, ("spread", "pack"))
        if self.slots is not None:
            _check_whole("ray.slots", self.slots)
        if self.address is not None:
            _check_text("ray.address", self.address, "the address of a Ray cluster, such as 'auto' or '10.0.0.1:6379'")
        if self.resources is not None:
            object.__setattr__(self, "resources", _ray_resources(self.resources))
        _check_duration("ray.patience", self.patience, positive=True)

    @property
    def each(self) -> Mapping[str, float]:
        """What one worker takes."""
        return {"CPU": 1.0, **(self.resources or {})}

    @property
    def room(self) -> int | None:
        """For so many subtasks of one step; None: for any number."""
        return None if self.slots is None else self.workers * self.slots

    def __hash__(self) -> int:
        rest = self.address, self.patience, self.strategy, self.slots
        return hash((self.workers, frozenset(self.each.items()), *rest))

    def __repr__(self) -> str:
        given = {name: getattr(self, name) for name in _differing(self)}
        return f"Ray({', '.join(f'{name}={_shown(value)}' for name, value in given.items())})"


def _ray_resources(given: object) -> Mapping[str, float]:
    """As Ray spells them: from the environment, names come in small letters."""
    if not isinstance(given, Mapping):
        raise _invalid("ray.resources", given, "must be a dict, such as {'CPU': 2, 'GPU': 0.5}")
    for name, amount in given.items():
        if not isinstance(amount, int | float) or isinstance(amount, bool) or not 0 <= amount < float("inf"):
            raise _invalid(f"ray.resources.{name}", amount, "must be a number, at least 0")
    return {_RAY_SPELLS.get(str(name), str(name)): float(amount) for name, amount in given.items()}


class Restart:
    """What follows the failure of an attempt: another one, after which delay; or the end of the job."""

    strategy: ClassVar[str]

    @classmethod
    def none(cls) -> "Restart":
        return NoRestart()

    @classmethod
    def fixed(cls, delay: dt.timedelta, attempts: int) -> "Restart":
        """At most `attempts` restarts in the job's life."""
        return FixedDelay(delay, attempts)

    @classmethod
    def exponential(
        cls,
        initial: dt.timedelta = dt.timedelta(seconds=1),
        maximum: dt.timedelta = dt.timedelta(minutes=1),
        *,
        jitter: float = 0.1,
        reset_after: dt.timedelta = dt.timedelta(hours=1),
    ) -> "Restart":
        """Without end; the delay doubles up to `maximum`, give or take the share `jitter`. An attempt that has run for
        `reset_after` begins again with `initial`."""
        return ExponentialDelay(initial, maximum, jitter=jitter, reset_after=reset_after)

    @classmethod
    def failure_rate(cls, failures: int, per: dt.timedelta, delay: dt.timedelta) -> "Restart":
        """As long as no more than `failures` fall within `per`."""
        return FailureRate(failures, per, delay)


@dataclass(frozen=True, slots=True)
class NoRestart(Restart):
    strategy: ClassVar[str] = "none"


@dataclass(frozen=True, slots=True)
class FixedDelay(Restart):
    strategy: ClassVar[str] = "fixed"
    delay: dt.timedelta
    attempts: int

    def __post_init__(self) -> None:
        _check_duration("restart.delay", self.delay)
        _check_whole("restart.attempts", self.attempts, remedy="use Restart.none() for no restart")


@dataclass(frozen=True, slots=True)
class ExponentialDelay(Restart):
    strategy: ClassVar[str] = "exponential"
    initial: dt.timedelta = dt.timedelta(seconds=1)
    maximum: dt.timedelta = dt.timedelta(minutes=1)
    _: KW_ONLY
    jitter: float = 0.1
    reset_after: dt.timedelta = dt.timedelta(hours=1)

    def __post_init__(self) -> None:
        _check_duration("restart.initial", self.initial, positive=True)
        _check_duration("restart.maximum", self.maximum, positive=True)
        _check_duration("restart.reset_after", self.reset_after)
        _check_share("restart.jitter", self.jitter)
        if self.maximum < self.initial:
            least = f"must be at least restart.initial ({_shown(self.initial)})"
            raise _invalid("restart.maximum", self.maximum, least)


@dataclass(frozen=True, slots=True)
class FailureRate(Restart):
    strategy: ClassVar[str] = "failure-rate"
    failures: int
    per: dt.timedelta
    delay: dt.timedelta

    def __post_init__(self) -> None:
        _check_whole("restart.failures", self.failures, remedy="use Restart.none() for no restart")
        _check_duration("restart.per", self.per, positive=True)
        _check_duration("restart.delay", self.delay)


@dataclass(frozen=True, slots=True, repr=False)
class Checkpoints:
    """Files lie under `<storage>/<flow name>/`.

    `alignment` "unaligned": barriers overtake records, which are then stored as in flight; `alignment_timeout`: they do
    so once a checkpoint has not been aligned for so long (0: at once). Both need exactly-once (Flink: unaligned
    checkpoints). `timeout` counts from the trigger, as does `alignment_timeout`; `min_pause` from the end of one to the
    trigger of the next; `tolerable_failures` in a row; `retain` counts complete checkpoints. `storage_options`: what
    the file system behind an object store's URI takes (docs/storage.md); never shown.
    """

    storage: str
    _: KW_ONLY
    interval: dt.timedelta
    mode: Literal["exactly-once", "at-least-once"] = "exactly-once"
    alignment: Literal["aligned", "unaligned"] = "aligned"
    alignment_timeout: dt.timedelta | None = None
    timeout: dt.timedelta = dt.timedelta(minutes=10)
    min_pause: dt.timedelta = dt.timedelta(0)
    max_concurrent: int = 1
    tolerable_failures: int = 0
    retain: int = 3
    incremental: bool = True
    storage_options: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        _check_text("checkpoints.storage", self.storage, "a URI such as 'file:///var/lib/orders'")
        _check_duration("checkpoints.interval", self.interval, positive=True)
        _check_choice("checkpoints.mode", self.mode, ("exactly-once", "at-least-once"))
        _check_choice("checkpoints.alignment", self.alignment, ("aligned", "unaligned"))
        if self.alignment_timeout is not None:
            _check_duration("checkpoints.alignment_timeout", self.alignment_timeout)
        self._check_alignment()
        _check_duration("checkpoints.timeout", self.timeout, positive=True)
        _check_duration("checkpoints.min_pause", self.min_pause)
        _check_whole("checkpoints.max_concurrent", self.max_concurrent)
        _check_whole("checkpoints.tolerable_failures", self.tolerable_failures, least=0)
        _check_whole("checkpoints.retain", self.retain, remedy="the latest checkpoint is always kept")
        _check_type("checkpoints.incremental", self.incremental, bool, "True or False")
        if self.storage_options is not None and not isinstance(self.storage_options, Mapping):
            raise InvalidConfig("checkpoints.storage_options: it must be a dict, such as {'endpoint_url': …}")

    def _check_alignment(self) -> None:
        if self.mode == "at-least-once" and self.may_overtake:
            name = "alignment" if self.alignment == "unaligned" else "alignment_timeout"
            raise InvalidConfig(
                f"checkpoints.{name} = {_shown(getattr(self, name))}: with mode = 'at-least-once' nothing waits for an "
                "alignment, so there is nothing to overtake: leave it out, or use mode = 'exactly-once'"
            )
        if self.alignment == "unaligned" and self.alignment_timeout is not None:
            raise InvalidConfig(
                f"checkpoints.alignment_timeout = {_shown(self.alignment_timeout)}: with alignment = 'unaligned' "
                "barriers overtake at once: leave it out, or use alignment = 'aligned', which turns unaligned after it"
            )

    @property
    def may_overtake(self) -> bool:
        """Whether a barrier may go ahead of records, which are then in flight."""
        return self.alignment == "unaligned" or self.alignment_timeout is not None

    def __repr__(self) -> str:
        shown = {name: getattr(self, name) for name in _differing(self) if name != "storage"}
        settings = [f"{name}={_shown(value) if name == OPTIONS else repr(value)}" for name, value in shown.items()]
        return f"Checkpoints({', '.join([repr(redacted(self.storage)), *settings])})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Autoscale:
    """Rescale the job by itself, so that each step is busy for about the share `target` of its time.

    A step is left alone while what it has to do lies within `target` ± `tolerance`. It is looked at `every` so often,
    over the last `window`; gets more subtasks at once, and fewer when it has needed fewer for `scale_down_after`, by no
    more than `max_factor` at a time; rests for `cooldown` after each rescale, which is a pause for the job. What waits
    at a source that tells it (Kafka, the queue) is to be worked off within `catch_up` (0: it counts for nothing).
    `steps`: by uid, the only ones that are changed; those to which the flow gives `parallelism=1` never are. `dry_run`
    only logs. Needs checkpoints."""

    target: float = 0.7
    tolerance: float = 0.2
    min_parallelism: int = 1
    max_parallelism: int | None = None
    steps: Sequence[str] | None = None
    every: dt.timedelta = dt.timedelta(seconds=10)
    window: dt.timedelta = dt.timedelta(minutes=1)
    cooldown: dt.timedelta = dt.timedelta(minutes=2)
    scale_down_after: dt.timedelta = dt.timedelta(minutes=5)
    catch_up: dt.timedelta = dt.timedelta(minutes=10)
    max_factor: float = 3.0
    dry_run: bool = False

    def __post_init__(self) -> None:
        _check_share("autoscale.target", self.target)
        _check_share("autoscale.tolerance", self.tolerance)
        if not 0 < self.tolerance < self.target or self.target + self.tolerance > 1:
            band = f"must leave room on both sides of autoscale.target ({self.target}), between 0 and 1"
            raise _invalid("autoscale.tolerance", self.tolerance, band)
        _check_whole("autoscale.min_parallelism", self.min_parallelism)
        if self.max_parallelism is not None:
            _check_whole("autoscale.max_parallelism", self.max_parallelism, least=self.min_parallelism)
        if self.steps is not None:
            object.__setattr__(self, "steps", _names("autoscale.steps", self.steps))
        for name in ("every", "window"):
            _check_duration(f"autoscale.{name}", getattr(self, name), positive=True)
        for name in ("cooldown", "scale_down_after", "catch_up"):
            _check_duration(f"autoscale.{name}", getattr(self, name))
        _check_factor("autoscale.max_factor", self.max_factor)
        _check_type("autoscale.dry_run", self.dry_run, bool, "True or False")


def _names(name: str, given: object) -> tuple[str, ...]:
    steps = () if isinstance(given, str) or not isinstance(given, Sequence) else tuple(given)
    if not steps or not all(isinstance(step, str) and step for step in steps):
        raise _invalid(name, given, "must be a list of steps by uid, such as ['totals']")
    return steps


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Also from TOML (`Config.from_toml`) and environment (`STREAMACTORS_CHECKPOINTS__INTERVAL=10s`).

    `parallelism` is that of every step which doesn't set its own; `mailbox_capacity` counts records;
    `max_parallelism` bounds every later rescale. For execution="batch": `sort_memory` is about how many bytes of input
    all stages together sort in memory; what is more goes to files in `sort_folder` (None: where temporary files go).
    """

    parallelism: int = 1
    max_parallelism: int | None = None
    mailbox_capacity: int = 4096
    execution: Literal["streaming", "batch", "auto"] = "streaming"
    state_backend: Literal["heap", "rocksdb"] | StateBackend = "heap"
    checkpoints: Checkpoints | None = None
    restart: Restart | None = None
    deployment: Deployment | None = None
    sort_memory: int = 512 << 20
    sort_folder: str | None = None
    autoscale: Autoscale | None = None

    def __post_init__(self) -> None:
        _check_whole("parallelism", self.parallelism)
        if self.max_parallelism is not None:
            _check_max_parallelism(self.max_parallelism, self.parallelism)
        _check_whole("mailbox_capacity", self.mailbox_capacity)
        _check_choice("execution", self.execution, ("streaming", "batch", "auto"))
        _check_whole("sort_memory", self.sort_memory, least=1 << 10, remedy="bytes")
        if self.sort_folder is not None:
            _check_text("sort_folder", self.sort_folder, "a folder on a local disk")
        if isinstance(self.state_backend, str):
            _check_choice("state_backend", self.state_backend, ("heap", "rocksdb"))
        else:
            _check_instance("state_backend", self.state_backend, "'heap', 'rocksdb' or an instance such as RocksDB()")
        if self.deployment is not None:
            _check_instance("deployment", self.deployment, "an instance such as Local()")
        if self.checkpoints is not None:
            _check_type("checkpoints", self.checkpoints, Checkpoints, "Checkpoints('file:///…', interval=…)")
        if self.restart is not None:
            _check_type("restart", self.restart, tuple(_STRATEGIES.values()), "such as Restart.fixed(delay, attempts)")
        if self.autoscale is not None:
            _check_type("autoscale", self.autoscale, Autoscale, "Autoscale() or None")
            self._check_autoscale(self.autoscale)

    def _check_autoscale(self, autoscale: Autoscale) -> None:
        if self.checkpoints is None and not autoscale.dry_run:
            raise InvalidConfig(
                "autoscale: a job is rescaled from a checkpoint, and these are off: give "
                "Config(checkpoints=Checkpoints(storage, interval=…)), or Autoscale(dry_run=True), which only logs"
            )

    @classmethod
    def from_toml(cls, path: str | PathLike[str]) -> "Config":
        """Raises InvalidConfig for an unknown key, and for a `"${env:NAME}"` whose variable is not set."""
        return _build(_parsed(layer_of_toml(path, os.environ)))

    @property
    def effective_restart(self) -> Restart:
        """`restart`, or what stands for None: exponential under checkpoints, else none."""
        return self.restart or (Restart.none() if self.checkpoints is None else Restart.exponential())


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting of a resolved Config, for people: `value` is text without secrets, `origin` says who gave it."""

    name: str
    value: str
    origin: str


def resolve(
    module: Config | None = None,
    toml: str | PathLike[str] | None = None,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, str] | None = None,
) -> tuple[Config, list[Setting]]:
    """Lay flags over environment over the TOML file over the module's Config over the defaults.

    Settings go one by one: the environment may change nothing but the interval of a module's Checkpoints. Another
    restart strategy than the one below drops that one's settings. `environ` also serves `${env:NAME}` in TOML.
    """
    environ = environ or {}
    layers = [
        _layer_of_module(module) if module else {},
        _parsed(layer_of_toml(toml, environ)) if toml else {},
        _parsed(layer_of_environ(environ)),
        _parsed(layer_of_flags(flags or {})),
    ]
    merged = _merged(layers)
    try:
        config = _build(merged)
    except InvalidConfig as error:
        raise InvalidConfig(f"{error}{_origin_of(str(error), merged)}") from error
    return config, _settings(config, merged)


def shown(config: Config) -> list[Setting]:
    """Every setting that is in force, as text and without secrets."""
    return _settings(config, _layer_of_module(config))


def _known_backend(config: Config) -> bool:
    return isinstance(config.state_backend, str | Heap | RocksDB)


def _known_deployment(config: Config) -> bool:
    return isinstance(config.deployment, Local | Ray | None)


def unsupported(config: Config) -> list[str]:
    """What `config` asks for and this version has not, each with the way round; empty if all is there."""
    found: dict[str, tuple[object, bool, str]] = {
        "state_backend": (config.state_backend, _known_backend(config), "use 'heap' or 'rocksdb'"),
        "deployment": (config.deployment, _known_deployment(config), "use Local() or Ray(…)"),
    }
    return [
        f"{name} = {_shown(value)} is not available in this version: {remedy}"
        for name, (value, supported, remedy) in found.items()
        if not supported
    ]


def require_supported(config: Config) -> None:
    """Raise InvalidConfig with all that `unsupported` finds."""
    if problems := unsupported(config):
        raise InvalidConfig("; ".join(problems))


# ------------------------------------------------------------------------------------------------------------ checks


def _invalid(name: str, value: object, problem: str) -> InvalidConfig:
    return InvalidConfig(f"{name} = {_shown(value)}: it {problem}")


def _check_whole(name: str, value: object, least: int = 1, remedy: str = "") -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise _invalid(name, value, f"must be a whole number, at least {least}{'; ' if remedy else ''}{remedy}")


def _check_max_parallelism(value: int, parallelism: int) -> None:
    _check_whole("max_parallelism", value)
    if value > MAX_KEY_GROUPS:
        raise _invalid("max_parallelism", value, f"must be at most {MAX_KEY_GROUPS}")
    if value < parallelism:
        raise _invalid("max_parallelism", value, f"must be at least parallelism ({parallelism})")


def _check_duration(name: str, value: object, *, positive: bool = False) -> None:
    if not isinstance(value, dt.timedelta):
        raise _invalid(name, value, "must be a datetime.timedelta, such as dt.timedelta(seconds=10)")
    if value < dt.timedelta(0) or (positive and not value):
        raise _invalid(name, value, "must be longer than zero" if positive else "must not be negative")


def _check_share(name: str, value: object) -> None:
    if not isinstance(value, int | float) or not 0 <= value <= 1:
        raise _invalid(name, value, "must be a number from 0 to 1")


def _check_factor(name: str, value: object) -> None:
    if not isinstance(value, int | float) or not 1 < value < float("inf"):
        raise _invalid(name, value, "must be a number above 1")


def _check_text(name: str, value: object, expected: str) -> None:
    if not isinstance(value, str) or not value.strip():
        raise _invalid(name, value, f"must be {expected}")


def _check_type(name: str, value: object, types: type | tuple[type, ...], expected: str) -> None:
    if not isinstance(value, types):
        raise _invalid(name, value, f"must be {expected}")


def _check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        raise _invalid(name, value, f"must be one of {', '.join(map(repr, choices))}")


def _check_instance(name: str, value: object, expected: str) -> None:
    if isinstance(value, type) or not isinstance(getattr(value, "name", None), str):
        raise _invalid(name, value, f"must be {expected}")


def _shown(value: object) -> str:
    """A value as errors and the command line show it, without secrets."""
    if isinstance(value, dt.timedelta):
        return f"-{format_duration(-value)}" if value < dt.timedelta(0) else format_duration(value)
    if isinstance(value, tuple):
        return repr(", ".join(map(str, value)))
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{name!r}: {HIDDEN}' for name in value)}}}"
    return repr(redacted(value)) if isinstance(value, str) else repr(value)


# ------------------------------------------------------------------------------------------- from text, layer by layer


@dataclass(frozen=True, slots=True)
class _Kind:
    """What a setting's text must be; `parse` raises ValueError or TypeError for another."""

    expected: str
    parse: Callable[[Any], object]


def _parse_whole(value: Any) -> int:
    if isinstance(value, bool | float):
        raise TypeError
    return int(value)


def _parse_number(value: Any) -> float:
    if isinstance(value, bool):
        raise TypeError
    return float(value)


def _parse_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    return {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}[
        value.lower()
    ]


def _parse_text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _parse_names(value: Any) -> tuple[str, ...]:
    if isinstance(value, list | tuple):
        return tuple(map(_parse_text, value))
    return tuple(name.strip() for name in _parse_text(value).split(",") if name.strip())


def _parse_duration(value: Any) -> dt.timedelta:
    return parse_duration(_parse_text(value))


def _one_of(*choices: str) -> _Kind:
    by_spelling = {spelling: choice for choice in choices for spelling in (choice, choice.replace("-", "_"))}
    return _Kind(f"one of {', '.join(map(repr, choices))}", lambda value: by_spelling[value])


_WHOLE = _Kind("a whole number", _parse_whole)
_NUMBER = _Kind("a number", _parse_number)
_BOOL = _Kind("true or false", _parse_bool)
_TEXT = _Kind("text", _parse_text)
_DURATION = _Kind(EXPECTED_DURATION, _parse_duration)
_NAMES = _Kind("names, separated by commas", _parse_names)

_STRATEGIES: dict[str, type[Restart]] = {
    NoRestart.strategy: NoRestart,
    FixedDelay.strategy: FixedDelay,
    ExponentialDelay.strategy: ExponentialDelay,
    FailureRate.strategy: FailureRate,
}

KNOWN: dict[str, _Kind] = {
    "parallelism": _WHOLE,
    "max_parallelism": _WHOLE,
    "mailbox_capacity": _WHOLE,
    "execution": _one_of("streaming", "batch", "auto"),
    "sort_memory": _WHOLE,
    "sort_folder": _TEXT,
    "state_backend": _one_of("heap", "rocksdb"),
    "deployment": _one_of("local", "ray"),
    "ray.workers": _WHOLE,
    "ray.address": _TEXT,
    "ray.patience": _DURATION,
    "ray.strategy": _one_of("spread", "pack"),
    "ray.slots": _WHOLE,
    "checkpoints.storage": _TEXT,
    "checkpoints.interval": _DURATION,
    "checkpoints.mode": _one_of("exactly-once", "at-least-once"),
    "checkpoints.alignment": _one_of("aligned", "unaligned"),
    "checkpoints.alignment_timeout": _DURATION,
    "checkpoints.timeout": _DURATION,
    "checkpoints.min_pause": _DURATION,
    "checkpoints.max_concurrent": _WHOLE,
    "checkpoints.tolerable_failures": _WHOLE,
    "checkpoints.retain": _WHOLE,
    "checkpoints.incremental": _BOOL,
    "restart.strategy": _one_of(*_STRATEGIES),
    "restart.delay": _DURATION,
    "restart.attempts": _WHOLE,
    "restart.initial": _DURATION,
    "restart.maximum": _DURATION,
    "restart.jitter": _NUMBER,
    "restart.reset_after": _DURATION,
    "restart.failures": _WHOLE,
    "restart.per": _DURATION,
    "autoscale.target": _NUMBER,
    "autoscale.tolerance": _NUMBER,
    "autoscale.min_parallelism": _WHOLE,
    "autoscale.max_parallelism": _WHOLE,
    "autoscale.steps": _NAMES,
    "autoscale.every": _DURATION,
    "autoscale.window": _DURATION,
    "autoscale.cooldown": _DURATION,
    "autoscale.scale_down_after": _DURATION,
    "autoscale.catch_up": _DURATION,
    "autoscale.max_factor": _NUMBER,
    "autoscale.dry_run": _BOOL,
}
"""Every setting by its dotted name, as TOML, environment and flags have it."""


_OPTION = f"checkpoints.{OPTIONS}."
_RESOURCE = "ray.resources."
HIDDEN = "***"


def _parsed(layer: Layer) -> Layer:
    """A layer's texts as typed values. The storage's options are the file system's own, and may be secrets."""
    options = {name: given for name, given in layer.items() if name.startswith(_OPTION)}
    layer = {name: given for name, given in layer.items() if name not in options}
    refuse_unknown({name: given for name, given in layer.items() if not name.startswith(_RESOURCE)}, KNOWN)
    return {name: _parse(name, given) for name, given in layer.items()} | {
        name: Given({"true": True, "false": False}.get(str(given.value).lower(), given.value), HIDDEN, given.origin)
        for name, given in options.items()
    }


def _parse(name: str, given: Given) -> Given:
    kind = _NUMBER if name.startswith(_RESOURCE) else KNOWN[name]
    try:
        value = kind.parse(given.value)
    except (ValueError, TypeError, KeyError, AttributeError):
        # Not chained: the cause would show the text, which may be a secret.
        raise InvalidConfig(f"{name} = {given.shown} (from {given.origin}): it must be {kind.expected}") from None
    return Given(value, given.shown, given.origin)


def _layer_of_module(config: Config) -> Layer:
    """What a Config sets. What equals the default is left to the default."""
    values: dict[str, object] = {name: getattr(config, name) for name in _differing(config)}
    checkpoints, restart = values.pop("checkpoints", None), values.pop("restart", None)
    if isinstance(checkpoints, Checkpoints):
        values |= {f"checkpoints.{name}": getattr(checkpoints, name) for name in _differing(checkpoints)}
        options = values.pop(f"checkpoints.{OPTIONS}", None)
        values |= {_OPTION + name: value for name, value in options.items()} if isinstance(options, Mapping) else {}
    if isinstance(restart, Restart):
        values["restart.strategy"] = restart.strategy
        values |= {f"restart.{field.name}": getattr(restart, field.name) for field in _fields(restart)}
    if isinstance(autoscale := values.pop("autoscale", None), Autoscale):  # of which any setting turns it on
        values |= {f"autoscale.{name}": getattr(autoscale, name) for name in ("target", *_differing(autoscale))}
    if isinstance(deployment := values.get("deployment"), Ray):
        values |= {f"ray.{name}": getattr(deployment, name) for name in _differing(deployment)}
        values["deployment"] = Ray.name
        resources: Any = values.pop("ray.resources", None) or {}
        values |= {_RESOURCE + name: amount for name, amount in resources.items()}
    return {
        name: Given(value, HIDDEN if name.startswith(_OPTION) else _shown(value), "module")
        for name, value in values.items()
    }


def _merged(layers: Sequence[Layer]) -> Layer:
    """The later layer wins, setting by setting."""
    merged: Layer = {}
    for layer in layers:
        if _strategy(layer) not in (None, _strategy(merged)):
            merged = {name: given for name, given in merged.items() if not name.startswith("restart.")}
        if _deployment(layer) not in (None, _deployment(merged)):
            merged = {name: given for name, given in merged.items() if not name.startswith("ray.")}
        merged |= layer
    return merged


def _strategy(layer: Layer) -> object:
    return layer["restart.strategy"].value if "restart.strategy" in layer else None


def _deployment(layer: Layer) -> object:
    return layer["deployment"].value if "deployment" in layer else None


def _build(layer: Layer) -> Config:
    tables: dict[str, dict[str, Any]] = {"": {}, "checkpoints": {}, "restart": {}, "ray": {}, "ray.resources": {}}
    tables["autoscale"] = {}
    for name, given in layer.items():
        if name.startswith(_OPTION):
            _put_option(tables["checkpoints"].setdefault(OPTIONS, {}), name.removeprefix(_OPTION), given.value)
        else:
            table, _, leaf = name.rpartition(".")
            tables[table][leaf] = given.value
    settings = tables[""]
    if settings.get("deployment") == Local.name:
        settings["deployment"] = Local()
    if settings.get("deployment") == Ray.name:
        _refuse_missing("ray", Ray, tables["ray"])
        settings["deployment"] = Ray(**tables["ray"], resources=tables["ray.resources"] or None)
    elif foreign := next((name for name in layer if name.startswith("ray.")), None):
        raise InvalidConfig(f"{foreign} = {layer[foreign].shown}: it goes with deployment = 'ray'")
    if tables["checkpoints"]:
        _refuse_missing("checkpoints", Checkpoints, tables["checkpoints"])
        settings["checkpoints"] = Checkpoints(**tables["checkpoints"])
    if tables["restart"]:
        settings["restart"] = _build_restart(tables["restart"])
    if tables["autoscale"]:
        settings["autoscale"] = Autoscale(**tables["autoscale"])
    return Config(**settings)


def _put_option(options: dict[str, Any], name: str, value: object) -> None:
    """`client_kwargs.region_name` goes into the table `client_kwargs`, a copy of what a layer below may have given."""
    first, dot, rest = name.partition(".")
    if not dot:
        options[first] = value
        return
    options[first] = dict(options[first]) if isinstance(options.get(first), Mapping) else {}
    _put_option(options[first], rest, value)


def _build_restart(table: dict[str, Any]) -> Restart:
    if "strategy" not in table:
        raise InvalidConfig(f"restart.strategy is missing: it must be {KNOWN['restart.strategy'].expected}")
    strategy = table["strategy"]
    settings = {name: value for name, value in table.items() if name != "strategy"}
    made = _STRATEGIES[strategy]
    has = [field.name for field in _fields(made)]
    if foreign := next((name for name in settings if name not in has), None):
        raise InvalidConfig(
            f"restart.{foreign} = {_shown(settings[foreign])}: the strategy {strategy!r} has no such setting; "
            f"it has: {', '.join(has) or 'none'}"
        )
    _refuse_missing("restart", made, settings)
    return made(**settings)


def _refuse_missing(table: str, made: Any, settings: Mapping[str, object]) -> None:
    for field in _fields(made):
        if field.default is dataclasses.MISSING and field.name not in settings:
            name = f"{table}.{field.name}"
            raise InvalidConfig(
                f"{name} is missing beside {', '.join(f'{table}.{given}' for given in settings) or table}: "
                f"it must be {KNOWN[name].expected}"
            )


def _origin_of(message: str, layer: Layer) -> str:
    """Who gave the setting that an error message begins with."""
    name = message.partition(" = ")[0]
    return f" (from {layer[name].origin})" if name in layer else ""


def _settings(config: Config, layer: Layer) -> list[Setting]:
    """Every setting of `config`, in the order of `KNOWN`; of the restart strategy those that it has."""
    values: dict[str, object] = {field.name: getattr(config, field.name) for field in _fields(config)}
    restart = config.effective_restart
    parts = {name: values.pop(name) for name in ("checkpoints", "autoscale")} | {"restart": restart}
    for table, part in parts.items():
        values |= {f"{table}.{field.name}": getattr(part, field.name) for field in _fields(part)}
    values.pop("restart")
    values["restart.strategy"] = restart.strategy
    resources = []
    if isinstance(deployment := values["deployment"], Ray):
        values |= {f"ray.{field.name}": getattr(deployment, field.name) for field in _fields(deployment)}
        values["deployment"] = Ray.name
        resources = [_setting(name, given.value, layer) for name, given in layer.items() if name.startswith(_RESOURCE)]
    options = [Setting(name, HIDDEN, given.origin) for name, given in layer.items() if name.startswith(_OPTION)]
    return [_setting(name, values[name], layer) for name in KNOWN if name in values] + resources + options


def _setting(name: str, value: object, layer: Layer) -> Setting:
    if name in layer:
        return Setting(name, layer[name].shown, layer[name].origin)
    return Setting(name, _shown(value), "default")


def _fields(of: Any) -> tuple[Any, ...]:
    """The fields of a dataclass or its instance; none of anything else."""
    return dataclasses.fields(of) if dataclasses.is_dataclass(of) else ()


def _differing(of: Any) -> list[str]:
    """The fields whose value is not their default."""
    return [field.name for field in _fields(of) if getattr(of, field.name) != field.default]
