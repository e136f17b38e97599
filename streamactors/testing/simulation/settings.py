"""How the job of a run is configured: drawn by seed where nobody says, and drawn anew at restarts."""

import datetime as dt
from dataclasses import replace
from random import Random
from typing import Any, Final

from streamactors.config import Checkpoints, Config, Restart, RocksDB
from streamactors.errors import InvalidConfig
from streamactors.testing.simulation.faults import Faults, drawn
from streamactors.testing.simulation.local_state import SimulatedRocksDB
from streamactors.testing.simulation.process import here

STORAGE: Final = "file:///simulation"

MODES: Final[dict[str, dict[str, Any]]] = {
    "aligned": {"mode": "exactly-once", "alignment": "aligned", "alignment_timeout": None},
    "aligned-timeout": {"mode": "exactly-once", "alignment": "aligned", "alignment_timeout": dt.timedelta(0)},
    "unaligned": {"mode": "exactly-once", "alignment": "unaligned", "alignment_timeout": None},
    "at-least-once": {"mode": "at-least-once", "alignment": "aligned", "alignment_timeout": None},
}
"""Checkpointing modes, as settings of `Checkpoints`. The alignment time-out is drawn."""
EXACTLY_ONCE: Final = ("aligned", "aligned-timeout", "unaligned")
GROUPS: Final = (8, 16, 32)
"""Key groups: few, so that a snapshot has few blocks."""


def drawn_config(draw: Random, mode: str) -> Config:
    """Everything that a user might set, in a range where checkpoints are many."""
    checkpoints = Checkpoints(
        STORAGE,
        interval=dt.timedelta(seconds=draw.choice((0.04, 0.1, 0.3, 0.6))),
        timeout=dt.timedelta(seconds=draw.choice((5, 30, 120))),
        min_pause=dt.timedelta(seconds=draw.choice((0, 0, 0.01))),
        max_concurrent=draw.choice((1, 1, 2, 3)),
        tolerable_failures=draw.choice((0, 1, 2)),
        retain=draw.choice((1, 2, 3)),
        incremental=draw.random() < 0.8,
    )
    restart = Restart.exponential(dt.timedelta(milliseconds=10), dt.timedelta(seconds=2))
    config = Config(max_parallelism=draw.choice(GROUPS), restart=restart, checkpoints=checkpoints)
    return in_mode(config, mode, draw)


def in_mode(config: Config, mode: str, draw: Random) -> Config:
    if mode not in MODES:
        raise InvalidConfig(f"there is no checkpointing mode {mode!r}; there are: {', '.join(MODES)}")
    assert config.checkpoints is not None
    settings = MODES[mode]
    if settings["alignment_timeout"] is not None:
        timeout = dt.timedelta(seconds=draw.choice((0, 0.001, 0.02, 0.5)))
        settings = settings | {"alignment_timeout": timeout}
    return replace(config, checkpoints=replace(config.checkpoints, **settings))


def mode_of(config: Config) -> str:
    checkpoints = config.checkpoints
    assert checkpoints is not None
    if checkpoints.mode == "at-least-once":
        return "at-least-once"
    if checkpoints.alignment == "unaligned":
        return "unaligned"
    return "aligned" if checkpoints.alignment_timeout is None else "aligned-timeout"


def next_config(config: Config, faults: Faults, draw: Random, *, first: bool) -> Config:
    """For the next process: the same job, perhaps in another mode, with another backend and other mailboxes."""
    if not first and faults.modes and (mode := drawn(draw, faults.modes, mode_of(config))) != mode_of(config):
        config = in_mode(config, mode, draw)
    backend = drawn(draw, faults.backends, None if first else backend_of(config))
    if backend is not None and backend != backend_of(config):
        config = replace(config, state_backend=backend)
    capacity = drawn(draw, faults.mailboxes, None if first else config.mailbox_capacity)
    return replace(config, mailbox_capacity=capacity or config.mailbox_capacity)


def backend_of(config: Config) -> str:
    backend = config.state_backend
    return backend if isinstance(backend, str) else backend.name


def on_local_disk(config: Config) -> Config:
    """With RocksDB, if that it is to be, in whichever process opens it."""
    if backend_of(config) != RocksDB.name:
        return config
    return replace(config, state_backend=SimulatedRocksDB(local=lambda: here().local))
