"""The benchmark of several workers, with tiny numbers. What needs Ray is covered by the tests of jobs on Ray; here its
flow runs in one process."""

import json
from pathlib import Path

import pytest
import uvloop

import streamactors as sa
from benchmarks.scale_out import edges, failures, throughput
from benchmarks.scale_out.__main__ import main
from benchmarks.scale_out.job import Orders, Seen, TimedTotal, running_sum, seen, started, until

uvloop.new_event_loop().close()  # opens what libuv keeps open for the whole process


def test_what_needs_no_ray_is_measured_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--only", "edges", "coordinator", "--records", "200", "--simulated", "2,4", "--json", str(tmp_path / "told")])
    told = json.loads((tmp_path / "told").read_text())
    assert {(row["way"], row["size"]) for row in told["edges"]} == {
        (way, size) for way in ("mailbox", "between workers of a node") for size in edges.SIZES
    }
    assert all(row["micros"] > 0 for row in told["edges"])
    assert [row["network"] for row in told["coordinator"]] == ["fair"] * 2 + ["storm"] * 2 + ["partition"] * 2
    for few, many in zip(told["coordinator"][::2], told["coordinator"][1::2], strict=True):
        assert many["subtasks"] == 2 * few["subtasks"] and few["bytes"] > 0 and few["messages"] > 0
    assert "bytes a subtask" in capsys.readouterr().out


async def test_the_flow_tells_what_is_measured() -> None:
    async with started(running_sum(Orders(500, 50), 2, TimedTotal), sa.Config(parallelism=2)) as job:
        before = seen(job)
        await until(lambda: all(told.records > before[name].records for name, told in seen(job).items()))
        rate, micros, share = throughput.figures(before, seen(job), 1)
    assert len(before) == 2 and all(0 < told.first <= told.at for told in before.values())
    assert rate > 0 and micros > 0 and share > 0


def test_ratios_are_taken_round_by_round() -> None:
    before = {"a": Seen(1.0, 0, 0.0, 7, 1.0), "b": Seen(2.0, 0, 0.0, 8, 1.0)}
    after = {"a": Seen(3.0, 200, 1.0, 7, 1.0), "b": Seen(4.0, 100, 1.0, 8, 1.0)}
    rate, micros, share = throughput.figures(before, after, 2)
    assert (rate, share) == (150.0, 0.5) and micros == pytest.approx(1e6 / 150)
    one = throughput.Row(1, 4096, [1e6, 2e6, 1e6], [1.0, 1.0, 1.0], [1.0] * 3)
    two = throughput.Row(2, 4096, [1.8e6, 3.4e6, 1e6], [1.25, 1.0, 2.0], [1.0] * 3)
    assert throughput.ratio(one, two) == pytest.approx(1.7)
    assert throughput.ratio_by_cpu(one, two) == pytest.approx(1.6)
    alone = throughput.Row(1, 4096, [2e6, 3.8e6, 2e6], [1.0, 1.0, 1.0], [1.0] * 3, jobs=2)
    assert throughput.ratio(one, alone) == pytest.approx(2.0)
    assert throughput.table([one, two, alone]).row_count == 3
    assert failures.table([failures.Row(2, 4, [0.1, 0.2], 3.0, 4.0)]).row_count == 1
