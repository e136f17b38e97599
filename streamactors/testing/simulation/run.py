"""One run: process after process in one world, until the flow has read all its input and ended; then the verdict."""

import asyncio
import functools
import gc
import inspect
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from random import Random
from typing import Final

from streamactors.api.dataflow import Dataflow
from streamactors.checkpoint.storage.local import LocalFiles
from streamactors.clock import Clock
from streamactors.config import Config, RocksDB
from streamactors.deploy.local import deploy_locally
from streamactors.errors import InvalidConfig, SimulationFailed, StreamactorsError
from streamactors.graph.logical import LogicalGraph
from streamactors.graph.parallelism import Parallelism, widths
from streamactors.graph.physical import PhysicalPlan
from streamactors.graph.planner import plan
from streamactors.runtime.assembly import AttemptSpec
from streamactors.runtime.deployment import Deploy, Deployed
from streamactors.runtime.messages import Reports
from streamactors.runtime.snapshot_storage import StoredSnapshots
from streamactors.submission import job_here
from streamactors.testing.simulation.channels import StallingChannel
from streamactors.testing.simulation.cluster import SimulatedCluster
from streamactors.testing.simulation.disturbance import disturbed, drawn_widths, rescaled
from streamactors.testing.simulation.faults import Fate, Faults
from streamactors.testing.simulation.fleet import Fleet
from streamactors.testing.simulation.life import Life
from streamactors.testing.simulation.local_state import scratch
from streamactors.testing.simulation.loop import VirtualTime
from streamactors.testing.simulation.process import STEP_SECONDS, Process
from streamactors.testing.simulation.result import Check, Outcome, SimulationResult
from streamactors.testing.simulation.scenario import FlowFactory, Scenario, replay
from streamactors.testing.simulation.settings import (
    backend_of,
    drawn_config,
    mode_of,
    next_config,
    on_local_disk,
)
from streamactors.testing.simulation.timeline import Start
from streamactors.testing.simulation.trace import Trace
from streamactors.testing.simulation.verdict import last_states, same_as
from streamactors.testing.simulation.world import World

PROCESSES: Final = 60
"""So many starts, and still not finished: it never will be."""
ATTEMPTS: Final = 100
STARTED_AGAIN: Final = 0.1
FIRST: Final = 1.0
AT_A_START: Final = 0.5
AT_AN_ATTEMPT: Final = 0.2
"""How often another parallelism is drawn."""
DOWN_SECONDS: Final = 5.0


def simulate(
    flow: FlowFactory | Scenario,
    *,
    seed: int,
    faults: Faults | None = None,
    config: Config | None = None,
    check: Check | None = None,
    listen: Callable[[str], None] | None = None,
) -> SimulationResult:
    """Run a whole job on virtual time, with faults drawn by `seed`, to its end.

    `flow` makes a new Dataflow for every process; what it takes from the World (`world.source`, `world.sink`) lives on.
    `config` None: drawn too. `check` raises AssertionError; without one, the committed output and the last state are
    compared with those of a run in which nothing goes wrong. `listen` is given every step, for people.

    Raises SimulationFailed, whose message ends with the command that replays the run. Runs its own event loop, so it is
    called from a plain function.
    """
    scenario = flow if isinstance(flow, Scenario) else Scenario(flow)
    scenario = replace(
        scenario, config=config or scenario.config, faults=faults or scenario.faults, check=check or scenario.check
    )
    _refuse_running_loop()
    with scratch(wanted=_on_disk(scenario)), _own_garbage(), _quiet(logs=listen is not None):
        return Run(scenario, seed, Trace(listen)).to_the_end()


class Run:
    """Of one scenario by one seed."""

    def __init__(self, scenario: Scenario, seed: int, trace: Trace) -> None:
        if scenario.config is not None and scenario.config.checkpoints is None:
            raise InvalidConfig("a flow is simulated under checkpoints: give Config(checkpoints=Checkpoints(…))")
        self._scenario = scenario
        self._seed = seed
        self._trace = trace
        self._fate = Fate(seed, scenario.faults)
        self._world = World(self._fate, trace)
        self._draw = self._fate.random("restarts")
        self._config = scenario.config or drawn_config(self._fate.random("config"), scenario.mode)
        self._graph: LogicalGraph | None = None
        self._cluster = self._drawn_cluster()
        self._drawn_widths: dict[str, int] = {}
        self._widths: dict[str, set[int]] = {}
        self._modes = {mode_of(self._config)}
        self._counts: Counter[str] = Counter()

    def _drawn_cluster(self) -> SimulatedCluster | None:
        faults, draw = self._scenario.faults, self._fate.random("cluster")
        if not faults.workers or not draw.choice(faults.workers):
            return None
        time = VirtualTime(self._fate.random("time"), 0.0, draw.choice(STEP_SECONDS) / 2)
        fleet = self._world.fleet = Fleet(self._fate.random("fleet"), self._trace, time)
        return SimulatedCluster(self._world, fleet, draw, draw.choice(faults.weather))

    def to_the_end(self) -> SimulationResult:
        try:
            return self._to_the_end()
        finally:
            self._world.end()

    def _to_the_end(self) -> SimulationResult:
        begun = time.process_time()
        self._run()
        self._clear_up()
        if deleted := self._world.timeline.deleted():
            raise self._failed(f"savepoints, or what was started from unclaimed, were deleted: {', '.join(deleted)}")
        outcome = self._outcome()
        self._judge(outcome)
        counts = self._counts
        return SimulationResult(
            seed=self._seed,
            trace_hash=self._trace.hash,
            faults=dict(+self._fate.struck),
            processes=counts["processes"],
            attempts=counts["attempts"],
            restores=counts["restores"],
            rescales=counts["rescales"],
            mode_switches=counts["mode switches"],
            backend_switches=counts["backend switches"],
            savepoints=self._world.timeline.savepoints,
            reused_files=self._world.reused_files,
            checkpoints=self._world.checkpoints,
            steps=counts["steps"],
            virtual_seconds=self._world.now,
            cpu_seconds=time.process_time() - begun,
        )

    def _run(self) -> None:
        while not self._live():
            if self._counts["processes"] >= PROCESSES:
                raise self._failed(f"the job was started {PROCESSES} times, and has not finished")

    def _clear_up(self) -> None:
        """What crashes have left behind goes when the job, which has finished, is started once more, and nothing goes
        wrong. That must change nothing else: which is looked at now and then where there is nothing to clear up."""
        if not self._leaked() and self._draw.random() > STARTED_AGAIN:
            return
        self._world.fate = Fate(self._seed, Faults.none())
        if not self._live():
            raise self._failed("the job has finished, was started again, and did not come to an end")
        if leaked := self._leaked():
            raise self._failed(f"this is left, and nobody needs it: {', '.join(leaked)}")

    def _leaked(self) -> list[str]:
        assert self._config.checkpoints is not None and self._graph is not None
        checkpoints = self._config.checkpoints
        return self._world.leaked(checkpoints.storage, self._graph.name, checkpoints.retain)

    # ------------------------------------------------------------------------------------------------------ one process
    def _live(self) -> bool:
        """Whether the job has finished."""
        self._counts["processes"] += 1
        first = self._counts["processes"] == 1
        self._reconfigure(first=first)
        process = self._world.begin_process()
        try:
            life = self._life(process, first=first)
            life.run()
            self._check(life)
            finished = life.finished
        finally:
            self._counts["steps"] += process.steps
            self._world.end_process()
            if self._cluster is not None:
                self._cluster.coordinator_ends()
        if life.crash == "power_losses":
            self._lose_power()
        if finished and self._cluster is not None:
            self._end_cluster(self._cluster)
        return finished

    def _lose_power(self) -> None:
        if self._cluster is not None:
            self._cluster.lose_power()
        self._world.lose_power()

    def _end_cluster(self, cluster: SimulatedCluster) -> None:
        """The job has finished; whatever comes after runs in one process."""
        cluster.close()
        self._world.end()
        self._cluster = self._world.fleet = None
        if self._world.broken:
            raise self._failed("; ".join(self._world.broken))

    def _reconfigure(self, *, first: bool) -> None:
        before, backend = mode_of(self._config), backend_of(self._config)
        self._config = next_config(self._config, self._scenario.faults, self._draw, first=first)
        mode = mode_of(self._config)
        self._counts["mode switches"] += mode != before
        self._counts["backend switches"] += not first and backend_of(self._config) != backend
        self._modes.add(mode)
        if not first:
            self._world.rest(self._draw.random() * DOWN_SECONDS)

    def _life(self, process: Process, *, first: bool) -> Life:
        self._graph = self._make()
        self._trace.note(f"{mode_of(self._config)} {backend_of(self._config)} {self._config.mailbox_capacity}")
        graph = disturbed(self._graph, self._fate.random("coroutines"))
        self._rescale(graph, FIRST if first else AT_A_START)
        start = self._start(first=first)
        assert self._config.checkpoints is not None
        disk = self._world.disk(process)
        files = LocalFiles(self._config.checkpoints.storage, clock=process.clock, disk=disk)
        job = job_here(
            rescaled(graph, self._drawn_widths),
            on_local_disk(self._config),
            restore=start.restore,
            claim=start.claim,
            fresh=False,
            resources=None,
            clock=process.clock,
            files=files,
        )
        job._spec = replace(job._spec, plan=functools.partial(self._plan, graph))
        life = Life(self._world, process, job, self._widths_to_draw(graph))
        job._deploy = _Deployment(process, life, self._counts, self._widths, self._deploy(process))
        return life

    def _deploy(self, process: Process) -> Deploy:
        """In this process, over channels that stall; or over workers."""
        count = self._draw.choice(sorted(set(self._scenario.faults.workers))) if self._cluster is not None else 0
        self._trace.note(f"{count} workers")
        if self._cluster is None or not count:
            return functools.partial(deploy_locally, wrap=lambda id, inner: StallingChannel(id, inner, process))
        assert self._config.checkpoints is not None
        self._cluster.take_over(process, count, self._config.checkpoints.storage)
        return self._cluster.deploy

    def _start(self, *, first: bool) -> Start:
        """What the user gives as `restore`."""
        if not first and self._fate.strikes("rewinds") and not self._world.go_back(self._draw):
            self._fate.struck["rewinds"] -= 1
        start = self._world.timeline.from_here
        self._trace.note(f"start from {start}")
        return start

    def _make(self) -> LogicalGraph:
        factory = self._scenario.flow
        flow = factory(self._world) if inspect.signature(factory).parameters else factory()
        if not isinstance(flow, Dataflow):
            raise InvalidConfig(f"simulate takes a factory of a Dataflow, and {factory!r} gave {flow!r}")
        return flow.graph()

    def _plan(self, graph: LogicalGraph, max_parallelism: int | None, rescaled_to: Parallelism) -> PhysicalPlan:
        """Of one attempt: it may be wider or narrower than the one before."""
        self._rescale(graph, AT_AN_ATTEMPT)
        made = rescaled(graph, self._drawn_widths)
        parallelism, steps = rescaled_to.default, rescaled_to.steps
        return plan(made, parallelism=parallelism, steps=steps, max_parallelism=max_parallelism, checkpointing=True)

    def _widths_to_draw(self, graph: LogicalGraph) -> Callable[[Random], dict[str, int]] | None:
        choices = self._scenario.faults.parallelism
        free = {node.uid for node in graph.nodes if node.parallelism is None}
        if not choices or not free:
            return None
        return lambda draw: {uid: n for uid, n in drawn_widths(graph, choices, draw).items() if uid in free}

    def _rescale(self, graph: LogicalGraph, share: float) -> None:
        choices = self._scenario.faults.parallelism
        if not choices or self._draw.random() >= share:
            return
        drawn = drawn_widths(graph, choices, self._draw)
        self._counts["rescales"] += share < FIRST and drawn != self._drawn_widths
        self._drawn_widths = drawn
        self._trace.note(f"rescaled: {sorted(drawn.items())}")

    def _check(self, life: Life) -> None:
        if (error := life.unexpected()) is not None:
            what = f"{type(error).__name__}: {error}"
            raise self._failed(f"the job failed for no reason that was put in: {what}") from error
        if problems := life.problems():
            raise self._failed("; ".join(problems))

    # ---------------------------------------------------------------------------------------------------------- verdict
    def _outcome(self) -> Outcome:
        assert self._graph is not None and self._config.checkpoints is not None
        try:
            states = last_states(self._world.root, self._config.checkpoints.storage, self._graph, self._world.now)
        except StreamactorsError as error:
            raise self._failed(f"the last checkpoint can't be read: {error}") from error
        exactly_once = "at-least-once" not in self._modes
        return Outcome(world=self._world, exactly_once=exactly_once, states=states, widths=self._widths)

    def _judge(self, outcome: Outcome) -> None:
        if undecided := [value for topic in self._world.broker.topics for value in self._world.broker.undecided(topic)]:
            raise self._failed(f"the job has finished, and output is neither committed nor aborted: {undecided[:10]}")
        check = self._scenario.check or same_as(self._reference())
        try:
            check(outcome)
        except AssertionError as error:
            raise self._failed(str(error) or "the check has failed") from error

    def _reference(self) -> Outcome:
        """What comes of it when nothing goes wrong."""
        calm = replace(self._scenario, faults=Faults.none())
        run = Run(calm, self._seed, Trace())
        try:
            run._run()
            return run._outcome()
        finally:
            run._world.end()

    def _failed(self, what: str) -> SimulationFailed:
        return SimulationFailed(f"seed {self._seed}: {what}\n{replay(self._scenario, self._seed)}")


class _Deployment:
    """Takes note of attempts."""

    def __init__(
        self, process: Process, life: Life, counts: Counter[str], ran_at: dict[str, set[int]], deploy: Deploy
    ) -> None:
        self._deploy = deploy
        self._process = process
        self._life = life
        self._counts = counts
        self._ran_at = ran_at

    async def __call__(self, spec: AttemptSpec, storage: StoredSnapshots, reports: Reports, clock: Clock) -> Deployed:
        process = self._process
        self._counts["attempts"] += 1
        if self._counts["attempts"] > ATTEMPTS:
            self._life.give_up(f"the job has made {ATTEMPTS} attempts, and has not finished")
        self._counts["restores"] += bool(spec.restores)
        process.note(f"attempt {spec.attempt} of run {spec.run}")
        for uid, width in widths(spec.plan).items():
            self._ran_at.setdefault(uid, set()).add(width)
        self._life.attempt_begins(str(id) for id in spec.plan.subtasks)
        return await self._deploy(spec, storage, reports, clock)


# --------------------------------------------------------------------------------------------------------- surroundings
def _on_disk(scenario: Scenario) -> bool:
    """Whether any process of a run may have state on its local disk."""
    configured = scenario.config is not None and backend_of(scenario.config) == RocksDB.name
    return configured or RocksDB.name in scenario.faults.backends


def _refuse_running_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise InvalidConfig("simulate runs an event loop of its own: call it from a plain `def`, not from a coroutine")


@contextmanager
def _own_garbage() -> Iterator[None]:
    """Collected at seeded points only, and only what the run has made: all that is there before is set aside."""
    enabled = gc.isenabled()
    gc.disable()
    gc.freeze()
    try:
        yield
    finally:
        gc.collect()
        gc.unfreeze()
        if enabled:
            gc.enable()


@contextmanager
def _quiet(*, logs: bool) -> Iterator[None]:
    """A job that is disturbed all the time has much to say."""
    logger = logging.getLogger("streamactors")
    level = logger.level
    if not logs:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)
