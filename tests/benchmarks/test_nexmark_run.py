"""What `make nexmark` prints."""

import pytest

from benchmarks.nexmark import run
from benchmarks.nexmark.queries.catalogue import QUERIES, Query


def test_a_rate_for_each_query_and_whether_it_equals_the_oracle(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--events", "2000", "--query", "q1", "--query", "q4", "--parallelism", "2"]) == 0
    printed = capsys.readouterr().out
    assert "2,000 events, p=2, heap" in printed
    lines = [line for line in printed.splitlines() if "equal" in line]
    assert [line.split()[1] for line in lines] == ["q1", "q4"]


def test_on_rocksdb_with_checkpoints(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--events", "2000", "--query", "q7", "--backend", "rocksdb", "--checkpoints"]
    assert run.main(arguments) == 0
    assert "p=1, rocksdb, checkpoints" in capsys.readouterr().out


def test_a_wrong_answer_is_said_and_is_the_exit_code(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = QUERIES["q0"].build
    wrong = Query("loses a few bids", lambda house: right(house).filter(lambda row: row[2] > 500))
    monkeypatch.setitem(QUERIES, "q0", wrong)
    assert run.main(["--events", "2000", "--query", "q0"]) == 1
    assert "differs" in capsys.readouterr().out


def test_an_unknown_query_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run.main(["--query", "q10"])
    assert "invalid choice: 'q10'" in capsys.readouterr().err


def test_in_batch(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--events", "2000", "--query", "q5", "--batch"]) == 0
    assert "p=1, heap, batch" in capsys.readouterr().out
