"""`make bench-ray`: throughput over workers, edges between them, checkpoints and recovery, the coordinator's work.

Ray runs on this machine alone. Each worker of (b) is pinned to a core of its own; the driver, the coordinator and Ray's
own processes run beside them, wherever there is room.
"""

import argparse
import dataclasses
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.scale_out import coordinator, edges, failures, throughput

CAPACITIES = (4096, 65_536)
ON_RAY = ("throughput", "failures")
OBJECTS = 256 << 20


def parts(options: argparse.Namespace) -> dict[str, tuple[Callable[[], Sequence[Any]], Callable[[Any], Table]]]:
    """By name, what measures and what shows."""
    seconds, rounds, count = options.seconds, options.rounds, options.orders
    return {
        "edges": (lambda: edges.measure(options.records), edges.table),
        "coordinator": (lambda: coordinator.measure(options.simulated), coordinator.table),
        "throughput": (lambda: throughput.measure(seconds, rounds, options.capacities, count), throughput.table),
        "failures": (lambda: failures.measure(options.workers, options.checkpoints), failures.table),
    }


def numbers(told: str) -> tuple[int, ...]:
    return tuple(map(int, told.split(",")))


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("--only", nargs="*", default=["edges", "coordinator", "throughput", "failures"], help="parts")
    made.add_argument("--seconds", type=float, default=10.0, help="of each run of (b)")
    made.add_argument("--rounds", type=int, default=3)
    made.add_argument("--orders", type=int, default=throughput.COUNT, help="that each worker reads over and over")
    made.add_argument("--capacities", type=numbers, default=CAPACITIES, help="of mailboxes")
    made.add_argument("--records", type=int, default=edges.RECORDS, help="over each kind of edge, at most")
    made.add_argument("--workers", type=numbers, default=failures.WORKERS, help="for checkpoints and recovery")
    made.add_argument("--checkpoints", type=int, default=failures.CHECKPOINTS)
    made.add_argument("--simulated", type=numbers, default=coordinator.WORKERS, help="workers of the simulated cluster")
    made.add_argument("--json", type=Path, help="a file for the figures")
    return made


@contextmanager
def ray_here(workers: int) -> Iterator[None]:
    """A Ray of this machine for all jobs that are measured, which saves its start."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # on the loopback alone
    import ray

    ray.init(
        address="local",
        include_dashboard=False,
        num_cpus=workers,
        object_store_memory=OBJECTS,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    logger = logging.getLogger("streamactors")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # of workers that are killed
    try:
        yield
    finally:
        logger.setLevel(level)
        ray.shutdown()


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    console, told = Console(width=110), dict[str, Any]()
    for name, (measure, table) in parts(options).items():
        if name in options.only:
            with ray_here(max(options.workers)) if name in ON_RAY else nullcontext():
                rows = measure()
            told[name] = [dataclasses.asdict(row) for row in rows]
            console.print(table(rows))
            if options.json is not None:
                options.json.write_text(json.dumps({"load": os.getloadavg(), **told}, indent=2))


if __name__ == "__main__":
    main()
