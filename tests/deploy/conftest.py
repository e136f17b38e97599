"""One Ray cluster for each test module that asks for it."""

import signal
from collections.abc import Iterator

import pytest

from tests.deploy.ray_cluster import HERE, Nodes, short_folder, until
from tests.programs import Program


@pytest.fixture(scope="module")
def environ() -> Iterator[dict[str, str]]:
    """Sockets need a short path; and nothing listens but on the loopback."""
    with short_folder() as folder:
        yield {"RAY_TMPDIR": folder, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}


@pytest.fixture(scope="module")
def nodes(environ: dict[str, str]) -> Iterator[Nodes]:
    with Program(str(HERE / "ray_nodes.py"), "3", cwd=HERE, environ=environ) as program:
        until(lambda: program.stdout.endswith("\n"), "the cluster is up", program)
        address, *raylets = program.stdout.split()
        nodes = Nodes(program, address, [int(pid) for pid in raylets], environ)
        yield nodes
        program.signal(signal.SIGTERM)
        program.end()
        nodes.clear_all()
