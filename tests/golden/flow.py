"""The flow whose checkpoints are kept: every kind of state, of timer, of value and of key that can be stored.

Each record reads all that its key holds, before it adds to it. What it has read is kept in `Log`, and its digest is
written, so that a restored job is compared with one that ran in one go, and both with what was written back then.

To add a kind of state, add a line to `KINDS`; a type of value, to `VALUES`; a key, to `KEYS`; a step in event time, to
`timed.add_steps`. Then make the data anew
(see `make`), for the version that is being released: data of released versions is never changed.
"""

import asyncio
import dataclasses
import datetime as dt
import enum
import fractions
import hashlib
import zoneinfo
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, NotRequired, TypedDict, TypeVar
from uuid import UUID

import msgspec
import numpy as np

import streamactors as sa
from connectors.files import FileSink
from tests.golden.timed import Came, add_steps
from tests.runtime.feeds import Feed

T = TypeVar("T")
FLOW = "golden"
MAX_PARALLELISM = 4
FOREVER = sa.Ttl(dt.timedelta(days=36_500))
WAIT = 40_000
"""From a record's time to that of its event timer, in milliseconds."""
NEVER = 253_402_214_400_000
"""When processing timers are due: the year 9999."""


# ---------------------------------------------------------------------------------------------------------------- types
class Colour(enum.Enum):
    RED = "red"
    GREEN = "green"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Place(NamedTuple):
    row: int
    letter: str


class Options(TypedDict):
    depth: int
    label: NotRequired[str]


class Order(msgspec.Struct, rename="camel"):
    customer_name: str
    amount: Decimal
    at: dt.datetime | None = None


class Sparse(msgspec.Struct, omit_defaults=True):
    name: str = ""
    tags: list[str] = []


class Row(msgspec.Struct, array_like=True):
    name: str
    count: int


class Cat(msgspec.Struct, tag="cat"):
    lives: int


class Dog(msgspec.Struct, tag="dog"):
    name: str


class Tree(msgspec.Struct):
    label: str
    children: list["Tree"] = []


class Box(msgspec.Struct, Generic[T]):
    content: T


class Loose(msgspec.Struct):
    name: str
    held: Any


class CustomerKey(msgspec.Struct, frozen=True):
    country: str
    number: int


@dataclasses.dataclass(frozen=True, slots=True)
class AccountKey:
    number: int
    opened: dt.date


@dataclasses.dataclass
class Account:
    number: int
    limits: dict[str, Decimal] = dataclasses.field(default_factory=dict)
    doubled: int = dataclasses.field(init=False, default=0)

    def __post_init__(self) -> None:
        self.doubled = 2 * self.number


class Fixed:
    """What nothing but its own format can store."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __repr__(self) -> str:
        return f"Fixed({self.number})"


class FixedFormat:
    version = 1

    def encode(self, value: Fixed) -> bytes:
        return b"%08d" % value.number

    def decode(self, data: bytes) -> Fixed:
        return Fixed(int(data))


class Rule(msgspec.Struct):
    name: str
    limit: int


class Reading(msgspec.Struct):
    """A record; in flight, too."""

    number: int
    at: dt.datetime


@dataclasses.dataclass
class Correction:
    """Another record, so that batches in flight hold more than one class."""

    number: int
    why: tuple[str, ...]


# ------------------------------------------------------------------------------------------------------ values, by type
BERLIN = zoneinfo.ZoneInfo("Europe/Berlin")
AT = dt.datetime(2024, 10, 27, 2, 30, 1, 5, tzinfo=BERLIN, fold=1)

VALUES: dict[str, tuple[Any, Callable[[int], Any]]] = {
    "text": (str, lambda n: f"é{n}"),
    "whole": (int, lambda n: n),
    "huge": (int, lambda n: n * 2**70),
    "real": (float, lambda n: n / 3),
    "flag": (bool, lambda n: n % 2 == 0),
    "data": (bytes, lambda n: bytes([n])),
    "buffer": (bytearray, lambda n: bytearray([n])),
    "decimal": (Decimal, lambda n: Decimal(n) / 4),
    "fraction": (fractions.Fraction, lambda n: fractions.Fraction(n, 7)),
    "uuid": (UUID, lambda n: UUID(int=n)),
    "moment": (dt.datetime, lambda n: AT + dt.timedelta(days=n)),
    "wall": (dt.datetime, lambda n: dt.datetime(2024, 1, 1) + dt.timedelta(hours=n)),
    "day": (dt.date, lambda n: dt.date(2024, 1, 1) + dt.timedelta(n)),
    "clock": (dt.time, lambda n: dt.time(n % 24, 30)),
    "span": (dt.timedelta, lambda n: dt.timedelta(seconds=n, microseconds=1)),
    "pair": (tuple[int, str], lambda n: (n, "a")),
    "many": (tuple[int, ...], lambda n: (n, n + 1)),
    "set": (set[int], lambda n: {n, n + 1}),
    "frozen": (frozenset[str], lambda n: frozenset({f"a{n}"})),
    "nested": (dict[str, list[tuple[int, ...]]], lambda n: {"a": [(n,)]}),
    "keyed": (dict[Place, int], lambda n: {Place(n, "a"): n}),
    "optional": (int | None, lambda n: n if n % 2 else None),
    "union": (int | str | list[int], lambda n: [n, f"{n}", [n]][n % 3]),
    "literal": (Literal["a", "b"], lambda n: "ab"[n % 2]),
    "enum": (Colour, lambda n: [Colour.RED, Colour.GREEN][n % 2]),
    "level": (Level, lambda n: Level(1 + n % 2)),
    "named": (Place, lambda n: Place(n, "b")),
    "typed": (Options, lambda n: {"depth": n} if n % 2 else {"depth": n, "label": "c"}),
    "struct": (Order, lambda n: Order(f"c{n}", Decimal(n), AT)),
    "sparse": (Sparse, lambda n: Sparse() if n % 2 else Sparse("a", ["b"])),
    "row": (Row, lambda n: Row("a", n)),
    "tagged": (Cat | Dog, lambda n: Cat(n) if n % 2 else Dog(f"d{n}")),
    "tree": (Tree, lambda n: Tree("a", [Tree(f"b{n}")])),
    "generic": (Box[int], lambda n: Box(n)),
    "record": (Account, lambda n: Account(n, {"a": Decimal(n)})),
    "loose": (Loose, lambda n: Loose("a", (n, {n}, Place(n, "c"), Colour.RED, Account(n)))),
    "any": (Any, lambda n: [(n, AT), {n: UUID(int=n)}, Order(f"o{n}", Decimal(n))]),
    "array": (np.ndarray, lambda n: np.arange(n % 5, dtype=np.float32)),
    "pickled": (sa.Pickle(complex), lambda n: complex(n, 1)),
    "custom": (sa.Custom(Fixed, FixedFormat()), Fixed),
}

KEYS: list[Any] = [
    "text", b"bytes", 7, -(2**80), 1.5, True, None, (1, "a"), Decimal("2.50"), UUID(int=5),
    AT, dt.datetime(2024, 1, 1), dt.date(2024, 1, 1), dt.timedelta(seconds=3), fractions.Fraction(1, 3),
    frozenset({1, 2}), CustomerKey("de", 1), AccountKey(2, dt.date(2024, 1, 1)), Colour.GREEN, Level.HIGH,
    Place(3, "c"), "last",
]  # fmt: skip


# ------------------------------------------------------------------------------------------------------- kinds of state
class Kind(NamedTuple):
    """`add` is told the state and the number of the record; `read` gives what the key holds. A state that was never
    touched reads as one that was cleared."""

    declare: Callable[[], Any]
    add: Callable[[Any, int], None]
    read: Callable[[Any], Any] = lambda state: state.get()


def value_of(tp: Any, make: Callable[[int], Any]) -> Kind:
    return Kind(lambda: sa.ValueState(tp), lambda state, n: state.set(make(n)))


def put(state: Any, n: int) -> None:
    state[f"{n}"] = Order(f"c{n}", Decimal(n))


def spread(state: Any, n: int) -> None:
    """More than RocksDB keeps together, for one key."""
    if n % len(KEYS) == 0:
        state.update({(n, other): other for other in range(90)})


KINDS: dict[str, Kind] = {name: value_of(*value) for name, value in VALUES.items()} | {
    "unset": Kind(lambda: sa.ValueState(int, default=-1), lambda state, n: None),
    "cleared": Kind(lambda: sa.ValueState(int), lambda state, n: state.set(n) if n % 2 else state.clear()),
    "list": Kind(lambda: sa.ListState(Order), lambda state, n: state.append(Order(f"l{n}", Decimal(n))), list),
    "long": Kind(lambda: sa.ListState(int), lambda state, n: state.extend(range(100 * (n % len(KEYS) == 0))), list),
    "map": Kind(lambda: sa.MapState(str, Order), put, dict),
    "large": Kind(lambda: sa.MapState(tuple[int, int], int), spread, dict),
    "reduced": Kind(lambda: sa.ReducingState(int, max), lambda state, n: state.add(n)),
    "average": Kind(lambda: sa.AggregatingState(sa.Avg[int](lambda n: n)), lambda state, n: state.add(n)),
    "several": Kind(
        lambda: sa.AggregatingState(
            sa.Aggregates(
                count=sa.Count(),
                top=sa.TopN[int](2, lambda n: n % 5),
                odd=sa.Distinct[int](lambda n: n % 2),
                least=sa.Min[int, Any](lambda n: Decimal(n)),
                all=sa.Collect[int](),
            )
        ),
        lambda state, n: state.add(n),
    ),
    "living value": Kind(lambda: sa.ValueState(Order, ttl=FOREVER), lambda state, n: state.set(Order("t", Decimal(n)))),
    "living list": Kind(lambda: sa.ListState(int, ttl=FOREVER), lambda state, n: state.append(n), list),
    "living map": Kind(lambda: sa.MapState(str, Order, ttl=FOREVER), put, dict),
    "living sum": Kind(lambda: sa.ReducingState(int, max, ttl=FOREVER), lambda state, n: state.add(n)),
}


def shown(value: Any) -> str:
    """Whatever the order in which a backend gives it."""
    if isinstance(value, dict):
        return f"{{{', '.join(sorted(f'{shown(key)}: {shown(each)}' for key, each in value.items()))}}}"
    if isinstance(value, set | frozenset):
        return f"{type(value).__name__}({sorted(map(shown, value))})"
    if isinstance(value, list | tuple):
        return f"{type(value).__name__}[{', '.join(map(shown, value))}]"
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.tolist()}"
    return repr(value)


# ------------------------------------------------------------------------------------------------------------- the flow
class Log:
    """What the operators of one job saw. A record waits for a permit of `gate`."""

    def __init__(self, permits: int = 1_000_000) -> None:
        self.gate = asyncio.Semaphore(permits)
        self.entered = 0
        self.seen: dict[int, str] = {}
        self.watermarks: list[int] = []
        self.set: list[int] = []
        """The numbers of records for which timers were set."""
        self.rang: list[tuple[str, int, str]] = []
        """The timers that fired: the key, the time and the name."""
        self.own: list[int] = []
        """What the operator lists of all subtasks held at the start."""
        self.every: list[list[int]] = []
        """What the union list of each subtask held then."""
        self.came: Came = {}


class Digest(msgspec.Struct):
    """A line of output."""

    number: int
    digest: str


def number_of(line: Digest) -> int:
    return line.number


def digest(number: int, text: str) -> Digest:
    return Digest(number, hashlib.blake2b(text.encode(), digest_size=8).hexdigest())


def operator_for(log: Log) -> Any:
    class Kinds(sa.KeyedBroadcastOperator[Any, Any, Rule, Digest]):
        rules = sa.BroadcastState(str, Rule)
        own = sa.OperatorListState(Reading)
        every = sa.UnionListState(int)

        def open(self, ctx: sa.OperatorContext, /) -> None:
            log.own += [reading.number for reading in self.own]
            log.every.append(list(self.every))

        async def process(self, value: Any, ctx: sa.Context[Any, Digest], /) -> None:
            log.entered += 1
            await log.gate.acquire()
            number = value.number
            states = {name: getattr(self, name) for name in KINDS}
            held = [f"{name}={shown(KINDS[name].read(state))}" for name, state in states.items()]
            text = "\n".join([f"{type(ctx.key).__name__} {shown(ctx.key)}", shown(dict(self.rules)), *held])
            log.seen[number] = text
            log.watermarks.append(ctx.watermark)
            for place, (name, state) in enumerate(states.items()):
                if (number + place) % 3 == 0:  # all of them for each key in turn, since the data should be small
                    KINDS[name].add(state, number)
            self.own.append(Reading(number, AT))
            self.every.append(number)
            ctx.emit(digest(number, text))

        def process_broadcast(self, rule: Rule, ctx: sa.Context[None, Digest], /) -> None:
            self.rules[rule.name] = rule

    for name, kind in KINDS.items():
        state = kind.declare()
        state.__set_name__(Kinds, name)
        setattr(Kinds, name, state)
    return Kinds


def alarms_for(log: Log) -> Any:
    class Alarms(sa.KeyedOperator[Any, Digest, Digest]):
        """Two timers for each line, which it passes on."""

        def process(self, line: Digest, ctx: sa.Context[Any, Digest], /) -> None:
            log.set.append(line.number)
            ctx.timers.event(line.number * 1000 + WAIT, f"{line.number}")
            ctx.timers.processing(NEVER, f"{line.number}")
            ctx.emit(line)

        def on_timer(self, timer: sa.Timer, ctx: sa.Context[Any, Digest], /) -> None:
            log.rang.append((shown(ctx.key), timer.timestamp, timer.name))

    return Alarms


RULES = [Rule("first", 3), Rule("second", 4)]
CYCLE = len(KEYS)
BEFORE, FLYING, AFTER = 3 * CYCLE, CYCLE, 2 * CYCLE
"""Records whose state is in the checkpoint; that are put in while the gate is closed; and that come after a restore."""


def records(count: int) -> list[Any]:
    return [Correction(n, ("a", f"{n}")) if n % 4 == 3 else Reading(n, AT) for n in range(count)]


def timer_of(number: int) -> tuple[str, int, str]:
    """That of a record, as it fires."""
    return shown(KEYS[number % CYCLE]), number * 1000 + WAIT, f"{number}"


def flow_of(numbers: Feed, rules: Feed, log: Log, out: Path, parallelism: int = 2) -> sa.Dataflow:
    flow = sa.Dataflow(FLOW)
    times: sa.Watermarks[Any] = sa.Watermarks.bounded(lambda record: record.number * 1000, dt.timedelta(seconds=5))
    never: sa.Watermarks[Any] = sa.Watermarks.bounded(lambda rule: 4 * 10**12, dt.timedelta(0))
    readings: Any = flow.source("numbers", numbers, parallelism=1, watermarks=times)
    told: Any = flow.source("rules", rules, parallelism=1, watermarks=never)
    keyed = readings.key_by(lambda record: KEYS[record.number % CYCLE])
    kinds = keyed.connect_broadcast(told).process("kinds", operator_for(log), parallelism=parallelism)
    lines = kinds.key_by(lambda line: KEYS[line.number % CYCLE]).process(
        "alarms", alarms_for(log), parallelism=parallelism
    )
    add_steps(lines.map(number_of), log.came, CYCLE, parallelism - 1)
    lines.sink("out", FileSink(str(out), value=sa.Json(Digest)), parallelism=1)
    return flow


def lines_in(out: Path) -> list[Digest]:
    """Of the parts that are visible."""
    parts = sorted(part for part in out.iterdir() if not part.name.startswith("."))
    return [msgspec.json.decode(line, type=Digest) for part in parts for line in part.read_bytes().splitlines()]
