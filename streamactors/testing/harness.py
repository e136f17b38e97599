"""One operator under test, run by the real engine: its records go in, and its output, state and timers are looked at.

    async with OperatorHarness(RunningTotal, key=lambda order: order.customer) as h:
        await h.push(Order("ann", 3.0))
        assert h.take() == [Total("ann", 3.0)]
        assert h.read("total", "ann") == 3.0

Invariant: a job runs whose flow is the operator alone, between inputs that the test feeds and sinks that show at once
what has come. `push`, `watermark` and `advance` return when nothing of that job has anything left to do; only then are
state and output looked at, so that there is no race between the test and the operator.
"""

import datetime as dt
import shutil
import tempfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Generic, Literal, Self, TypeVar, overload

from streamactors.api.dataflow import Dataflow, Stream
from streamactors.clock import SYSTEM
from streamactors.config import Checkpoints, Config, Restart, StateBackend
from streamactors.elements import MAX_TIME, ErrorRoute, OutputTag
from streamactors.errors import InvalidConfig, StateAccessError
from streamactors.state.backend import KeyedBackend
from streamactors.state.descriptors import (
    AggregatingState,
    Declaration,
    ListState,
    MapState,
    ReducingState,
    ValueState,
)
from streamactors.state.key_groups import key_group
from streamactors.testing.engine import Engine, HeldClock, OpenBackends
from streamactors.testing.in_place import InPlaceWatch
from streamactors.testing.script import Collector, Script, ScriptSource, ScriptSpec, Step
from streamactors.testing.steps import AnyOperator, OperatorStep, Windowing
from streamactors.time.timers import Timer
from streamactors.time.windows import WindowAssigner

R = TypeVar("R")
U = TypeVar("U")
V = TypeVar("V")
K = TypeVar("K")

FLOW: Final = "operator-harness"
NEVER: Final = dt.timedelta(days=10_000)
"""Between checkpoints: there are only those that the test takes."""
LEFT, RIGHT = 0, 1


@dataclass(frozen=True)
class HarnessSnapshot:
    """A savepoint of an operator under test; nothing is left on disk. `files` by path; `now_ms`: its clock."""

    files: Mapping[str, bytes]
    now_ms: int

    def __repr__(self) -> str:
        return f"<HarnessSnapshot of {sum(map(len, self.files.values()))} bytes>"


class KeyState:
    """What one key holds, by the names of its states."""

    def __init__(self, read: Callable[[str], Any]) -> None:
        self._read = read

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._read(name)


class OperatorHarness(Generic[U]):
    """Use it by `async with`. `U`: what the operator emits.

    `key` for keyed operators (`right_key` for the right input, where that is another), `window` for a WindowOperator;
    `tags`: the side outputs that `side` shows; `now`: where its clock stands, in milliseconds since the epoch;
    `timeout`: seconds that a push may take.
    """

    def __init__(
        self,
        factory: Callable[[], AnyOperator[U]],
        *,
        key: Callable[[Any], Any] | None = None,
        right_key: Callable[[Any], Any] | None = None,
        window: WindowAssigner | None = None,
        windowing: Windowing | None = None,
        uid: str = "operator",
        backend: Literal["heap", "rocksdb"] | StateBackend = "heap",
        parallelism: int = 1,
        max_parallelism: int | None = None,
        resources: Mapping[str, Any] | None = None,
        tags: Collection[OutputTag[Any]] | OutputTag[Any] = (),
        on_error: ErrorRoute = "fail",
        now: int = 0,
        watermarks: bool = True,
        timeout: float = 30.0,
    ) -> None:
        """`windowing`: the other arguments of `window(…)`; `watermarks` False: the streams have none."""
        self.uid = uid
        self._step = OperatorStep(uid, factory, key, right_key or key, window, windowing or Windowing(), on_error)
        self._backend = backend
        self._parallelism = parallelism
        self._max_parallelism = max_parallelism
        self._resources = resources
        asked = [tags] if isinstance(tags, OutputTag) else tags
        routed = [on_error, self._step.windowing.late]
        self._sides = {tag.name: Collector() for tag in [*asked, *routed] if isinstance(tag, OutputTag)}
        self._main = Collector()
        self._watermarks = watermarks
        self._clock = HeldClock(now)
        self._scripts = [Script() for _ in range(2 if self._step.two_inputs else 1)]
        self._engine = Engine(self._clock, self._scripts, timeout)
        self._backends = OpenBackends()
        self._watches: list[InPlaceWatch] = []
        self._snapshot: HarnessSnapshot | None = None
        self._folder: Path | None = None
        self._numbers = count(1)

    @staticmethod
    def restore(
        factory: Callable[[], AnyOperator[R]], snapshot: HarnessSnapshot, **options: Any
    ) -> "OperatorHarness[R]":
        """One that goes on from a snapshot of another harness; options as for a new one. The parallelism, the backend
        and the operator's class may be others."""
        harness = OperatorHarness(factory, **{"now": snapshot.now_ms, **options})
        harness._snapshot = snapshot
        return harness

    # ------------------------------------------------------------------------------------------------------- lifetime
    async def __aenter__(self) -> Self:
        self._folder = Path(tempfile.mkdtemp(prefix="streamactors-harness-"))
        try:
            restore = None if self._snapshot is None else await self._unpacked(self._snapshot)
            await self._begin(restore)
        except BaseException:
            self._engine.told = True
            await self._end()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._engine.told = True  # what the test has found comes first
        await self._end()

    async def _end(self) -> None:
        folder, self._folder = self._folder, None
        try:
            await self._engine.close()
        finally:
            if folder is not None:
                await SYSTEM.run_blocking(shutil.rmtree, folder)

    async def _begin(self, restore: str | None) -> None:
        self._backends.opened.clear()
        self._step.operators.clear()
        config = Config(
            parallelism=self._parallelism,
            max_parallelism=self._max_parallelism,
            state_backend=self._backends.watching(self._backend),
            checkpoints=Checkpoints(str(self._place / "checkpoints"), interval=NEVER),
            restart=Restart.none(),
        )
        await self._engine.start(self._flow(), config, restore=restore or "latest", resources=self._resources)
        self._watches = [
            InPlaceWatch(self.uid, operator, backend, highest)
            for operator, (backend, highest) in zip(self._step.watchable(), self._backends.of(self.uid), strict=False)
        ]

    def _flow(self) -> Dataflow:
        flow = Dataflow(FLOW)
        inputs = [
            self._input(flow, name, script) for name, script in zip(("left", "right"), self._scripts, strict=False)
        ]
        made = self._step.add(inputs)
        made.sink("main-output", self._main)
        for number, (name, collector) in enumerate(self._sides.items()):
            made.side_output(OutputTag(name, object)).sink(f"side-output-{number}", collector)
        return flow

    def _input(self, flow: Dataflow, name: str, script: Script) -> Stream[Any]:
        steps = flow.source(f"{name}-input", ScriptSource(script), parallelism=1)
        return steps._step(ScriptSpec(script, self._watermarks), Any, uid=f"{name}-script", parallelism=1)

    def _check_open(self) -> None:
        """Raises what ended the job, too."""
        if self._folder is None:
            raise InvalidConfig("an OperatorHarness is used inside `async with OperatorHarness(…) as h`")
        self._engine.check_running()

    @property
    def _place(self) -> Path:
        assert self._folder is not None
        return self._folder

    # ------------------------------------------------------------------------------------------------ what goes into it
    async def push(self, value: Any, timestamp: int | None = None, *, wait: bool = True) -> None:
        """A record, on the left input where there are two. Returns when the operator is done with it; `wait=False`: at
        once. Raises what ends the job, such as RecordFailed with the operator's own exception as its cause."""
        await self._put(LEFT, Step(value, timestamp), wait=wait)

    async def push_left(self, value: Any, timestamp: int | None = None, *, wait: bool = True) -> None:
        await self._put(LEFT, Step(value, timestamp), wait=wait)

    async def push_right(self, value: Any, timestamp: int | None = None, *, wait: bool = True) -> None:
        await self._put(RIGHT, Step(value, timestamp), wait=wait)

    async def push_broadcast(self, value: Any, timestamp: int | None = None, *, wait: bool = True) -> None:
        """To all subtasks of a KeyedBroadcastOperator."""
        await self._put(RIGHT, Step(value, timestamp), wait=wait)

    async def watermark(self, timestamp: int, *, only: Literal["left", "right"] | None = None) -> None:
        """Event time has come to `timestamp`, on all inputs; what is due by it fires before this returns."""
        if not self._watermarks:
            raise InvalidConfig("watermarks=False: the streams of this harness have none")
        for side in range(len(self._scripts)) if only is None else [self._side_of(only)]:
            self._script(side).put(Step(watermark=timestamp))
        await self.settle()

    async def advance(self, duration: dt.timedelta) -> None:
        """Move the clock; processing timers that are due fire before this returns."""
        self._check_open()
        await self._engine.advance(duration)
        self._check_in_place()

    async def settle(self) -> None:
        """Until nothing is left to do."""
        self._check_open()
        await self._engine.settle()
        self._check_in_place()

    async def finish(self) -> None:
        """The end of the data: event time comes to its end, and the job finishes. Output may be looked at, state no
        more."""
        self._check_open()
        await self._engine.handle.stop(drain=True)
        self._engine.check()

    async def _put(self, side: int, step: Step, *, wait: bool) -> None:
        self._check_open()
        self._script(side).put(step)
        if wait:
            await self._engine.settle()
            key = self._step.key_of(step.value, side)
            self._check_in_place(None if key is None else [key])

    def _script(self, side: int) -> Script:
        if side >= len(self._scripts):
            raise InvalidConfig(f"operator {self.uid!r} has one input: use push")
        return self._scripts[side]

    @staticmethod
    def _side_of(name: str) -> int:
        return RIGHT if name == "right" else LEFT

    def _check_in_place(self, keys: list[Any] | None = None) -> None:
        for watch in self._watches:
            watch.check(keys)

    @property
    def now(self) -> int:
        """Where the clock stands, in milliseconds since the epoch."""
        return self._clock.now_ms

    # --------------------------------------------------------------------------------------------- what comes out of it
    @property
    def output(self) -> list[U]:
        """What was emitted since the last `take`."""
        return [value for value, _ in self._main.rows]

    @property
    def stamped(self) -> list[tuple[U, int | None]]:
        """The same, each with its time-stamp."""
        return list(self._main.rows)

    def take(self) -> list[U]:
        """What was emitted since the last `take`, and begin anew."""
        taken = self.output
        self._main.rows.clear()
        return taken

    def side(self, tag: OutputTag[V]) -> list[V]:
        """What was emitted to a side output."""
        collector = self._sides.get(tag.name)
        if collector is None:
            raise InvalidConfig(f"side output {tag.name!r} is not looked at: OperatorHarness(…, tags=[{tag!r}])")
        return [value for value, _ in collector.rows]

    # ------------------------------------------------------------------------------------------------ what is inside it
    @overload
    def read(self, state: ValueState[V], key: Any) -> V: ...
    @overload
    def read(self, state: ListState[V], key: Any) -> list[V]: ...
    @overload
    def read(self, state: MapState[K, V], key: Any) -> dict[K, V]: ...
    @overload
    def read(self, state: ReducingState[V], key: Any) -> V | None: ...
    @overload
    def read(self, state: AggregatingState[Any, V], key: Any) -> V: ...
    @overload
    def read(self, state: str | Declaration, key: Any) -> Any: ...
    def read(self, state: str | Declaration, key: Any) -> Any:
        """A copy of what a key holds in a state, given by its name or as it is declared: `RunningTotal.total`."""
        name = self._name_of(state)
        backend, group = self._backend_of(key)
        return backend.query(name, key, group)

    def state(self, key: Any) -> KeyState:
        """`h.state("ann").total` is `h.read("total", "ann")`."""
        return KeyState(lambda name: self.read(name, key))

    def entries(self, state: str | Declaration) -> dict[Any, Any]:
        """What all keys hold in a state that hold anything; of an AggregatingState, the accumulators."""
        name = self._name_of(state)
        return {key: held for backend, _ in self._open() for _, key, held in backend.scan(name)}

    async def timers(self, key: Any) -> list[Timer]:
        """Those that are pending, the earliest first."""
        _, group = self._backend_of(key)
        found: list[Timer] = []
        for service in self._engine.timers(self.uid, group):
            for domain, store in service.stores.items():
                rows = await store.early(range(group, group + 1), MAX_TIME)
                found += [Timer(time, domain, name) for time, _, owner, name in rows if owner == key]
        return sorted(found, key=lambda timer: (timer.timestamp, timer.domain, timer.name))

    @property
    def operators(self) -> list[AnyOperator[U]]:
        """The living ones, by subtask: for what they hold beside keyed state, such as broadcast state."""
        return list(self._step.operators)

    def _name_of(self, state: str | Declaration) -> str:
        declared = self._step.declared(state) if isinstance(state, str) else state
        if declared is None:
            return str(state)
        if not declared.keyed:
            raise StateAccessError(
                f"operator {self.uid!r}, state {declared.name!r}: no keyed state; look at it in `operators`, for "
                "each subtask"
            )
        return declared.stored or declared.name

    def _open(self) -> list[tuple[KeyedBackend, int]]:
        self._check_open()
        backends = self._backends.of(self.uid)
        if not backends:
            raise StateAccessError(f"operator {self.uid!r} has no keyed state")
        return backends

    def _backend_of(self, key: Any) -> tuple[KeyedBackend, int]:
        for backend, highest in self._open():
            if (group := key_group(key, highest)) in backend.groups:
                return backend, group
        raise StateAccessError(f"operator {self.uid!r}: key {key!r} belongs to no subtask")

    # ------------------------------------------------------------------------------------------------------- and again
    async def snapshot(self) -> HarnessSnapshot:
        """As a savepoint holds it. What is not encodable is refused here, as it would be in a job."""
        self._check_open()
        uri = await self._save()
        files = await SYSTEM.run_blocking(_packed, uri)
        return HarnessSnapshot(files, self._clock.now_ms)

    async def rescale(self, parallelism: int) -> None:
        """Stop, and go on from a savepoint with another number of subtasks (or the same)."""
        uri = await self._save()
        await self._engine.close()
        self._parallelism = parallelism
        await self._begin(str(uri))

    async def restart(self) -> None:
        """Stop, and go on from a savepoint: nothing but what is stored survives."""
        await self.rescale(self._parallelism)

    async def _save(self) -> Path:
        uri = self._place / f"savepoint-{next(self._numbers)}"
        await self._engine.handle.savepoint(str(uri))
        return uri

    async def _unpacked(self, snapshot: HarnessSnapshot) -> str:
        folder = self._place / "restored"
        await SYSTEM.run_blocking(_unpack, snapshot.files, folder)
        return str(folder)


def _packed(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def _unpack(files: Mapping[str, bytes], folder: Path) -> None:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
