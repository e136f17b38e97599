"""The dashboard of what the command line runs."""

import re
import signal
from pathlib import Path

import httpx
import pytest

from streamactors.cli import serving
from streamactors.cli.serving import serve_options
from streamactors.observe import extras
from streamactors.observe.network import Served
from tests.programs import PATIENCE, Program, streamactors

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("registry_folder")]

FLOW = """
import streamactors as sa
from connectors.files import FileSource
from connectors.memory import ListSink

flow = sa.Dataflow("lines")
flow.source("in", FileSource("in", value=sa.Text(), follow=True)).sink("out", ListSink())
"""


def dashboard_of(program: Program) -> str:
    """Where it says that it is."""

    def told() -> list[str]:
        return re.findall(r"^Dashboard: (\S+)$", program.stderr, re.MULTILINE)

    program.wait_for(told, "where the dashboard is")
    return told()[0]


@pytest.mark.parametrize("command", [("run", "jobs:flow", "-q", "--dashboard"), ("serve",)])
def test_its_address_is_told(tmp_path: Path, command: tuple[str, ...]) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "jobs.py").write_text(FLOW)
    with streamactors(*command, "--listen", "127.0.0.1:0", cwd=tmp_path) as program:
        page = httpx.get(dashboard_of(program), trust_env=False, timeout=PATIENCE)
        assert page.status_code == 200 and "<title>streamactors</title>" in page.text
        program.signal(signal.SIGTERM)
        assert program.end() == 0


def test_what_metrics_lack_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    where = Served("http://127.0.0.1:8077", "chosen", generated=False)
    serving._print(where)
    assert "  metrics: http://127.0.0.1:8077/metrics\n" in capsys.readouterr().err
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    serving._print(where)
    told = capsys.readouterr().err
    assert "/metrics" not in told and "pip install 'streamactors[metrics]'" in told
    assert serving._places(where)["metrics"] is None


def test_without_an_address_the_dashboard_has_its_own() -> None:
    assert serve_options(None, dashboard=True).listen == "127.0.0.1:8077"
    assert serve_options("127.0.0.1:1", dashboard=True).listen == "127.0.0.1:1"
    assert serve_options(None, dashboard=False).listen is None


@pytest.mark.kill
def test_the_demo_goes_on_until_it_is_stopped(tmp_path: Path) -> None:
    options = ("--events", "20000", "--dashboard", "--listen", "127.0.0.1:0")
    with streamactors("demo", *options, cwd=tmp_path) as program:
        url = dashboard_of(program).removesuffix("/dashboard/")
        program.wait_for(lambda: "0 lost" in program.stdout, "what came of it")
        with httpx.Client(base_url=url, trust_env=False, timeout=PATIENCE) as client:
            program.wait_for(lambda: read_by(client) > 100, "reading")
        program.signal(signal.SIGINT)
        assert program.end() == 0


def read_by(client: httpx.Client) -> int:
    operators = client.get("/api/v1/jobs/orders").json()["operators"]
    return sum(each["records_out"] for each in operators if each["uid"] == "orders")
