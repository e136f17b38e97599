"""`python -m streamactors.testing.simulation`: one run by its seed, or many."""

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import fields, replace

from streamactors.errors import SimulationFailed, StreamactorsError
from streamactors.testing.simulation.faults import Faults
from streamactors.testing.simulation.many import Order, Totals, all_orders, run_many
from streamactors.testing.simulation.result import SimulationResult
from streamactors.testing.simulation.run import simulate
from streamactors.testing.simulation.settings import MODES
from streamactors.testing.simulation.topologies import TOPOLOGIES

MODULE = "streamactors.testing.simulation"
EXIT_OK, EXIT_FAILED, EXIT_REFUSED = 0, 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 1 if a run has failed, 2 for what can't be run."""
    options = _parser().parse_args(arguments)
    sys.path.insert(0, os.getcwd())
    try:
        return _one(options) if options.seed is not None else _many(options)
    except StreamactorsError as error:
        print(error, file=sys.stderr)
        return EXIT_REFUSED


def fix_hashes() -> None:
    """Text hashes differently in every process, and with it the order of sets, unless this is set before it starts."""
    if os.environ.get("PYTHONHASHSEED", "random") == "random":
        environment = os.environ | {"PYTHONHASHSEED": "0"}
        os.execve(sys.executable, [sys.executable, "-m", MODULE, *sys.argv[1:]], environment)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m {MODULE}",
        description="Runs whole jobs on virtual time, with faults drawn by seed, and checks what comes of them.",
    )
    parser.add_argument("flow", nargs="?", help="module:name of a factory of a flow, or of a Scenario")
    parser.add_argument("--topology", action="append", choices=TOPOLOGIES, help="built-in flow; default: all")
    parser.add_argument("--mode", action="append", choices=MODES, help="checkpointing mode; default: all")
    parser.add_argument("--seed", type=int, help="one run, by this seed")
    parser.add_argument("--seeds", type=int, default=100, help="so many runs (default: 100)")
    parser.add_argument("--first", type=int, default=0, help="the first of their seeds")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="worker processes")
    parser.add_argument("--faults", default="", help="kills=0,power_losses=3,parallelism=1/2,…")
    parser.add_argument("--trace", action="store_true", help="print every step of a single run")
    return parser


# ------------------------------------------------------------------------------------------------------------- one run
def _one(options: argparse.Namespace) -> int:
    order = replace(_orders(options, [options.seed])[0], faults=options.faults)
    try:
        result = simulate(order.scenario, seed=order.seed, listen=print if options.trace else None)
    except SimulationFailed as failure:
        print(f"{order.name}: {failure}", file=sys.stderr)
        return EXIT_FAILED
    print(f"{order.name}: {_described(result)}")
    return EXIT_OK


def _described(result: SimulationResult) -> str:
    shown = {each.name: getattr(result, each.name) for each in fields(result)}
    faults = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in shown.pop("faults").items())
    numbers = ", ".join(
        f"{name.replace('_', ' ')} {value:.2f}" if isinstance(value, float) else f"{name.replace('_', ' ')} {value}"
        for name, value in shown.items()
    )
    return f"{numbers}; faults: {faults or 'none'}"


# ----------------------------------------------------------------------------------------------------------- many runs
def _orders(options: argparse.Namespace, seeds: Sequence[int]) -> list[Order]:
    if options.flow is not None:
        return [Order(seed, target=options.flow, faults=options.faults) for seed in seeds]
    made = all_orders(seeds, options.topology or (), options.mode or ())
    return [replace(order, faults=options.faults) for order in made]


def _many(options: argparse.Namespace) -> int:
    Faults.from_options(options.faults)
    orders = _orders(options, range(options.first, options.first + options.seeds))
    begun = time.monotonic()
    totals = run_many(orders, max(1, options.jobs), _progress(len(orders), begun))
    print(file=sys.stderr)
    for line in summary(totals, time.monotonic() - begun):
        print(line)
    return EXIT_FAILED if totals.failures else EXIT_OK


def _progress(total: int, begun: float) -> Callable[[Totals], None]:
    def told(totals: Totals) -> None:
        done, seconds = totals.runs.total(), time.monotonic() - begun
        line = f"{done}/{total} runs, {len(totals.failures)} failed, {done / max(seconds, 0.001):.0f} a second"
        if sys.stderr.isatty():
            print(f"\r{line} ", end="", file=sys.stderr, flush=True)
        elif done == total or done % 1000 == 0:
            print(line, file=sys.stderr, flush=True)

    return told


def summary(totals: Totals, seconds: float) -> list[str]:
    """What was run, what went wrong in it on purpose, and what was found."""
    rows: list[tuple[str, object]] = [
        ("runs", totals.runs.total()),
        *sorted(totals.counts.items()),
        *((f"fault: {name.replace('_', ' ')}", count) for name, count in sorted(totals.faults.items())),
        ("virtual hours", f"{totals.virtual_seconds / 3600:.1f}"),
        ("CPU seconds", f"{totals.cpu_seconds:.1f}"),
        ("seconds", f"{seconds:.1f}"),
        ("failed", len(totals.failures)),
    ]
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {value:>12}" for name, value in rows]
    return [*lines, *(f"\n{failure}" for failure in totals.failures)]
