"""`streamactors inspect`: the state of an operator, and its rows in every format."""

import asyncio
import datetime as dt
import json
import struct
import zlib
from pathlib import Path
from typing import Any
from uuid import UUID

import pyarrow.parquet
import pytest
from typer.testing import CliRunner

import streamactors as sa
from streamactors.checkpoint import manifest
from streamactors.cli.commands import app
from streamactors.state.key_groups import key_group
from streamactors.state_processor import SavepointWriter
from tests.programs import streamactors
from tests.state_processor.jobs import all_of, config, keeping, last_of, numbers, sink, stored

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("job")
    return asyncio.run(stored(keeping(numbers(), sink()), config(folder)))


def run(*args: str, code: int = 0) -> Any:
    result = CliRunner().invoke(app, ["inspect", *args])
    assert result.exit_code == code, result.output
    return result


def lines(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]


def test_the_overview_tells_how_keys_are_spread(uri: str, tmp_path: Path) -> None:
    keep = next(each for each in json.loads(run(uri, "--json").stdout)["operators"] if each["uid"] == "keep")
    assert keep["states"] == {"total": 50, "plain": 50, "numbers": 50, "totals": 50, "anything": 50}
    sizes = keep["sizes"]["numbers"]
    assert (sizes["kind"], sizes["type"]) == ("list", "int") and sizes["bytes"] > 0
    assert 1 <= sizes["largest_entries"] < 10 and sizes["skew"] >= 1
    assert json.loads(run(uri, "--format", "json").stdout)["operators"]

    rows: list[Any] = [(key, {"state": 0}) for key in range(100)]
    rows += [(f"{number}", {"state": 1}) for number in range(200_000) if group(f"{number}") == 3][:1500]
    writer = SavepointWriter("skewed").with_keyed_state("keep", {"state": sa.ValueState(int)}, rows)
    skewed = asyncio.run(writer.write(str(tmp_path / "skewed")))
    assert "(key group 3 has 1,5" in run(skewed).stdout


def group(key: Any) -> int:
    return key_group(key, 128)


def test_one_operator(uri: str) -> None:
    shown = run(uri, "--operator", "keep").stdout
    assert "keep: process, parallelism 2 of 128" in shown
    row = next(line for line in shown.splitlines() if line.startswith("totals"))
    assert "map" in row and "int → Total" in row and "str" in row and " 50 " in row
    described = json.loads(run(uri, "--operator", "keep", "--json").stdout)
    states = {state["name"]: state for state in described["states"]}
    assert states["numbers"]["keys"] == {"str": 50} and states["numbers"]["largest_key_groups"][0]["entries"] >= 1
    source = json.loads(run(uri, "--operator", "numbers", "--json").stdout)
    assert source["positions"] == {"0/1": 300}
    assert "position of 0/1: 300" in run(uri, "--operator", "numbers").stdout


def test_rows_as_a_table(uri: str) -> None:
    shown = run(uri, "--operator", "keep", "--state", "numbers").stdout
    assert shown.splitlines()[0].split() == ["key", "value"] and len(shown.splitlines()) == 22
    assert "… and more: --limit shows more than 20" in shown
    shown = run(uri, "--state", "numbers", "--limit", "60").stdout
    assert len(shown.splitlines()) == 51 and str(all_of()["k3"]) in shown


def test_rows_as_json(uri: str, tmp_path: Path) -> None:
    found = lines(run(uri, "--operator", "keep", "--state", "numbers", "--format", "json").stdout)
    assert {row["key"]: row["value"] for row in found} == all_of()
    found = lines(run(uri, "--state", "totals", "--json", "--limit", "7").stdout)
    assert len(found) == 7 and found[0].keys() == {"key", "map_key", "value"}
    first = found[0]["value"]
    assert first["price"] == str(first["count"] / 8).rstrip("0").rstrip(".") or float(first["price"]) >= 0
    assert first["notes"][0]["text"] == f"note {first['count']}"
    run(uri, "--state", "numbers", "--format", "json", "--output", str(tmp_path / "rows.jsonl"))
    assert len(lines((tmp_path / "rows.jsonl").read_text())) == 50


def test_rows_as_parquet(uri: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.parquet"
    run(uri, "--operator", "keep", "--state", "total", "--format", "parquet", "--output", str(file))
    table = pyarrow.parquet.read_table(file)
    assert table.num_rows == 50
    assert {row["key"]: row["value"]["count"] for row in table.to_pylist()} == last_of()


@pytest.mark.parametrize(
    ("key", "written"),
    [
        ("k7", "k7"),
        (7, "7"),
        ("7", "7"),
        ((1, "a"), '[1, "a"]'),
        (2.5, "2.5"),
        (None, "null"),
        (True, "true"),
        (UUID(int=5), str(UUID(int=5))),
        (dt.date(2024, 2, 29), "2024-02-29"),
        (dt.datetime(2024, 2, 29, 1, tzinfo=dt.UTC), "2024-02-29T01:00:00+00:00"),
        (b"raw", "raw"),
        (b"\xff\x00", "/wA="),
    ],
)
def test_one_key(tmp_path: Path, key: Any, written: str) -> None:
    rows = [(key, {"items": [1, 2]}), ("other", {"items": [3]})]
    writer = SavepointWriter("rows").with_keyed_state("keep", {"items": sa.ListState(int)}, rows)
    uri = asyncio.run(writer.write(str(tmp_path / "made")))
    (row,) = lines(run(uri, "--state", "items", "--key", written, "--json").stdout)
    assert row["value"] == [1, 2]


def test_text_that_a_terminal_would_obey_or_nobody_can_encode(tmp_path: Path) -> None:
    texts = ["\x1b[31mred\x07", "two\nlines", "\x9b31m", "half a pair: \ud83e", "Käse"]
    rows = [(text, {"value": text}) for text in texts]
    writer = SavepointWriter("rows").with_keyed_state("keep", {"value": sa.ValueState(str)}, rows)
    uri = asyncio.run(writer.write(str(tmp_path / "made")))
    shown = run(uri, "--state", "value").stdout
    assert "\x1b" not in shown and "\x9b" not in shown and len(shown.splitlines()) == 6
    assert r"\u001b[31mred\u0007" in shown and r"half a pair: \ud83e" in shown and shown.count("Käse") == 2
    assert sorted(row["value"] for row in lines(run(uri, "--state", "value", "--json").stdout)) == sorted(texts)
    file = tmp_path / "rows.parquet"
    run(uri, "--state", "value", "--format", "parquet", "--output", str(file))
    found = pyarrow.parquet.read_table(file).to_pydict()
    assert found["key"] == found["value"]
    assert set(found["value"]) == {*texts[:3], r"half a pair: \ud83e", "Käse"}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--operator", "kept"], "holds no operator 'kept'; it holds: numbers, keep, out"),
        (["--operator", "keep", "--state", "plian"], "no state 'plian' in"),
        (["--state", "plian"], "no operator has one"),
        (["--state", "numbers", "--key", "k99"], "holds nothing for the key 'k99'"),
        (["--key", "k9"], "give --state"),
        (["--state", "numbers", "--format", "parquet"], "--output FILE"),
        (["--operator", "keep", "--output", "x"], "--format json or parquet"),
    ],
)
def test_what_there_is_not_is_refused(uri: str, args: list[str], message: str) -> None:
    assert message in run(uri, *args, code=2).stderr


def test_damage_and_foreign_folders(uri: str, tmp_path: Path) -> None:
    rows = [(key, {"value": key}) for key in range(100)]
    writer = SavepointWriter("rows").with_keyed_state("keep", {"value": sa.ValueState(int)}, rows)
    made = asyncio.run(writer.write(str(tmp_path / "made")))
    state = next(path for path in (tmp_path / "made").iterdir() if "keep" in path.name)
    intact = state.read_bytes()
    state.write_bytes(intact[:-1] + bytes([intact[-1] ^ 1]))
    assert "is altered" in run(made, "--state", "value", code=1).stderr
    state.write_bytes(intact[:-1])
    assert "is truncated" in run(made, "--state", "value", code=1).stderr
    state.unlink()
    assert "is missing" in run(made, "--state", "value", code=1).stderr
    state.write_bytes(intact)
    sealed = (tmp_path / "made" / "manifest").read_bytes()
    header = manifest.HEADER
    newer = list(header.unpack_from(sealed))
    newer[3] = 9
    data = header.pack(*newer)[: header.size - 4]
    newer_file = data + struct.pack(">I", zlib.crc32(data)) + sealed[header.size :]
    (tmp_path / "made" / "manifest").write_bytes(newer_file)
    assert "has format 9.0, and this version" in run(made, "--state", "value", code=2).stderr
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "manifest").write_text("hello")
    assert "manifest is truncated" in run(str(tmp_path / "foreign"), "--state", "value", code=1).stderr
    assert "does not exist" in run(str(tmp_path / "nothing"), "--state", "value", code=2).stderr


def test_as_users_run_it(uri: str, tmp_path: Path) -> None:
    """In a process that has none of the classes."""
    program = streamactors("inspect", uri, "--state", "total", "--key", "k3", "--json", cwd=tmp_path)
    assert program.end() == 0
    (row,) = lines(program.stdout)
    assert row["value"]["count"] == last_of()["k3"] and row["value"]["colour"] in ("red", "blue")
