"""Links with two inputs, batch by batch: which hook is called, with which key, and what state it reaches."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import streamactors as sa
from streamactors.elements import Batch
from streamactors.operators.base import Link, LinkContext, OperatorContext
from streamactors.operators.process import ProcessSpec
from streamactors.operators.two_inputs import BroadcastProcessSpec, CoProcessSpec
from streamactors.state.backend import Cursor, StateBlock
from streamactors.state.heap.backend import HeapBackend
from streamactors.state.key_groups import KeyGroupRange, key_group
from streamactors.state.operator_lists import OperatorLists
from streamactors.state.unkeyed import ListBlock

LEFT, RIGHT = 0, 1
GROUPS = KeyGroupRange(0, 4)
DEAD = sa.OutputTag("dead", sa.DeadLetter)
SIDE = sa.OutputTag("side", int)


class Parts:
    """What a link is made with, and its state."""

    def __init__(self, **options: Any) -> None:
        self.backend = HeapBackend(GROUPS, 4, uid="step")
        self.lists = OperatorLists("step")
        operator = OperatorContext(uid="step", subtask=0, parallelism=1)
        self.context = LinkContext("step", "step", operator, backend=self.backend, lists=self.lists, **options)

    def unkeyed(self) -> LinkContext:
        return LinkContext("step", "step", self.context.operator, lists=self.lists)


async def given_to(link: Link, side: int, batch: Batch) -> list[Any]:
    link.side = side
    result = await link.process(batch)
    return [] if result is None else list(result.values)


def keyed(*values: Any) -> Batch:
    """With the key `value % 4`."""
    keys = [value % 4 for value in values]
    return Batch(list(values), None, keys, [key_group(key, 4) for key in keys])


# --------------------------------------------------------------------------------------------------- without keys
class Pairs(sa.CoOperator[int, str, str]):
    """One hook is a coroutine, the other is not; state of the subtask is there in both."""

    held = sa.OperatorListState(str)

    def process_left(self, value: int, ctx: sa.Context[None, str]) -> None:
        self.held.append(str(value))
        ctx.emit(f"left {value} at {ctx.timestamp} for {ctx.key}")

    async def process_right(self, value: str, ctx: sa.Context[None, str]) -> None:
        ctx.emit_to(SIDE, len(self.held))
        ctx.emit(f"right {value} at {ctx.timestamp} for {ctx.key}")
        if value == "bad":
            raise ValueError("refused")


class Swapped(sa.CoOperator[int, str, str]):
    async def process_left(self, value: int, ctx: sa.Context[None, str]) -> None:
        ctx.emit(f"left {value} at {ctx.timestamp} for {ctx.key}")

    def process_right(self, value: str, ctx: sa.Context[None, str]) -> None:
        ctx.emit(f"right {value} at {ctx.timestamp} for {ctx.key}")


@pytest.mark.parametrize("operator", [Pairs, Swapped])
async def test_each_input_has_its_hook(operator: Any) -> None:
    link = CoProcessSpec(operator, keyed=False).link(Parts().unkeyed())
    await link.open()
    assert await given_to(link, LEFT, Batch([1, 2], [10, 20])) == [
        "left 1 at 10 for None",
        "left 2 at 20 for None",
    ]
    assert await given_to(link, RIGHT, Batch(["a"], [30])) == ["right a at 30 for None"]
    assert await given_to(link, LEFT, Batch([3])) == ["left 3 at None for None"]
    await link.close()


@pytest.mark.parametrize("operator", [Pairs, Swapped])
async def test_keys_of_one_input_alone_are_none_of_the_operator(operator: Any) -> None:
    """Their groups travel on, so that records in flight behind it keep their order per key."""
    for grouped in (False, True):
        link = CoProcessSpec(operator, keyed=False).link(Parts(carry_groups=grouped).context)
        link.side = LEFT
        result = await link.process(keyed(1, 2, 6))
        assert result is not None and result.groups == ([key_group(key, 4) for key in (1, 2, 2)] if grouped else None)
        assert all(value.endswith("for None") for value in result.values)
        link.side = RIGHT
        result = await link.process(Batch(["a"]))
        assert result is not None and result.groups is None and list(result.values) == ["right a at None for None"]


async def test_side_outputs_and_dead_letters_of_both() -> None:
    link = CoProcessSpec(Pairs, keyed=False, on_error=DEAD).link(Parts().unkeyed())
    assert await given_to(link, LEFT, Batch([1, 2])) != []
    assert await given_to(link, RIGHT, Batch(["a", "bad"], origins=[7, 8], split="log:")) == [
        "right a at None for None"
    ]
    assert list(link.sides["side"].values) == [2]
    [letter] = link.sides["dead"].values
    assert (letter.uid, letter.origin, letter.value, letter.error) == ("step", "log:8", "bad", "ValueError: refused")
    with pytest.raises(sa.RecordFailed, match="record log:8: ValueError: refused"):
        await given_to(
            CoProcessSpec(Pairs, keyed=False).link(Parts().unkeyed()), RIGHT, Batch(["bad"], origins=[8], split="log:")
        )


@pytest.mark.parametrize("on_error", ["fail", DEAD])
async def test_an_interrupted_hook_leaves_the_rest(on_error: Any) -> None:
    parts = Parts(interrupted=lambda: True)
    link = CoProcessSpec(Pairs, keyed=False, on_error=on_error).link(parts.context)
    assert await given_to(link, RIGHT, Batch(["a", "b", "c"])) == ["right a at None for None"]
    assert link.rest is not None and list(link.rest.values) == ["b", "c"]


# --------------------------------------------------------------------------------------------------- with keys
class Balance(sa.KeyedCoOperator[int, int, int, tuple[int, int]]):
    """Credits are added, debits taken away; the latter in a coroutine."""

    balance = sa.ValueState(int, default=0)

    def process_left(self, value: int, ctx: sa.Context[int, tuple[int, int]]) -> None:
        self._change(value, ctx)

    async def process_right(self, value: int, ctx: sa.Context[int, tuple[int, int]]) -> None:
        self._change(-value, ctx)

    def _change(self, amount: int, ctx: sa.Context[int, tuple[int, int]]) -> None:
        self.balance.set(self.balance.get() + amount)
        ctx.emit((ctx.key, self.balance.get()))


async def test_both_inputs_reach_the_state_of_their_key() -> None:
    parts = Parts()
    link = CoProcessSpec(Balance, keyed=True).link(parts.context)
    assert await given_to(link, LEFT, keyed(5, 6)) == [(1, 5), (2, 6)]
    assert await given_to(link, RIGHT, keyed(1, 2)) == [(1, 4), (2, 4)]
    assert await given_to(link, LEFT, keyed(9)) == [(1, 13)]
    assert parts.backend.entries() == {"balance": 2}


# --------------------------------------------------------------------------------------------------- broadcast
class Filtered(sa.KeyedBroadcastOperator[int, int, tuple[str, int | None], Any]):
    """Rules are named limits; None takes one away."""

    rules = sa.BroadcastState(str, int)
    count = sa.ValueState(int, default=0)

    def __init__(self) -> None:
        self.found: dict[str, int] = {}

    def open(self, ctx: sa.OperatorContext) -> None:
        self.found = dict(self.rules)
        with pytest.raises(sa.StateAccessError, match="process_broadcast only"):
            self.rules["open"] = 1

    def process(self, value: int, ctx: sa.Context[int, Any]) -> None:
        self.count.set(self.count.get() + 1)
        with pytest.raises(sa.StateAccessError, match="process_broadcast only"):
            self.rules["process"] = 1
        ctx.emit(
            (ctx.key, value, self.count.get(), sorted(name for name, limit in self.rules.items() if value > limit))
        )

    def process_broadcast(self, rule: tuple[str, int | None], ctx: sa.Context[None, Any]) -> None:
        name, limit = rule
        assert ctx.key is None
        if limit is None:
            del self.rules[name]
        else:
            self.rules[name] = limit
        for use in (self.count.get, lambda: self.count.set(1), self.count.clear):
            with pytest.raises(sa.StateAccessError, match="operator 'step', state 'count': there is no current key"):
                use()
        ctx.emit(len(self.rules))


class FilteredAsync(Filtered):
    async def process(self, value: int, ctx: sa.Context[int, Any]) -> None:  # type: ignore[override]
        super().process(value, ctx)

    async def process_broadcast(self, rule: tuple[str, int | None], ctx: sa.Context[None, Any]) -> None:  # type: ignore[override]
        super().process_broadcast(rule, ctx)


@pytest.mark.parametrize("on_error", ["fail", DEAD])
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("operator", [Filtered, FilteredAsync])
async def test_rules_are_written_by_one_input_and_read_by_the_other(
    operator: Any, grouped: bool, on_error: Any
) -> None:
    parts = Parts(carry_groups=grouped)
    link = BroadcastProcessSpec(operator, keyed=True, on_error=on_error).link(parts.context)
    await link.open()
    assert await given_to(link, LEFT, keyed(5)) == [(1, 5, 1, [])]
    assert await given_to(link, RIGHT, Batch([("big", 3), ("huge", 7)])) == [1, 2]
    assert await given_to(link, LEFT, keyed(5, 9, 6)) == [
        (1, 5, 2, ["big"]),
        (1, 9, 3, ["big", "huge"]),
        (2, 6, 1, ["big"]),
    ]
    assert await given_to(link, RIGHT, Batch([("big", None)])) == [1]
    assert await given_to(link, LEFT, keyed(5)) == [(1, 5, 4, [])]
    assert link.sides == {}
    assert (parts.lists.entries(), parts.backend.entries()) == ({"rules": 1}, {"count": 2})
    assert (set(parts.lists.schemas()), set(parts.backend.schemas())) == ({"rules"}, {"count"})


async def test_a_broadcast_that_fails_writes_no_further() -> None:
    class Failing(Filtered):
        def process_broadcast(self, rule: Any, ctx: sa.Context[None, Any]) -> None:
            self.rules["a"] = 1
            raise ValueError("refused")

    made: list[Any] = []

    def factory() -> Any:
        made.append(Failing())
        return made[0]

    link = BroadcastProcessSpec(factory, keyed=True).link(Parts().context)
    link.side = RIGHT
    with pytest.raises(sa.RecordFailed, match="ValueError: refused"):
        await link.process(Batch([("a", 1)]))
    with pytest.raises(sa.StateAccessError, match="process_broadcast only"):
        made[0].rules["b"] = 1
    assert made[0].rules == {"a": 1}


# ---------------------------------------------------------------------------- any interleaving, and any crash
class Latest(sa.KeyedBroadcastOperator[int, int, tuple[str, int], Any]):
    factors = sa.BroadcastState(str, int)
    total = sa.ValueState(int, default=0)

    def process(self, value: int, ctx: sa.Context[int, Any]) -> None:
        self.total.set(self.total.get() + value * sum(self.factors.values()))
        ctx.emit((ctx.key, self.total.get()))

    def process_broadcast(self, factor: tuple[str, int], ctx: sa.Context[None, Any]) -> None:
        name, value = factor
        if value:
            self.factors[name] = value
        else:
            self.factors.pop(name, None)


class Model:
    """The same by plain dicts."""

    def __init__(self) -> None:
        self.factors: dict[str, int] = {}
        self.totals: dict[int, int] = {}

    def left(self, values: list[int]) -> list[Any]:
        found = []
        for value in values:
            self.totals[value % 4] = self.totals.get(value % 4, 0) + value * sum(self.factors.values())
            found.append((value % 4, self.totals[value % 4]))
        return found

    def right(self, values: list[tuple[str, int]]) -> None:
        for name, value in values:
            self.factors[name] = value
            if not value:
                del self.factors[name]

    def copied(self) -> "Model":
        other = Model()
        other.factors, other.totals = dict(self.factors), dict(self.totals)
        return other


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("left"), st.lists(st.integers(0, 20), min_size=1, max_size=4)),
        st.tuples(
            st.just("right"), st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3)), min_size=1, max_size=3)
        ),
        st.tuples(st.just("checkpoint"), st.just([])),
        st.tuples(st.just("crash"), st.just([])),
    ),
    max_size=25,
)


class Running:
    """An operator and its state; a snapshot is written while it goes on."""

    def __init__(self, keyed_blocks: list[StateBlock], list_blocks: list[ListBlock]) -> None:
        self.parts = Parts()
        self.parts.backend.attach(Cursor())
        self.link = BroadcastProcessSpec(Latest, keyed=True).link(self.parts.context)
        self.parts.backend.restore(keyed_blocks)
        for block in list_blocks:
            self.parts.lists.restore(block, 0, block.items)

    def snapshot(self) -> Callable[[], tuple[list[StateBlock], list[ListBlock]]]:
        keyed, lists = self.parts.backend.begin_snapshot(1), self.parts.lists.begin_snapshot()
        kept: tuple[list[StateBlock], list[ListBlock]] = ([], [])

        def finish() -> tuple[list[StateBlock], list[ListBlock]]:
            kept[0].extend(iter(keyed.next_block, None))
            if lists is not None:
                kept[1].extend(iter(lists.next_block, None))
            return kept

        return finish


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(STEPS)
async def test_state_is_the_fold_over_any_interleaving_with_checkpoints_and_crashes(steps: list[Any]) -> None:
    running, model = Running([], []), Model()
    saved, finish = Model(), running.snapshot()
    for step, values in steps:
        match step:
            case "left":
                assert await given_to(running.link, LEFT, keyed(*values)) == model.left(values)
            case "right":
                await given_to(running.link, RIGHT, Batch(values))
                model.right(values)
            case "checkpoint":
                finish()
                saved, finish = model.copied(), running.snapshot()
            case "crash":
                running, model = Running(*finish()), saved.copied()
                finish = running.snapshot()
        held = running.parts.lists.entries()["factors"]
        assert (held, running.parts.backend.entries()["total"]) == (len(model.factors), len(model.totals))
    assert await given_to(running.link, LEFT, keyed(1, 2, 3, 4)) == model.left([1, 2, 3, 4])


# --------------------------------------------------------------------------------------------------- what is refused
class Plain(sa.Operator[Any, Any]):
    def process(self, value: Any, ctx: sa.Context[None, Any]) -> None: ...


class KeyedPlain(sa.KeyedOperator[Any, Any, Any]):
    def process(self, value: Any, ctx: sa.Context[Any, Any]) -> None: ...


PLACES: dict[str, ProcessSpec] = {
    "process": ProcessSpec(Plain, keyed=False),
    "keyed process": ProcessSpec(Plain, keyed=True),
    "connected": CoProcessSpec(Pairs, keyed=False),
    "keyed connected": CoProcessSpec(Pairs, keyed=True),
    "broadcast": BroadcastProcessSpec(Filtered, keyed=True),
}
FITTING = {
    Plain: {"process", "keyed process"},
    KeyedPlain: {"keyed process"},
    Pairs: {"connected", "keyed connected"},
    Balance: {"keyed connected"},
    Filtered: {"broadcast"},
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("operator", FITTING)
@pytest.mark.parametrize("by_factory", [False, True])
def test_operators_in_the_wrong_place_are_told_where_they_belong(place: str, operator: Any, by_factory: bool) -> None:
    factory = (lambda: operator()) if by_factory else operator
    spec = replace(PLACES[place], factory=factory)
    check = (lambda: spec.link(Parts().context)) if by_factory else (lambda: spec.validate("step"))
    if place in FITTING[operator]:
        check()
        return
    with pytest.raises(
        sa.InvalidDataflow, match=r"operator 'step': .*(is an? .*, used as|without keys: key_by|wanted)"
    ):
        check()


def test_the_words_for_the_wrong_place() -> None:
    with pytest.raises(
        sa.InvalidDataflow,
        match=r"'step': Filtered is a KeyedBroadcastOperator, used as stream\.key_by\(…\)\.connect_broadcast\(rules",
    ):
        ProcessSpec(Filtered, keyed=True).validate("step")
    with pytest.raises(sa.InvalidDataflow, match="Balance is a KeyedCoOperator on a stream without keys: key_by first"):
        CoProcessSpec(Balance, keyed=False).validate("step")
    with pytest.raises(sa.InvalidDataflow, match="given as an instance"):
        CoProcessSpec(Pairs(), keyed=False).validate("step")  # type: ignore[arg-type]


def declaring(base: Any, state: Any) -> Any:
    return type("Declaring", (base,), {"state": state})


@pytest.mark.parametrize(
    ("spec", "base"),
    [
        (ProcessSpec, Plain),
        (ProcessSpec, KeyedPlain),
        (CoProcessSpec, Pairs),
        (CoProcessSpec, Balance),
    ],
)
def test_broadcast_state_needs_a_broadcast_input(spec: Any, base: Any) -> None:
    operator = declaring(base, sa.BroadcastState(str, int))
    refused = r"declares broadcast state \(state\), .*KeyedBroadcastOperator.*connect_broadcast"
    with pytest.raises(sa.InvalidDataflow, match=refused):
        spec(operator, keyed=True).validate("step")
    with pytest.raises(sa.InvalidDataflow, match=refused):
        spec(lambda: operator(), keyed=True).link(Parts().context)


@pytest.mark.parametrize("keyed", [False, True])
def test_keyed_state_needs_keys_on_both_sides(keyed: bool) -> None:
    operator = declaring(Pairs, sa.ValueState(int, default=0))
    with pytest.raises(
        sa.InvalidDataflow, match=r"declares state \(state\), .* derive it from KeyedCoOperator and use"
    ):
        CoProcessSpec(operator, keyed=keyed).validate("step")


def test_a_step_is_a_process_whatever_its_inputs() -> None:
    """So that one may be given a second input, and keep its state."""
    assert {spec.kind for spec in PLACES.values()} == {"process"}
