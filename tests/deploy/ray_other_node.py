"""One more node of a Ray cluster, whose processes find their packages in another folder first: until it is told to end.

A program for the tests of Ray. It has room for two that ask for `other`, and as many CPUs as it is told to have.
"""

import os
import signal
import sys
import time
from typing import Any

from ray._private.node import Node
from ray._private.parameter import RayParams


def main(address: str, packages: str, cpus: int) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    parent = os.getppid()
    params: Any = RayParams(
        gcs_address=address,
        redis_address=address,
        num_cpus=cpus,
        resources={"other": 2},
        object_store_memory=80 << 20,
        node_manager_port=0,
        min_worker_port=0,
        max_worker_port=0,
        env_vars={"PYTHONPATH": os.pathsep.join(filter(None, [packages, os.environ.get("PYTHONPATH")]))},
    )
    params.dashboard_agent_listen_port, params.include_log_monitor = None, False
    node = Node(params, head=False, shutdown_at_exit=False, spawn_reaper=False)
    try:
        while os.getppid() == parent:  # also where whoever has started it was killed
            time.sleep(0.2)
    finally:
        node.kill_all_processes(check_alive=False, allow_graceful=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
