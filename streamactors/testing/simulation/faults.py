"""What goes wrong, how often, and when."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from random import Random
from typing import Any, Final, Self

from streamactors.errors import InvalidConfig
from streamactors.testing.simulation.chance import Lottery, stream

MARK: Final = "simulated fault"
"""In the message of every error that was put in."""

COUNTED: Final = {
    "kills": 6000,
    "power_losses": 6000,
    "stops": 6000,
    "savepoints": 4000,
    "rescales": 4000,
    "rewinds": 3,
    "actor_crashes": 4000,
    "operator_failures": 300,
    "source_failures": 100,
    "sink_failures": 150,
    "storage_failures": 800,
    "worker_kills": 6000,
    "worker_pauses": 6000,
    "false_deaths": 6000,
    "cuts": 6000,
    "slow_storage": 400,
    "slow_sinks": 100,
    "slow_records": 150,
    "channel_stalls": 300,
}
"""Opportunities among which the next one is drawn: steps of the loop, starts, records, reads, requests, operations of
the disk, looks into a channel."""


@dataclass(frozen=True, kw_only=True)
class Faults:
    """How often things may go wrong in one run. Counts are upper bounds: the seed draws a number from none to that.

    `spread` stretches the time within which they happen: raise it for flows that read many records.
    """

    kills: int = 2
    """Of the process, as by SIGKILL: what it had written stays, fsynced or not."""
    power_losses: int = 2
    """Of the machine: each write and name since the last fsync is lost or not, one by one."""
    stops: int = 1
    """In peace, by `JobHandle.stop`, to be started again; half of them with a savepoint, if there may be any."""
    savepoints: int = 1
    """Taken while the job goes on."""
    rescales: int = 1
    """By `JobHandle.rescale`, within the process: to what `parallelism` offers."""
    rewinds: int = 0
    """Starts from an earlier savepoint or checkpoint, named by its URI. What was committed after that is taken out of
    the log: only for flows whose sinks are `World.sink`."""
    worker_kills: int = 2
    """Of a worker, as by SIGKILL; half of them nobody is told of."""
    worker_pauses: int = 1
    """Of a worker, or of the coordinator, for so short or so long: whoever is replaced meanwhile goes on afterwards."""
    false_deaths: int = 1
    """Of a worker that lives, and is replaced: whoever keeps the workers takes it for dead."""
    cuts: int = 1
    """Of the connection between a worker and the coordinator or another one, for some time or for good."""
    actor_crashes: int = 2
    """Cancelled from within, at any await."""
    operator_failures: int = 1
    source_failures: int = 1
    sink_failures: int = 2
    """Of requests to the broker, half of them after they have taken effect."""
    storage_failures: int = 2
    """Of operations of the disk, some of them after they have taken effect."""
    slow_storage: int = 3
    """Operations of the disk that take seconds."""
    slow_sinks: int = 2
    slow_records: int = 6
    """Records that an operator ponders over."""
    channel_stalls: int = 4
    """Times at which a channel gives no room for a while."""
    parallelism: tuple[int, ...] = (1, 2, 3, 4)
    """What steps without a parallelism of their own may have: drawn anew at a restart. Empty: as configured."""
    mailboxes: tuple[int, ...] = (2, 4, 16, 256)
    """Capacities, likewise."""
    modes: tuple[str, ...] = ()
    """Checkpointing modes to switch between at restarts, by name (see `MODES`). Empty: as configured."""
    backends: tuple[str, ...] = ()
    """State backends, likewise: `heap`, `rocksdb`."""
    workers: tuple[int, ...] = ()
    """How many workers there may be beside the coordinator, drawn anew at starts; 0: all in one process. A run for
    which that is drawn first, or for which this is empty, never has any."""
    weather: tuple[str, ...] = ("fair", "gusts", "losses", "storm")
    """Of the network between them."""
    spread: float = 1.0

    def __post_init__(self) -> None:
        for name in COUNTED:
            count = getattr(self, name)
            if not isinstance(count, int) or count < 0:
                raise InvalidConfig(f"Faults({name}={count!r}): it must be a whole number, at least 0")
        if self.spread <= 0:
            raise InvalidConfig(f"Faults(spread={self.spread!r}): it must be above 0")

    @classmethod
    def none(cls, **options: Any) -> Self:
        """Nothing goes wrong and nothing changes but what `options` say."""
        calm: dict[str, Any] = dict.fromkeys(COUNTED, 0) | {"parallelism": (), "mailboxes": (), "weather": ("fair",)}
        return cls(**(calm | options))

    def as_options(self, usual: "Faults | None" = None) -> str:
        """Those that differ from `usual` (the defaults), as the command line takes them."""
        usual = usual or type(self)()
        given = [(each.name, getattr(self, each.name)) for each in fields(self)]
        return ",".join(f"{name}={_text(value)}" for name, value in given if value != getattr(usual, name))

    @classmethod
    def from_options(cls, text: str, base: "Faults | None" = None) -> "Faults":
        """What `as_options` has written."""
        given = {each.name: getattr(base or cls(), each.name) for each in fields(cls)}
        for item in filter(None, text.split(",")):
            name, _, value = item.partition("=")
            if name not in given:
                raise InvalidConfig(f"faults: {name!r} is unknown; there are: {', '.join(given)}")
            given[name] = _value(name, value)
        return cls(**given)


def _text(value: Any) -> str:
    return "/".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _value(name: str, text: str) -> Any:
    try:
        if name in ("modes", "backends", "weather"):
            return tuple(filter(None, text.split("/")))
        if name in ("parallelism", "mailboxes", "workers"):
            return tuple(int(part) for part in text.split("/") if part)
        return float(text) if name == "spread" else int(text)
    except ValueError as error:
        raise InvalidConfig(f"faults: {name}={text!r} is no number") from error


@dataclass
class Fate:
    """The faults of one run: drawn by seed, and counted as they strike."""

    seed: int
    faults: Faults
    struck: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._lotteries = {
            kind: Lottery(self.random(f"fault {kind}"), getattr(self.faults, kind), horizon * self.faults.spread)
            for kind, horizon in COUNTED.items()
        }

    def random(self, purpose: str) -> Random:
        return stream(self.seed, purpose)

    def strikes(self, kind: str) -> bool:
        if self._lotteries[kind].strikes():
            self.struck[kind] += 1
            return True
        return False


def drawn(random: Random, among: Sequence[Any], now: Any) -> Any:
    """Something else half of the time, if there is anything to choose from."""
    return random.choice(among) if among and (now is None or random.random() < 0.5) else now
