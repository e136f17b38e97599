"""The commit at the end of a job without checkpoints, to the last interleaving of three subtasks."""

from collections.abc import Iterator
from itertools import permutations

from streamactors.checkpoint.coordinator import Action, Commit, Committed, DataEnded, Finish, Tick
from streamactors.checkpoint.final_commit import FINAL, FinalCommit


def orders() -> Iterator[list[Action]]:
    """What is done in every order in which subtasks end and then, of those with sinks, commit."""
    for ends in permutations("abc"):
        for commits in permutations("bc"):
            final = FinalCommit("abc", "bc")
            done: list[Action] = []
            for subtask in ends:
                done += final.on(DataEnded(subtask), 0.0)
                done += final.on(Tick(), 0.0)
                assert final.committing == bool(done)
            for subtask in commits:
                done += final.on(Committed(subtask, FINAL), 0.0)
            assert not final.committing
            yield done


def test_all_have_ended_before_any_commits_and_all_have_committed_before_the_end() -> None:
    assert all(done == [Commit(FINAL), Finish()] for done in orders())


def test_without_transactional_sinks_there_is_nothing_to_commit() -> None:
    final = FinalCommit("ab", "")
    assert [*final.on(DataEnded("a"), 0.0)] == []
    assert [*final.on(DataEnded("b"), 0.0)] == [Finish()]
    assert final.deadline() is None
