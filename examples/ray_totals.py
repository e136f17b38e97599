"""The flow of `kafka_totals`, unchanged, on four workers of Ray, one of which is killed in the middle.

Starts a real broker (or uses the one that KAFKA_BOOTSTRAP names) and a Ray of this machine (or joins the cluster that
`--address` names), writes orders, runs the job, kills a worker, and compares what a read_committed reader sees with a
plain computation.
"""

import argparse
import asyncio
import datetime as dt
import secrets
import sys
import tempfile
import time

import streamactors as sa
from examples.kafka_totals import (
    CUSTOMERS,
    IDLE_SECONDS,
    PARTITIONS,
    Demo,
    Results,
    Verdict,
    build,
    compare,
    made_up,
    plain_totals,
    results,
    say,
    write_orders,
)
from streamactors.testing import KafkaBroker

ORDERS = 100_000
WORKERS = 4


def config(storage: str, address: str | None) -> sa.Config:
    """Storage has to lie where all nodes of the cluster reach it."""
    return sa.Config(
        parallelism=WORKERS,
        checkpoints=sa.Checkpoints(storage, interval=dt.timedelta(milliseconds=500)),
        deployment=sa.Ray(workers=WORKERS, address=address),
    )


# ---------------------------------------------------------------------------------------------------- what surrounds it
def kill_worker(flow: str, number: int) -> None:
    """Its process ends at once, as by SIGKILL."""
    import ray  # the job has set it up, and connected this process to it

    name = f"streamactors/{flow}/worker-{number}"
    while name not in ray.util.list_named_actors():  # it may just be replaced by another one
        time.sleep(0.1)
    ray.kill(ray.get_actor(name))
    say(f"   {name} is no more")


async def read_until(seen: Results, count: int) -> None:
    """As many results are committed."""
    while seen.found < count:
        before = seen.found
        async with asyncio.timeout(IDLE_SECONDS):
            while seen.found == before:
                await seen.read()


async def demonstrate(demo: Demo, address: str | None) -> Verdict:
    half = demo.count // 2
    flow = build(demo.bootstrap, demo.orders, demo.totals, bounded=False)
    say(f"1. {half:,} orders of {CUSTOMERS:,} customers go into topic {demo.orders}")
    await write_orders(demo, 0, half)
    say(f"2. The job runs, on {WORKERS} workers of Ray")
    async with results(demo) as seen:
        async with sa.start(flow, config(demo.storage, address)) as job:
            await read_until(seen, 1)
            say(f"3. With the first {seen.found:,} results committed a worker is killed; then the other orders come")
            await asyncio.to_thread(kill_worker, flow.name, 1)
            await write_orders(demo, half, demo.count)
            await read_until(seen, demo.count)
            say(f"4. Another worker has taken its place; restarts: {job.restarts}")
        await seen.read_to_the_end()
    return compare(plain_totals(made_up(demo.count)), seen.by_customer)


async def run(count: int, address: str | None) -> Verdict:
    mark = secrets.token_hex(3)  # a broker that was there before may hold another run's topics
    orders, totals = f"orders-{mark}", f"totals-{mark}"
    with tempfile.TemporaryDirectory() as folder:
        async with KafkaBroker() as kafka:
            for topic in (orders, totals):
                await kafka.create_topic(topic, partitions=PARTITIONS)
            return await demonstrate(Demo(kafka.bootstrap, f"file://{folder}", orders, totals, count), address)


def main() -> int:
    parser = argparse.ArgumentParser(description="Kafka to Kafka on Ray, exactly-once, with a worker killed.")
    parser.add_argument("--orders", type=int, default=ORDERS, help=f"how many (default {ORDERS:,})")
    parser.add_argument("--address", help="a Ray cluster to join; without it, a Ray of this machine alone")
    given = parser.parse_args()
    verdict = asyncio.run(run(given.orders, given.address))
    print(verdict)
    return 0 if verdict.equal else 1


if __name__ == "__main__":
    sys.exit(main())
