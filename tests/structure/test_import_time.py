"""How long `import streamactors` takes, in processor time, and which modules of others it loads.

Processor time of a child process, less that of one that imports nothing, the least of several: so the load of the
machine matters little. A slow machine is allowed for by what the same takes for a part of the standard library.
"""

import json
import os
import resource
import subprocess
import sys
from collections import Counter
from typing import Final

import pytest

from tests.programs import ROOT

pytestmark = pytest.mark.slow

MOST_MS: Final = 150.0
STANDARD: Final = (
    "import argparse, asyncio, dataclasses, email.message, http.client, inspect, json, logging, typing, zipfile"
)
STANDARD_MS: Final = 33.0
"""What that takes where `MOST_MS` is meant: a machine of 2024, with nothing beside it."""
OURS: Final = "import streamactors"
ROUNDS: Final = 6
TRIES: Final = 4
"""Who else uses the same caches can make it look slow, and never fast."""
MAY_BE_LOADED: Final = {"aiofiles", "msgpack", "msgspec", "typing_extensions"}


@pytest.fixture(scope="module")
def environ(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """In which the compiled code of modules is kept, and fresh, whatever the caller's environment says."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    made = kept | {"PYTHONPYCACHEPREFIX": str(tmp_path_factory.mktemp("compiled")), "PYTHONPATH": str(ROOT)}
    for code in (STANDARD, OURS):
        run(code, made)
    return made


def run(code: str, environ: dict[str, str], *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *options, "-c", code]
    return subprocess.run(command, env=environ, check=True, capture_output=True, text=True)


def processor_ms(code: str, environ: dict[str, str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run(code, environ)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return 1000 * (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def test_it_takes_less_than_150_ms(environ: dict[str, str]) -> None:
    tries = []
    for _ in range(TRIES):
        taken, allowed = measured(environ)
        tries.append(f"{taken:.0f} ms of {allowed:.0f} ms")
        if taken < allowed:
            print(f"import streamactors: {tries[-1]}")
            return
    pytest.fail(f"{', '.join(tries)}; the heaviest modules:\n{heaviest(environ)}", pytrace=False)


def measured(environ: dict[str, str]) -> tuple[float, float]:
    """What it takes, and may take here, in milliseconds."""
    rounds = [[processor_ms(code, environ) for code in ("pass", STANDARD, OURS)] for _ in range(ROUNDS)]
    nothing, standard, ours = (min(times) for times in zip(*rounds, strict=True))
    return ours - nothing, MOST_MS * max(1.0, (standard - nothing) / STANDARD_MS)


def heaviest(environ: dict[str, str]) -> str:
    """By themselves, in microseconds."""
    lines = run(OURS, environ, "-X", "importtime").stderr.splitlines()[1:]
    times = Counter({name.strip(): int(own.split(":")[1]) for own, _, name in (line.split("|") for line in lines)})
    return "\n".join(f"{time:8} {name}" for name, time in times.most_common(25))


def test_what_is_heavy_can_be_told(environ: dict[str, str]) -> None:
    assert "streamactors." in heaviest(environ)


def test_what_runs_a_job_is_loaded_by_who_runs_one(environ: dict[str, str]) -> None:
    code = f"{OURS}, sys; print({{'streamactors.submission', 'streamactors.runtime.job'}} & sys.modules.keys())"
    assert run(code, environ).stdout.strip() == "set()"


def test_modules_of_others_that_it_loads(environ: dict[str, str]) -> None:
    """Each is paid for by every program: no extra, and nothing that only the command line needs, is among them."""
    code = f"import json, sys; before = set(sys.modules); {OURS}; print(json.dumps(sorted(set(sys.modules) - before)))"
    loaded = {name.partition(".")[0] for name in json.loads(run(code, environ).stdout)}
    others = {name for name in loaded - set(sys.stdlib_module_names) if not name.startswith(("_", "cython_runtime"))}
    assert others <= MAY_BE_LOADED | {"streamactors"}
