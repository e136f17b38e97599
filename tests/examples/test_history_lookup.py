"""`python -m examples.history_lookup`: past events kept in map state, found by time, with a crash in the middle."""

from pathlib import Path
from typing import Literal

import pytest

from examples.history_lookup import Answer, Question, look_up, made_up, plain_answers
from tests.programs import Program


@pytest.mark.parametrize("backend", ["heap", "rocksdb"])
async def test_every_answer_is_that_of_a_plain_loop(backend: Literal["heap", "rocksdb"]) -> None:
    events = made_up(scans=10_000)
    answers = await look_up(events, backend)
    assert len(answers) == sum(isinstance(event, Question) for event in events)
    assert sorted(answers, key=_number) == plain_answers(events)


def test_the_questions_are_about_something() -> None:
    found = [len(answer.places) for answer in plain_answers(made_up(scans=10_000))]
    assert sum(length > 1 for length in found) > len(found) / 4


@pytest.mark.slow
def test_the_program_says_that_the_answers_are_right(tmp_path: Path) -> None:
    with Program("-m", "examples.history_lookup", "--backend", "rocksdb", cwd=tmp_path) as program:
        assert program.end() == 0, program.stderr
    assert "2,000 answers; a plain loop gives the same" in program.stdout
    assert "after 1 restart" in program.stdout


def _number(answer: Answer) -> int:
    return answer.question.number
