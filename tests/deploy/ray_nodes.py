"""A Ray cluster of several nodes on this machine's loopback, until it is told to end: a program for the tests of Ray.

Prints its address, then the process id of each node but the first, which takes no workers.
"""

import os
import signal
import sys
import time

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

from ray.cluster_utils import Cluster

OBJECTS = 80 << 20


def main(nodes: int) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    parent = os.getppid()
    head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": OBJECTS}
    cluster = Cluster(initialize_head=True, connect=False, head_node_args=head)
    try:
        added = [cluster.add_node(num_cpus=2, object_store_memory=OBJECTS) for _ in range(nodes)]
        cluster.wait_for_nodes(timeout=300)
        raylets = [node.all_processes["raylet"][0].process.pid for node in added]
        print(cluster.address, *raylets, flush=True)
        while os.getppid() == parent:  # also where whoever has started it was killed
            time.sleep(1)
    finally:
        cluster.shutdown()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main(int(sys.argv[1]))
