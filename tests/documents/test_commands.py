"""Every command that a document shows in a `console` block is given by a test, or stands in NOT_HERE with the reason.

Pages whose commands are all given by a test of their own are FOLLOWED; single commands that another test gives are
ELSEWHERE; the rest is given here, as it stands there but for paths, ports and amounts.
"""

import re
import shlex
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import httpx
import pytest

from tests.documents.terminal import BLOCK, Terminal
from tests.documents.test_tutorial import SET_UP
from tests.programs import PATIENCE, ROOT
from tests.structure.test_docs import documents, snippets

pytestmark = pytest.mark.slow

FOLLOWED: Final = {
    "docs/tutorial.md": "tests/documents/test_tutorial.py",
    "docs/savepoints.md": "tests/documents/test_savepoints.py",
    "docs/scale-out.md": "tests/documents/test_scale_out.py",
    "docs/guides/rescale.md": "tests/documents/test_guides.py",
    "docs/guides/upgrade.md": "tests/documents/test_guides.py",
}
ELSEWHERE: Final = {
    "streamactors demo": "tests/test_demo.py",
    "streamactors doctor my_orders:live --config config.toml": "tests/documents/test_guides.py",
    "streamactors doctor kafka_totals:flow": "tests/documents/test_guides.py",
    "streamactors run jobs:flow --otlp http://127.0.0.1:4318": "tests/observe/test_tracing.py",
}
INSTALLS: Final = (
    "changes the environment; a wheel is installed into a fresh one by tests/structure/test_fresh_install.py"
)
THE_TESTS: Final = "is what runs these tests"
NOT_HERE: Final = {
    "pip install .": INSTALLS,
    "pip install 'streamactors[kafka]'": INSTALLS,
    "apt install python3-venv openjdk-17-jre-headless maven chromium": "changes the machine",
    "make install": "makes the environment in which these tests run",
    "make test": THE_TESTS,
    "make test-fast": THE_TESTS,
    "make check": "runs beside the tests, on every change",
    "make simulate SEEDS=20000": "takes hours; what it calls is given here",
    "make nexmark": "takes minutes; what it calls is given here",
    "docker build -t orders .": "needs Docker, and images from a registry",
    "docker run --init --stop-timeout 120 --restart on-failure -v orders-data:/data orders": "needs Docker",
}


def commands_of(path: Path) -> list[str]:
    blocks = [body for kind, body in BLOCK.findall(path.read_text()) if kind == "console"]
    lines = [line for body in blocks for line in body.splitlines() if line.startswith("$ ")]
    return [re.sub(r"\s+# .*$", "", line.removeprefix("$ ")) for line in lines]


SHOWN: Final = {str(path.relative_to(ROOT)): commands_of(path) for path in documents()}

OF_A_PROJECT: Final = (
    "streamactors new my-orders",
    "streamactors doctor my_orders:flow",
    "streamactors status my-orders",
    "streamactors inspect checkpoints",
    "streamactors inspect checkpoints --operator totals",
)
TOKEN: Final = "export STREAMACTORS_TOKEN=$(python3 -c 'import secrets; print(secrets.token_urlsafe(32))')"
RUN: Final = "streamactors run jobs:flow --storage /var/lib/orders --interval 10s"
LISTENING: Final = f"{RUN} --listen 127.0.0.1:8077 --savepoints /var/lib/saved"
DASHBOARD: Final = f"{RUN} --dashboard --savepoints /var/lib/saved"
STOPS: Final = (
    "streamactors stop orders --savepoint /var/lib/orders/before-upgrade",
    "streamactors stop orders --savepoint before-upgrade",
)
ASKED: Final = (
    "curl -s http://127.0.0.1:8077/api/v1/jobs/orders/backpressure",
    'curl -s -X POST -H "Authorization: Bearer $STREAMACTORS_TOKEN" http://127.0.0.1:8077/api/v1/jobs/orders/checkpoints',
    "curl --unix-socket $XDG_RUNTIME_DIR/streamactors/4711-0f3a9c21.sock http://job/v1/jobs/orders",
)
OF_A_JOB: Final = (TOKEN, RUN, LISTENING, DASHBOARD, *STOPS, *ASKED, "streamactors list")
OF_THE_COMMAND_LINE: Final = ("streamactors savepoint orders --json", "streamactors --install-completion")
SIMULATED: Final = (
    "python -m streamactors.testing.simulation --topology diamond --mode unaligned --seed 4711",
    "python -m streamactors.testing.simulation myflows:totals --seeds 1000 --faults kills=5,stops=0",
    "python -m streamactors.testing.simulation --seeds 1000 --faults workers=2/3/5,weather=storm",
)
NEXMARK: Final = (
    "python -m benchmarks.nexmark --events 1000000 --parallelism 2 --backend rocksdb --checkpoints --query q5"
)
GIVEN_HERE: Final = {*OF_A_PROJECT, *OF_A_JOB, *OF_THE_COMMAND_LINE, *SIMULATED, NEXMARK}


# ------------------------------------------------------------------------------------------------------- all of them
def test_every_command_is_given_by_a_test_or_can_not_be() -> None:
    alone = {command for page, commands in SHOWN.items() if page not in FOLLOWED for command in commands}
    assert alone - GIVEN_HERE - NOT_HERE.keys() - ELSEWHERE.keys() == set(), "have a test give it, or say why none can"
    assert (GIVEN_HERE | NOT_HERE.keys() | ELSEWHERE.keys()) - alone == set(), "no document shows it any more"


def test_those_of_other_tests_are_given_there() -> None:
    for page, module in FOLLOWED.items():
        assert SHOWN[page] and Path(page).stem in (ROOT / module).read_text()
    for command, module in ELSEWHERE.items():
        _, name, *words = shlex.split(command)
        told = (ROOT / module).read_text()
        assert re.search(rf"\b{name}\b", told) and all(word in told for word in words if word.startswith("--"))


def test_of_the_tutorial_only_what_sets_it_up_is_left_out() -> None:
    left_out = [command for command in SHOWN["docs/tutorial.md"] if command.startswith(SET_UP)]
    assert len(left_out) == 4 and {command.split()[0] for command in left_out} == {"python3", "pip", "mkdir"}


# ------------------------------------------------------------------------------------------------------- those of here
class Shell(Terminal):
    """Jobs are asked by their sockets whether they run, which costs less than a program each time."""

    def _running(self, job: subprocess.Popen[str]) -> bool:
        assert job.poll() is None, self.log
        return any(self._status(path) == "running" for path in self.sockets(job))

    def _status(self, path: Path) -> str | None:
        try:
            with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), timeout=PATIENCE) as client:
                (job,) = client.get("http://job/v1/jobs").json()["jobs"]
                return str(job["status"])
        except httpx.TransportError:
            return None

    def sockets(self, job: subprocess.Popen[str]) -> list[Path]:
        return list(Path(self.environ["XDG_RUNTIME_DIR"]).glob(f"streamactors/{job.pid}-*.sock"))

    @property
    def log(self) -> str:
        """Of the job that was begun last."""
        return self._log(len(self.jobs) - 1).read_text()

    def succeeds(self, command: str) -> str:
        done = self.give(command)
        assert done is not None and done.returncode == 0, f"{command}: {done}"
        return done.stdout


@pytest.fixture
def shell(tmp_path: Path, registry_folder: Path) -> Iterator[Shell]:
    found = Shell(tmp_path)
    try:
        yield found
    finally:
        found.close()


def test_of_a_project(shell: Shell) -> None:
    new, doctor, status, *inspections = OF_A_PROJECT
    shell.succeeds(new)
    shell.give("cd my-orders")
    assert "problem" not in shell.succeeds(doctor)
    shell.give("streamactors run my_orders:live &")
    assert "running" in shell.succeeds(status)
    shell.succeeds("streamactors stop my-orders")
    shell.settled()
    checkpoints, state = map(shell.succeeds, inspections)
    assert "my-orders" in checkpoints and "totals" in state


JOBS = """
import streamactors as sa
from connectors.files import FileSink, FileSource

flow = sa.Dataflow("orders")
flow.source("orders", FileSource("orders", value=sa.Text(), follow=True)).sink("out", FileSink("out", value=sa.Text()))
"""


@pytest.fixture
def jobs(shell: Shell) -> Shell:
    """With the flow that the pages name, and a token by the command of one of them."""
    (shell.folder / "jobs.py").write_text(JOBS)
    (shell.folder / "orders").mkdir()
    (shell.folder / "orders" / "today.txt").write_text("one\ntwo\n")
    shell.environ["STREAMACTORS_TOKEN"] = shell.succeeds(f"{TOKEN}; printenv STREAMACTORS_TOKEN").strip()
    assert len(shell.environ["STREAMACTORS_TOKEN"]) >= 16
    return shell


def begun(shell: Shell, command: str) -> subprocess.Popen[str]:
    """At any free port."""
    shell.give(in_folder(shell, command).replace(":8077", ":0") + " &")
    return shell.jobs[-1]


def in_folder(shell: Shell, command: str) -> str:
    return command.replace("/var/lib", str(shell.folder))


def curl(shell: Shell, command: str, url: str, socket: Path) -> httpx.Response:
    """What curl would ask for: it is not on every machine."""
    for name in ("STREAMACTORS_TOKEN", "XDG_RUNTIME_DIR"):
        command = command.replace(f"${name}", shell.environ[name])
    words = shlex.split(command)[1:]
    named = {word: words[place + 1] for place, word in enumerate(words) if word in ("-X", "-H", "--unix-socket")}
    assert set(words) <= {"-s", words[-1], *named, *named.values()}, "an option that is not understood here"
    headers = dict([named["-H"].split(": ", 1)]) if "-H" in named else {}
    transport = None
    if "--unix-socket" in named:
        assert Path(named["--unix-socket"]).parent == socket.parent
        transport = httpx.HTTPTransport(uds=str(socket))
    with httpx.Client(transport=transport, trust_env=False, timeout=PATIENCE) as client:
        return client.request(named.get("-X", "GET"), words[-1].replace("http://127.0.0.1:8077", url), headers=headers)


def test_of_a_job(jobs: Shell) -> None:
    job = begun(jobs, LISTENING)
    jobs.wait(lambda: "REST API: " in jobs.log, "where it listens is told")
    (url,) = re.findall(r"REST API: (http://[\d.:]+)/", jobs.log)
    (socket,) = jobs.sockets(job)
    for command in ASKED:
        answer = curl(jobs, command, url, socket)
        assert answer.status_code == 200, f"{command}: {answer.text}"
    assert "orders" in jobs.succeeds("streamactors list")
    assert "before-upgrade" in jobs.succeeds(in_folder(jobs, STOPS[0]))

    begun(jobs, f"{DASHBOARD} --listen 127.0.0.1:0")
    jobs.wait(lambda: "Dashboard: http://" in jobs.log, "where the dashboard is is told")
    jobs.succeeds(STOPS[1])
    assert (jobs.folder / "before-upgrade").is_dir() and (jobs.folder / "orders" / "before-upgrade").is_dir()

    begun(jobs, RUN).send_signal(signal.SIGTERM)
    jobs.settled()


def test_of_the_command_line(shell: Shell) -> None:
    refused, completion = OF_THE_COMMAND_LINE
    done = shell.give(refused)
    assert done is not None and done.returncode == 2
    assert done.stderr in (ROOT / "docs" / "cli.md").read_text()
    shell.environ["HOME"] = str(shell.folder)
    shell.succeeds(f"{completion}; exit $?")  # bash itself stays: it is the shell that is found
    assert "streamactors" in (shell.folder / ".bashrc").read_text()


def test_simulated(shell: Shell) -> None:
    topology, own, over_workers = SIMULATED
    assert "seed 4711" in shell.succeeds(topology)
    _, code = next(snippets((ROOT / "docs" / "simulation.md").read_text()))
    (shell.folder / "myflows.py").write_text(code)
    for command in (own, over_workers):
        assert re.search(r"^runs +2$", shell.succeeds(command.replace("--seeds 1000", "--seeds 2")), re.MULTILINE)


def test_nexmark(shell: Shell) -> None:
    assert "q5" in shell.succeeds(NEXMARK.replace("1000000", "2000"))
