"""docs/guides, done as they stand there: commands given in their order, snippets run, settings checked."""

import asyncio
import configparser
import datetime as dt
import importlib.util
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import typer.main
from aiokafka import AIOKafkaProducer

import streamactors as sa
from streamactors.cli.commands import app
from streamactors.testing import KafkaBroker, OperatorHarness
from tests.documents.terminal import Terminal, steps
from tests.kafka_topics import Topics
from tests.programs import PATIENCE, ROOT, Program, streamactors
from tests.structure.test_docs import documents, snippets

pytestmark = pytest.mark.slow

GUIDES = ROOT / "docs" / "guides"


def page(name: str) -> str:
    return (GUIDES / f"{name}.md").read_text()


def block(name: str, language: str) -> str:
    """The only block of that language on the page."""
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", page(name), re.MULTILINE | re.DOTALL)
    return str(found)


class Order(msgspec.Struct):
    customer: str
    amount: float


def defined(name: str, **known: Any) -> dict[str, Any]:
    """What the page's Python defines, one block after the other."""
    names: dict[str, Any] = {"sa": sa, "dt": dt, "Order": Order, "OperatorHarness": OperatorHarness} | known
    for _, code in snippets(page(name)):
        exec(compile(code, f"{name}.md", "exec"), names)
    return names


@pytest.fixture
def terminal(tmp_path: Path, registry_folder: Path) -> Iterator[Terminal]:
    found = Terminal(tmp_path)
    try:
        yield found
    finally:
        found.close()


def followed(terminal: Terminal, name: str, read: list[int]) -> str:
    """All commands of the page, each of which succeeds; what the last one printed. Each stop, or rescale, waits until
    its job has read that many records: who reads the page is slower than the job."""
    printed, expected = "", iter(read)
    for _, command in steps(GUIDES / f"{name}.md"):
        if command.startswith(("streamactors stop", "streamactors rescale")) and (count := next(expected)):
            until_read(terminal, count)
        done = terminal.give(command)
        if done is not None:
            assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
            printed = done.stdout
    terminal.settled()
    return printed


def until_read(terminal: Terminal, count: int) -> None:
    def told() -> bool:
        status = terminal.give("streamactors status my-orders --json")
        if status is None or status.returncode:
            return False  # no answer in time, on a busy machine
        read = {each["uid"]: each["records_in"] for each in json.loads(status.stdout)["operators"]}
        return bool(read["out"] == count)

    terminal.wait(told, f"{count} records are read")


def totals(folder: Path) -> list[tuple[str, int, float]]:
    lines = [json.loads(line) for part in (folder / "output").glob("*.jsonl") for line in part.read_text().splitlines()]
    return sorted((line["customer"], line["orders"], line["amount"]) for line in lines)


OF_THE_TEMPLATE = [("ann", 1, 12.5), ("ann", 2, 20.0), ("bob", 1, 3.0), ("bob", 2, 7.5), ("cleo", 1, 20.0)]


# ---------------------------------------------------------------------------------------------------- rescale, upgrade
def test_rescale(terminal: Terminal) -> None:
    plan = followed(terminal, "rescale", read=[5, 0, 1])
    assert totals(terminal.folder) == sorted([*OF_THE_TEMPLATE, ("ann", 3, 21.0)])
    assert "totals" in plan


def test_upgrade_and_back(terminal: Terminal) -> None:
    followed(terminal, "upgrade", read=[5, 0, 0])
    assert totals(terminal.folder) == OF_THE_TEMPLATE
    assert "currency" not in (terminal.folder / "my_orders.py").read_text()


async def test_the_test_of_the_upgrade_guide() -> None:
    await defined("upgrade")["test_the_new_version_reads_the_old_state"]()


# ------------------------------------------------------------------------------------- RocksDB, alignment, security
def test_the_settings_of_rocksdb() -> None:
    config = defined("rocksdb-sizing")["config"]
    assert isinstance(config.state_backend, sa.RocksDB)
    assert (config.state_backend.memory, config.state_backend.cache) == (512 * 2**20, 200_000)


def test_the_three_ways_to_align() -> None:
    names = defined("alignment")
    ways = [names[name] for name in ("patient", "flexible", "hurried")]
    assert [each.may_overtake for each in ways] == [False, True, True]


def test_secrets_are_not_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("KAFKA_PASSWORD", "ORDERS_KEY", "ORDERS_SECRET"):
        monkeypatch.setenv(name, "hush-hush")
    (tmp_path / "config.toml").write_text(block("security", "toml"))
    config = sa.Config.from_toml(tmp_path / "config.toml")
    assert config.checkpoints is not None
    assert config.checkpoints.storage_options == {"key": "hush-hush", "secret": "hush-hush"}
    assert "hush" not in f"{config!r}{defined('security')['orders']!r}"


def test_the_token_is_long_enough() -> None:
    (given,) = re.findall(r"^\$ export STREAMACTORS_TOKEN=(.*)$", page("security"), re.MULTILINE)
    echoed = subprocess.run(["bash", "-c", f"echo {given}"], capture_output=True, text=True, check=True)
    assert len(echoed.stdout.strip()) >= 16


# --------------------------------------------------------------------------------------------------------------- deploy
def unit() -> configparser.ConfigParser:
    parsed = configparser.ConfigParser(delimiters="=", strict=False, interpolation=None)
    parsed.optionxform = str  # type: ignore[assignment,method-assign]
    parsed.read_string(block("deploy", "ini"))
    return parsed


def test_the_unit_is_one_that_systemd_takes(tmp_path: Path) -> None:
    assert unit().sections() == ["Unit", "Service", "Install"]
    if shutil.which("systemd-analyze") is None:
        return  # where there is no systemd, the rest of this module has to do
    here = block("deploy", "ini").replace("/srv/orders/.venv/bin/streamactors", sys.executable)
    (tmp_path / "orders.service").write_text(here)
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(tmp_path / "orders.service")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "orders.service" not in verified.stderr, verified.stderr


def test_the_unit_s_command_runs_and_ends_as_the_page_says(terminal: Terminal) -> None:
    made = terminal.give("streamactors new my-orders")
    assert made is not None and made.returncode == 0
    project = terminal.folder / "my-orders"
    settings = block("deploy", "toml").replace("/var/lib/orders", str(terminal.folder / "state"))
    (project / "config.toml").write_text(settings)
    command = shlex.split(unit()["Service"]["ExecStart"].replace("/etc/orders/", "").replace(":8077", ":0"))
    assert command.pop(0).endswith("/streamactors")
    with Program("-m", "streamactors", *command, cwd=project, environ=terminal.environ) as job:
        job.wait_for(lambda: "REST API" in job.stderr + job.stdout, "listening")
        job.signal(signal.SIGTERM)
        assert job.end() == 0
    assert list((terminal.folder / "state" / "checkpoints").rglob("manifest"))
    assert "RestartPreventExitStatus=2" in block("deploy", "ini")
    with Program("-m", "streamactors", *command[:1], "gone:flow", cwd=project, environ=terminal.environ) as job:
        assert job.end() == 2
    found = terminal.give("cd my-orders") or terminal.give("streamactors doctor my_orders:live --config config.toml")
    assert found is not None and found.returncode == 0, found


def test_the_container_runs_what_there_is() -> None:
    lines = block("deploy", "dockerfile").splitlines()
    last = {line.split()[0]: line for line in lines if not line.startswith("#")}
    for instruction in ("ENTRYPOINT", "HEALTHCHECK"):
        program, *arguments = json.loads(last[instruction][last[instruction].index("[") :])
        assert program == "streamactors"
        accepted(arguments)
    assert last["USER"] == "USER app" and last["STOPSIGNAL"] == "STOPSIGNAL SIGTERM"


# ------------------------------------------------------------------------------------------------------ all commands
def accepted(arguments: list[str]) -> None:
    """The command exists, and its arguments and options do. Raises what click says."""
    commands: Any = typer.main.get_command(app)
    commands.commands[arguments[0]].make_context(arguments[0], arguments[1:])


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_all_commands_exist(path: Path) -> None:
    blocks = re.findall(r"^```console\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)
    for command, answer in re.findall(r"^\$ (.*)\n(.*)$", "".join(blocks), re.MULTILINE):
        match shlex.split(command.removesuffix("&"), comments=True):
            case ["streamactors", option] if option.startswith("--"):
                assert option in {name for each in typer.main.get_command(app).params for name in each.opts}
            case ["streamactors", *arguments] if not answer.startswith('{"error"'):
                accepted(arguments)
            case ["make", target, *_]:
                assert f"\n{target}: " in (ROOT / "Makefile").read_text()
            case ["python", "-m", module, *_]:
                assert importlib.util.find_spec(module) is not None


# ---------------------------------------------------------------------------------------------------------------- Kafka
async def test_from_topic_to_topic(kafka: KafkaBroker, topics: Topics, tmp_path: Path) -> None:
    orders, totals = await topics.new("orders", partitions=2), await topics.new("totals")
    names: dict[str, Any] = {}
    for _, code in snippets(page("kafka-exactly-once")):
        code = code.replace("localhost:9092", kafka.bootstrap).replace("/var/lib/totals", str(tmp_path))
        code = re.sub(r'^(.*(?:KafkaSource|KafkaSink|AIOKafkaConsumer).*)"orders"', rf'\1"{orders}"', code, flags=re.M)
        code = re.sub(r'(Kafka\w+\(\s+(?:"[\w.:]+",\s+)?)"totals"', rf'\1"{totals}"', code)
        with (tmp_path / "kafka_totals.py").open("a") as module:
            module.write(code)
        exec(compile(code, "kafka-exactly-once.md", "exec"), names)
    async with AIOKafkaProducer(bootstrap_servers=kafka.bootstrap) as producer:
        for cents in (500, 30):
            body = msgspec.json.encode({"customer": "ada", "cents": cents})
            await producer.send_and_wait(orders, body, key=b"ada")
    async with asyncio.timeout(PATIENCE), sa.start(names["flow"], names["config"]) as job:
        assert [total.cents for total in await names["read"](2)] == [500, 530]
        assert job.status == "running"
    with streamactors("doctor", "kafka_totals:flow", cwd=tmp_path) as looked:
        assert await asyncio.to_thread(looked.end) == 0, looked.stdout
    assert "transactions" in looked.stdout and totals in looked.stdout
