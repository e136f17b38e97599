"""The actors of a Ray cluster, as its dashboard lists them: prints the name and class of each that lives. A program.

Given an address and how many there are to be: it tells that it is connected, and waits for them.
"""

import json
import sys
import time

import ray
from ray._private import state


def main(address: str, count: int) -> None:
    ray.init(address, log_to_driver=False)
    print("connected", flush=True)
    while len(found := living()) < count:
        time.sleep(0.1)
    print(json.dumps(sorted(found)))
    ray.shutdown()


def living() -> list[tuple[str, str]]:
    """Of the table that the dashboard shows too; the API of states needs the dashboard itself."""
    actors = state.actors().values()
    return [(actor["Name"], actor["ActorClassName"]) for actor in actors if actor["State"] == "ALIVE"]


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
