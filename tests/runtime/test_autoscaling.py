"""What the autoscaler decides, and why: on made-up counts, and on a plant that answers to it."""

import datetime as dt
import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamactors.config import Autoscale
from streamactors.graph.logical import Keyed
from streamactors.graph.physical import PhysicalPlan
from streamactors.runtime.autoscaling.decisions import Autoscaler, Decision
from streamactors.runtime.autoscaling.demand import ChainCounts, Demand, Observation, measure
from tests.graph.graphs import Graph, identity
from tests.runtime.autoscaled import Plant, counts, orders, planned

pytestmark = pytest.mark.slow

SETTINGS = Autoscale()
EVERY = SETTINGS.every.total_seconds()
HOUR = 3600.0


def drive(
    plant: Plant, autoscaler: Autoscaler, seconds: float, rate: Callable[[float], float], *, pause: float = 0.0
) -> list[tuple[float, int]]:
    """Does what is decided; returns (time, parallelism) of each rescale."""
    done: list[tuple[float, int]] = []
    until = plant.time + seconds
    while plant.time < until:
        decision = autoscaler.on(plant.run(EVERY, rate(plant.time)))
        if decision.action == "rescale":
            plant.rescale(decision.parallelism, pause)
            autoscaler.rescaled(plant.time)
            done.append((plant.time, plant.parallelism))
    return done


def at_once(**given: Any) -> Autoscale:
    """With a window of one step, and no rest."""
    none = dt.timedelta(0)
    quick = Autoscale(window=dt.timedelta(seconds=10), cooldown=none, scale_down_after=none, catch_up=none)
    return replace(quick, **given)


def decided(made: PhysicalPlan, given: Autoscale, room: int | None = None, /, **chains: ChainCounts) -> Decision:
    """On the first window of an attempt: `chains` are what was counted in ten seconds."""
    autoscaler = Autoscaler(given, room)
    nothing = {uid: at(chain, made.vertex[uid].parallelism) for uid, chain in chains.items()}
    autoscaler.on(Observation(0.0, made, nothing))
    return autoscaler.on(Observation(10.0, made, chains))


def at(chain: ChainCounts, parallelism: int) -> ChainCounts:
    """The same, before anything was done."""
    return ChainCounts(((0.0, 0.0, 0.0),) * parallelism, 0.0, (0.0,) * len(chain.out), chain.pending, chain.splits)


def totals_at(parallelism: int, *busy: float, given: Autoscale, room: int | None = None, **source: Any) -> Decision:
    chains = {
        "orders": counts(10, 0.1, records=100, **source),
        "totals": counts(10, *busy, records=100, nodes=2),
    }
    return decided(planned(orders(), totals=parallelism, out=parallelism), given, room, **chains)


# --------------------------------------------------------------------------------------------------------------- demand
def demands(catch_up: float = 0.0, pending_before: float | None = None, **chains: ChainCounts) -> dict[str, Demand]:
    made = planned(orders())
    before = {uid: at(chain, 1) for uid, chain in chains.items()}
    before["orders"] = replace(before["orders"], pending=pending_before)
    return measure(Observation(0.0, made, before), Observation(10.0, made, chains), catch_up)


def test_what_a_chain_needs_grows_with_what_holds_its_source_back() -> None:
    found = demands(orders=counts(10, 0.1, records=100, held_back=0.5), totals=counts(10, 0.9, records=100))
    assert found["orders"].growth == pytest.approx(2.0)
    assert found["totals"].load == pytest.approx(1.8)
    assert found["totals"].rate == pytest.approx(100)


def test_a_source_that_tells_what_is_pending_needs_what_arrives_and_what_waits() -> None:
    source = counts(10, 0.1, records=100, held_back=0.9, pending=1000)
    found = demands(20.0, 500.0, orders=source, totals=counts(10, 0.5, records=100))
    assert found["orders"].growth == pytest.approx((100 + 50 + 1000 / 20) / 100)
    without = demands(0.0, 500.0, orders=source, totals=counts(10, 0.5, records=100))
    assert without["orders"].growth == pytest.approx(1.5)


def test_who_is_held_back_is_not_taken_for_idle() -> None:
    """What is pending may be known late."""
    source = counts(10, 0.1, records=100, held_back=0.5, pending=0)
    assert demands(20.0, 1000.0, orders=source, totals=counts(10, 0.9, records=100))["orders"].growth == 1.0


def test_nothing_is_known_where_nothing_comes_through() -> None:
    found = demands(10.0, 5.0, orders=counts(10, 0.0, pending=5), totals=counts(10, 1.0))
    assert found["orders"].growth is None and found["totals"].load is None
    stuck = demands(orders=counts(10, 0.0, held_back=0.9), totals=counts(10, 1.0))
    assert stuck["totals"].load is None


def test_an_idle_flow_has_no_load() -> None:
    assert demands(orders=counts(10, 0.0), totals=counts(10, 0.0))["totals"].load == 0.0
    assert demands(60.0, 0.0, orders=counts(10, 0.0, pending=0), totals=counts(10, 0.0))["totals"].load == 0.0


def test_two_sources_count_by_what_they_give() -> None:
    graph = Graph().add("a", "source", parallelism=1).add("b", "source", parallelism=1)
    made = planned(graph.add("both", "process", ("a", Keyed(identity)), ("b", Keyed(identity))).build())
    chains = {
        "a": counts(10, 0.1, records=300),
        "b": counts(10, 0.1, records=100, held_back=0.5),
        "both": counts(10, 0.4, records=400),
    }
    before = {uid: at(chain, 1) for uid, chain in chains.items()}
    found = measure(Observation(0.0, made, before), Observation(10.0, made, chains), 0.0)
    assert found["both"].growth == pytest.approx((300 * 1 + 100 * 2) / 400)


# ------------------------------------------------------------------------------------------------------------- one look
def test_too_much_to_do_gets_more_subtasks() -> None:
    decision = totals_at(2, 0.95, 0.5, given=at_once())
    assert decision.action == "rescale" and decision.parallelism == {"totals": 3}
    assert decision.reason == "totals 2 → 3, load 0.95, target 0.70: busy 95%"


def test_too_little_gets_fewer() -> None:
    assert totals_at(4, *[0.2] * 4, given=at_once()).parallelism == {"totals": 2}


@pytest.mark.parametrize("busy", [0.55, 0.7, 0.85])
def test_what_is_near_the_target_is_left_alone(busy: float) -> None:
    decision = totals_at(4, *[busy] * 4, given=at_once())
    assert decision.action == "keep" and decision.parallelism == {}


def test_the_busiest_subtask_decides() -> None:
    assert totals_at(4, 0.1, 0.1, 0.1, 0.8, given=at_once()).action == "keep"


def test_no_more_than_the_factor_at_a_time() -> None:
    assert totals_at(2, 1.0, 1.0, given=at_once(), held_back=0.89).parallelism == {"totals": 6}
    assert totals_at(9, *[0.01] * 9, given=at_once()).parallelism == {"totals": 3}
    assert totals_at(2, 0.01, 0.01, given=at_once(max_factor=1.1)).parallelism == {"totals": 1}
    assert totals_at(1, 1.0, given=at_once(max_factor=1.1), held_back=0.8).parallelism == {"totals": 2}


def test_bounds() -> None:
    assert totals_at(2, 1.0, 1.0, given=at_once(max_parallelism=3), held_back=0.5).parallelism == {"totals": 3}
    capped = totals_at(3, *[1.0] * 3, given=at_once(max_parallelism=3), held_back=0.5)
    assert capped.action == "keep" and "no more than 3: autoscale.max_parallelism" in capped.reason
    assert totals_at(2, 1.0, 1.0, given=at_once(), room=3, held_back=0.5).parallelism == {"totals": 3}
    full = totals_at(3, *[1.0] * 3, given=at_once(), room=3, held_back=0.5)
    assert full.action == "keep" and "no more than 3: its workers have no more slots" in full.reason
    assert totals_at(4, *[0.0] * 4, given=at_once(min_parallelism=2)).parallelism == {"totals": 2}
    assert totals_at(4, *[0.7] * 4, given=at_once(max_parallelism=2)).parallelism == {"totals": 2}


def test_the_key_groups_are_a_bound() -> None:
    chains = {"orders": counts(10, 0.1, records=1, held_back=0.8), "totals": counts(10, 1.0, 1.0, records=1, nodes=2)}
    made = PhysicalPlan(
        "test",
        tuple(replace(vertex, max_parallelism=2) for vertex in planned(orders(), totals=2, out=2).vertices),
        planned(orders(), totals=2, out=2).edges,
    )
    decision = decided(made, at_once(), **chains)
    assert decision.action == "keep" and "the job's max_parallelism" in decision.reason


def test_a_source_gets_no_more_subtasks_than_it_has_splits() -> None:
    graph = Graph().add("orders", "source").add("out", "sink", ("orders", Keyed(identity)), parallelism=1).build()
    chains = {"orders": counts(10, 1.0, records=100, pending=1e6, splits=2), "out": counts(10, 0.1, records=100)}
    decision = decided(planned(graph), at_once(catch_up=dt.timedelta(minutes=1)), **chains)
    assert decision.parallelism == {"orders": 2}
    assert "it has 2 splits to read" in decision.reason


def test_steps_can_be_chosen() -> None:
    assert totals_at(1, 1.0, given=at_once(steps=["out"])).parallelism == {"totals": 2}  # they share an actor
    decision = totals_at(1, 1.0, given=at_once(steps=["orders"]))
    assert decision.action == "keep" and decision.reason == "totals: not among autoscale.steps"


def test_a_step_that_the_flow_wants_alone_is_left_alone() -> None:
    graph = Graph().add("orders", "source", parallelism=1)
    graph.add("totals", "process", ("orders", Keyed(identity)), parallelism=1)
    chains = {"orders": counts(10, 0.1, records=1), "totals": counts(10, 1.0, records=1)}
    decision = decided(planned(graph.build()), at_once(), **chains)
    assert decision.action == "keep" and "parallelism=1" in decision.reason


def test_what_was_made_wider_by_hand_is_left_alone() -> None:
    graph = Graph().add("orders", "source", parallelism=1)
    graph.add("totals", "process", ("orders", Keyed(identity))).add("one", "map", "totals", parallelism=1)
    chains = {"orders": counts(10, 0.1, records=1), "totals": counts(10, *[0.95] * 4, records=1, nodes=2)}
    decision = decided(planned(graph.build(), totals=4, one=4), at_once(), **chains)
    assert decision.action == "keep" and "the flow gives 'one' parallelism=1" in decision.reason


def test_what_is_in_front_of_it_is_not() -> None:
    graph = Graph().add("orders", "source", parallelism=1).add("totals", "process", ("orders", Keyed(identity)))
    graph.add("one", "map", "totals", parallelism=1).add("out", "sink", "one")
    chains = {"orders": counts(10, 0.1, records=1), "totals": counts(10, 0.95, records=1, nodes=3)}
    decision = decided(planned(graph.build()), at_once(), **chains)
    assert decision.parallelism == {"totals": 2, "one": 1, "out": 1}


def test_chains_that_go_together_are_as_wide_as_the_busiest_needs() -> None:
    graph = Graph().add("orders", "source").add("calls", "process", "orders", chain=False).build()
    chains = {"orders": counts(10, 0.1, records=100), "calls": counts(10, 0.95, records=100)}
    assert decided(planned(graph), at_once(), **chains).parallelism == {"orders": 2}


# ------------------------------------------------------------------------------------------------------------- in time
def test_it_measures_for_a_window_first() -> None:
    plant, autoscaler = Plant(), Autoscaler(SETTINGS)
    waits = [autoscaler.on(plant.run(EVERY, 2000.0)) for _ in range(6)]
    assert [decision.action for decision in waits] == ["wait"] * 6
    assert waits[1].reason == "measured for 10 s of 60 s"
    assert autoscaler.on(plant.run(EVERY, 2000.0)).action == "rescale"


def test_another_attempt_is_measured_anew() -> None:
    plant, autoscaler = Plant(), Autoscaler(SETTINGS)
    for _ in range(6):
        autoscaler.on(plant.run(EVERY, 2000.0))
    plant.rescale({"totals": 1})
    assert autoscaler.on(plant.run(EVERY, 2000.0)).action == "wait"


def test_counts_that_begin_anew_are_of_another_attempt() -> None:
    plant, autoscaler = Plant(), Autoscaler(SETTINGS)
    for _ in range(6):
        autoscaler.on(plant.run(EVERY, 2000.0))
    late = plant.plan
    plant.rescale({"totals": 1})
    assert autoscaler.on(replace(plant.run(EVERY, 2000.0), plan=late)).reason == "measured for 0 s of 60 s"


def test_it_rests_after_a_rescale() -> None:
    plant, autoscaler = Plant(tells=False), Autoscaler(SETTINGS)
    ((first, width),) = drive(plant, autoscaler, 70.0, lambda _: 50_000.0)
    assert width == 3
    ((second, width),) = drive(plant, autoscaler, 130.0, lambda _: 50_000.0)
    assert second - first == SETTINGS.cooldown.total_seconds() and width == 9


def test_it_gets_fewer_only_after_it_has_needed_fewer_for_long() -> None:
    plant, autoscaler = Plant(parallelism=8), Autoscaler(SETTINGS)
    assert drive(plant, autoscaler, 200.0, lambda _: 100.0) == []
    assert drive(plant, autoscaler, 70.0, lambda _: 5000.0) == []  # once more
    ((when, width),) = drive(plant, autoscaler, 500.0, lambda time: 1500.0 if time < 400 else 100.0)
    assert when >= 200.0 + 70.0 + SETTINGS.scale_down_after.total_seconds()
    assert width == 6  # as windows asked for that still held some of the 5,000


def test_a_rise_is_met_and_the_backlog_worked_off() -> None:
    plant, autoscaler = Plant(), Autoscaler(SETTINGS)
    drive(plant, autoscaler, 600.0, lambda _: 500.0, pause=5.0)
    assert plant.parallelism == 1
    drive(plant, autoscaler, HOUR, lambda _: 5000.0, pause=5.0)
    assert plant.parallelism == 8 and plant.waiting == 0.0
    drive(plant, autoscaler, HOUR, lambda _: 500.0, pause=5.0)
    assert plant.parallelism == 1


@pytest.mark.parametrize("tells", [True, False])
def test_what_more_subtasks_do_not_help_gets_no_more(tells: bool) -> None:
    """As in one process, where all share a core."""
    plant, autoscaler = Plant(shared=1, tells=tells), Autoscaler(SETTINGS)
    done = drive(plant, autoscaler, HOUR, lambda _: 20_000.0)
    assert [width for _, width in done] == [3]
    decision = autoscaler.on(plant.run(EVERY, 20_000.0))
    assert "3 subtasks do no more than 1 did" in decision.reason


def up_after_down(changes: Sequence[tuple[float, int]], first: int) -> bool:
    widths = [first, *(width for _, width in changes)]
    steps = [after - before for before, after in itertools.pairwise(widths)]
    return any(before < 0 < after for before, after in itertools.pairwise(steps))


@settings(max_examples=25)
@given(
    st.floats(0.05, 40.0),
    st.integers(1, 48),
    st.lists(st.floats(0.9, 1.1), min_size=7, max_size=61),
    st.booleans(),
)
def test_noise_does_not_make_it_go_up_and_down(load: float, first: int, noise: list[float], tells: bool) -> None:
    """`load`: subtasks that would be busy all the time."""
    plant, autoscaler = Plant(parallelism=first, tells=tells), Autoscaler(SETTINGS)

    def rate(time: float) -> float:
        return 1000.0 * load * noise[int(time / EVERY) % len(noise)]

    changes = drive(plant, autoscaler, HOUR, rate, pause=3.0)
    assert not up_after_down(changes, first)
    assert load / plant.parallelism <= 1.0
    assert plant.parallelism <= max(1, 2.2 * load + 1)


@settings(max_examples=50)
@given(st.floats(0.0, 20.0), st.integers(1, 32), st.floats(0.2, 0.7), st.floats(0.05, 0.15), st.floats(1.2, 5.0))
def test_a_constant_load_is_settled(load: float, first: int, target: float, tolerance: float, factor: float) -> None:
    """Whatever the settings: the load asks for one number of subtasks, from above and from below."""
    given = at_once(target=target, tolerance=tolerance, max_factor=factor)
    width, seen = first, [first]
    for _ in range(40):
        busy = min(1.0, load / width)
        held_back = max(0.0, 1.0 - width / load) if load else 0.0
        decision = totals_at(width, *[busy] * width, given=given, held_back=min(held_back, 0.89))
        width = decision.parallelism.get("totals", width)
        seen.append(width)
    assert seen[-1] == seen[-2]
    assert load / seen[-1] <= target + tolerance + 1e-6


def test_one_that_fails_is_followed_by_a_longer_rest_until_one_holds() -> None:
    cooldown, plant = SETTINGS.cooldown.total_seconds(), Plant()
    autoscaler = Autoscaler(SETTINGS)

    def rest() -> str:
        return autoscaler.on(plant.look()).reason

    autoscaler.rescaled(plant.time)
    assert rest() == f"{cooldown:.0f} s more of rest after a rescale"
    for times in (2, 4, 8, 16, 32, 32):
        autoscaler.failed(plant.time)
        assert rest() == f"{times * cooldown:.0f} s more of rest after a rescale"
    autoscaler.held()
    autoscaler.rescaled(plant.time)
    assert rest() == f"{cooldown:.0f} s more of rest after a rescale"
