"""`python -m examples.streaming_ml`: three models learn, crash, and are the same bit by bit as without."""

import itertools
from pathlib import Path
from typing import Literal

import pytest

from examples.streaming_ml import CLASSES, RATES, Model, Score, last, learn, segments
from tests.programs import Program


def plain_scores(rate: float) -> list[Score]:
    """The same in a plain loop."""
    model, scores = Model.new(18), []
    for segment in segments():
        model = model.learn(segment, rate)
        scores.append(Score(rate, model.seen, model.right))
    return scores


@pytest.mark.parametrize("backend", ["heap", "rocksdb"])
async def test_every_score_is_that_of_a_plain_loop_in_spite_of_the_crash(backend: Literal["heap", "rocksdb"]) -> None:
    scores = await learn(backend, crash=True)
    assert len(scores) == 2_310 * len(RATES)
    for rate in RATES:
        assert [score for score in scores if score.rate == rate] == plain_scores(rate)


def test_the_models_learn() -> None:
    assert all(plain_scores(rate)[-1].accuracy > 0.8 for rate in RATES)


def test_the_data_set_is_mixed() -> None:
    labels = [segment.label for segment in itertools.islice(segments(), 100)]
    assert set(labels) == set(CLASSES)


@pytest.mark.slow
def test_the_program_says_that_nothing_has_changed(tmp_path: Path) -> None:
    with Program("-m", "examples.streaming_ml", cwd=tmp_path) as program:
        assert program.end() == 0, program.stderr
    assert program.stdout.count("without the crash the same") == len(RATES)
    assert "after 1 restart" in program.stdout


def test_the_last_score_counts() -> None:
    assert last([Score(1.0, 1, 0), Score(1.0, 2, 1)])[1.0].accuracy == 0.5
