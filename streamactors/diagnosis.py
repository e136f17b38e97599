"""What a source or sink can tell, before a job runs, of the systems that it needs: for `streamactors doctor`.

Invariant that a connector keeps: looking changes nothing outside. No topic, record, transaction or file comes of it.
"""

import logging
from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "problem"]


@dataclass(frozen=True, slots=True)
class Finding:
    """`check` names what was looked at, `found` says what there is, `remedy` what to do (empty: nothing). A problem
    keeps the job from running or from keeping its promises; a warning does not."""

    level: Level
    check: str
    found: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """How a source or sink would run. `checkpoint_timeout`: seconds that a checkpoint may take."""

    flow: str
    uid: str
    parallelism: int
    checkpointing: bool
    exactly_once: bool
    checkpoint_timeout: float
    log: logging.LoggerAdapter[logging.Logger]
