"""Events judged by rules that arrive on a broadcast stream: over crashes and rescales, every event once, by the right
rules; and every subtask has all rules, also those that were in flight to it."""

import asyncio
import datetime as dt
from pathlib import Path
from typing import Any

import msgspec
import pytest

import streamactors as sa
from connectors.memory import ListSink
from streamactors.checkpoint.manifest import BROADCAST_STATE
from streamactors.state.key_groups import default_max_parallelism, key_group, subtask_of
from tests.recovery.flows import config, dropped, flip_byte
from tests.recovery.test_two_inputs import Slow, latest
from tests.runtime.feeds import PATIENCE, Feed, Gate, until

pytestmark = pytest.mark.slow

USERS = 40


class Event(msgspec.Struct, frozen=True):
    number: int
    amount: int


class Rule(msgspec.Struct, frozen=True):
    """`least` None: it holds no longer."""

    name: str
    least: int | None


class Verdict(msgspec.Struct, frozen=True):
    """`place`: among the events of its user."""

    number: int
    rules: tuple[str, ...]
    place: int


class Limit(msgspec.Struct):
    """A rule as it is kept: can be changed in place, so that snapshots have to mind."""

    least: int
    tags: list[str]


def user(event: Event) -> int:
    return event.number % USERS


class Judge(sa.KeyedBroadcastOperator[int, Event, Rule, Verdict]):
    rules = sa.BroadcastState(str, Limit)
    seen = sa.ValueState(int, default=0)
    applied = sa.OperatorListState(str)

    def process(self, event: Event, ctx: sa.Context[int, Verdict]) -> None:
        self.seen.set(self.seen.get() + 1)
        matching = sorted(name for name, limit in self.rules.items() if event.amount >= limit.least)
        ctx.emit(Verdict(event.number, tuple(matching), self.seen.get()))

    async def process_broadcast(self, rule: Rule, ctx: sa.Context[None, Verdict]) -> None:
        self.applied.append(rule.name)
        if rule.least is None:
            del self.rules[rule.name]
        else:
            self.rules[rule.name] = Limit(rule.least, [rule.name])


class Court:
    """A flow that can be watched: which rules each living subtask has, and what it had when it opened."""

    def __init__(self) -> None:
        self.events, self.rules, self.sink = Feed(chunk=16), Feed(), ListSink[Verdict]()
        self.law: dict[str, int] = {}
        self.live: dict[int, Judge] = {}
        self.found: dict[int, dict[str, int]] = {}
        self.given = 0
        self.expected: list[Verdict] = []

    def flow(self, gate: Gate | None = None) -> sa.Dataflow:
        court, flow = self, sa.Dataflow("court")
        self.live.clear()
        self.found.clear()

        class Watched(Judge):
            def open(self, ctx: sa.OperatorContext, /) -> None:
                court.live[ctx.subtask] = self
                court.found[ctx.subtask] = law_of(self)

        events = flow.source("events", self.events, parallelism=1)
        rules = flow.source("rules", self.rules, parallelism=1)
        verdicts = events.key_by(user).connect_broadcast(rules).process("judge", Watched)
        verdicts.process("gate", lambda: Slow(gate or Gate()), chain=False).sink("out", self.sink)
        return flow

    def decree(self, **limits: int | None) -> None:
        for name, least in limits.items():
            self.rules.put(Rule(name, least))
            if least is None:
                del self.law[name]
            else:
                self.law[name] = least

    async def in_force(self) -> None:
        """Until every subtask has the rules."""
        await until(lambda: all(law_of(judge) == self.law for judge in self.live.values()))

    def submit(self, count: int) -> None:
        """Events for the law as it is."""
        for number in range(self.given, self.given + count):
            event = Event(number, number % 10)
            self.events.put(event)
            names = sorted(name for name, least in self.law.items() if event.amount >= least)
            self.expected.append(Verdict(number, tuple(names), number // USERS + 1))
        self.given += count

    async def judged(self, job: sa.JobHandle) -> None:
        """Until all events are, by whichever attempt."""
        async with asyncio.timeout(PATIENCE):
            for number in range(USERS):
                total = len(range(number, self.given, USERS))
                while await job.query("judge", Judge.seen, number) != total:
                    await asyncio.sleep(0.001)


def law_of(judge: Judge) -> dict[str, int]:
    return {name: limit.least for name, limit in judge.rules.items()}


def settings(folder: Path, leg: int, alignment: Any, parallelism: int, **options: Any) -> sa.Config:
    """Every leg on the other backend."""
    made = config(folder / "storage", alignment=alignment, **options)
    small = sa.RocksDB(folder=str(folder), memory=8 << 20, cache=16)
    return sa.Config(
        checkpoints=made.checkpoints,
        restart=made.restart,
        parallelism=parallelism,
        mailbox_capacity=64,
        state_backend=small if leg % 2 else "heap",
    )


@pytest.mark.parametrize("alignment", ["aligned", "unaligned"])
async def test_every_event_once_and_by_the_right_rules(tmp_path: Path, alignment: Any) -> None:
    """Laws are changed before a checkpoint; what is judged after it is judged again after a crash, by the same ones."""
    court = Court()
    for leg, parallelism in enumerate([2, 3, 1, 4]):
        again = sa.Restart.fixed(dt.timedelta(0), 5)
        async with dropped(court.flow(), settings(tmp_path, leg, alignment, parallelism, restart=again)) as job:
            await until(lambda: job.status == "running")
            assert court.found == dict.fromkeys(range(parallelism), court.law), "restored to every subtask"
            court.submit(100)
            await court.judged(job)
            court.decree(**{f"rule-{leg}": leg, "moving": 9 - leg})
            await court.in_force()
            await job.checkpoint()
            court.submit(300)
            await court.judged(job)
            court.events.fail(OSError("connection lost"))
            await until(lambda: job.metrics()["restarts"] == 1 and job.status == "running")
            assert court.found == dict.fromkeys(range(parallelism), court.law)
            await court.judged(job)
            if leg == 2:
                court.decree(**{"rule-0": None})
                await court.in_force()
            subtasks = [
                part["nodes"]["judge"]["entries"] for name, part in job.metrics()["subtasks"].items() if "judge" in name
            ]
            assert [entries["rules"] for entries in subtasks] == [len(court.law)] * parallelism
            await job.checkpoint()
    assert BROADCAST_STATE in (await latest(tmp_path / "storage")).requires
    court.events.end()
    court.rules.end()
    async with asyncio.timeout(PATIENCE):
        await sa.run(court.flow(), settings(tmp_path, 0, alignment, 2))
    assert sorted(court.sink.values, key=lambda verdict: verdict.number) == court.expected


@pytest.mark.parametrize("parallelism", [1, 2, 3, 5])
async def test_rules_in_flight_reach_every_subtask_once(tmp_path: Path, parallelism: int) -> None:
    """One subtask is stuck and has them still before it, the others have applied them; nobody reads them again."""
    court, gate = Court(), Gate(10**9)
    court.decree(old=3, going=4)
    async with sa.start(court.flow(gate), settings(tmp_path, 0, "unaligned", 3)) as job:
        await until(lambda: job.status == "running" and len(court.live) == 3)
        await court.in_force()
        stuck = [number for number in range(USERS) if user_owner(number) == 0]
        gate.passes = 10
        for place in range(3000):
            court.events.put(Event(stuck[place % len(stuck)], 5))
        await until(lambda: gate.held and job.metrics()["subtasks"]["events[0]"]["unsent"])
        court.decree(new=2, going=None, old=7)
        await until(lambda: law_of(court.live[1]) == law_of(court.live[2]) == court.law)
        assert law_of(court.live[0]) == {"old": 3, "going": 4}
        async with asyncio.timeout(PATIENCE):
            info = await job.checkpoint()
        assert info.inflight_bytes > 0
        await job.cancel()
    async with dropped(court.flow(), settings(tmp_path, 1, "unaligned", parallelism)) as job:
        await until(lambda: len(court.live) == parallelism and job.status == "running")
        await court.in_force()
        for judge in court.live.values():
            assert len(judge.rules) == 2
        court.events.end()
        court.rules.end()
        await job.wait()
    assert [verdict.number for verdict in court.sink.values].count(stuck[0]) == len(range(0, 3000, len(stuck)))
    per_user: dict[int, list[int]] = {}
    for verdict in court.sink.values:
        per_user.setdefault(verdict.number, []).append(verdict.place)
    assert per_user == {
        number: list(range(1, len(range(place, 3000, len(stuck))) + 1)) for place, number in enumerate(stuck)
    }


def user_owner(number: int) -> int:
    return subtask_of(key_group(number, default_max_parallelism(3)), 3, default_max_parallelism(3))


# ------------------------------------------------------------------------------------------------ what is refused
async def judged_once(folder: Path, **options: Any) -> Court:
    court = Court()
    court.decree(a=1, b=2)
    court.rules.end()
    court.submit(50)
    court.events.end()
    await sa.run(court.flow(), config(folder, parallelism=2, **options))
    return court


async def test_a_query_is_told_that_there_is_no_key(tmp_path: Path) -> None:
    async with dropped(Court().flow(), config(tmp_path)) as job:
        with pytest.raises(sa.StateAccessError, match="operator 'judge': state 'rules' belongs to no key"):
            await job.query("judge", "rules", "a")


async def test_another_type_is_refused_and_damage_is_found(tmp_path: Path) -> None:
    court = await judged_once(tmp_path)

    class Changed(Judge):
        rules: Any = sa.BroadcastState(str, int)

    flow = sa.Dataflow("court")
    events, rules = flow.source("events", court.events, parallelism=1), flow.source("rules", court.rules, parallelism=1)
    events.key_by(user).connect_broadcast(rules).process("judge", Changed).process("gate", lambda: Slow(Gate())).sink(
        "out", court.sink
    )
    with pytest.raises(sa.IncompatibleState, match="operator 'judge', state 'rules': stored as Limit, now int"):
        await sa.run(flow, config(tmp_path, parallelism=2))
    lists = next(node.lists for _, node in (await latest(tmp_path)).nodes("judge") if node.lists is not None)
    flip_byte(tmp_path / "court" / lists.file.path, lists.file.start + lists.blocks[0].length // 2)
    with pytest.raises(sa.CorruptCheckpoint, match="is altered"):
        await sa.run(court.flow(), config(tmp_path, parallelism=2))
