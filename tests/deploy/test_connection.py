"""Jobs of one process share its connection to a cluster."""

from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest

from streamactors.deploy.connection import SharedConnection, Use
from streamactors.errors import ClusterUnfit, InvalidConfig


class Process:
    """With at most one connection, which has a number."""

    def __init__(self, *, connected: bool = False) -> None:
        self.connection: int | None = 1 if connected else None
        self.ended = 0
        self.shared = SharedConnection(lambda: self.connection, self.end)

    @property
    def connected(self) -> bool:
        return self.connection is not None

    def make(self, number: int = 2) -> None:
        assert self.connection is None, "init called twice"
        self.connection = number

    def end(self) -> None:
        self.connection = None
        self.ended += 1


def test_the_last_one_ends_it() -> None:
    process, one, other = Process(), Use("a:1"), Use("a:1")
    assert process.shared.begin(one, process.make)
    assert not process.shared.begin(other, process.make)
    process.shared.leave(one)
    process.shared.leave(one)
    assert process.ended == 0
    process.shared.leave(other)
    assert process.ended == 1


def test_one_of_the_user_s_stays() -> None:
    process, one = Process(connected=True), Use("a:1")
    process.shared.begin(one, process.make)
    process.shared.leave(one)
    assert process.connected and not process.ended


def test_two_that_begin_at_once_make_one() -> None:
    process, begun, go_on = Process(), Event(), Event()

    def slowly() -> None:
        begun.set()
        go_on.wait()
        process.make()

    with ThreadPoolExecutor(2) as threads:
        one = threads.submit(process.shared.begin, Use(None), slowly)
        begun.wait()
        other = threads.submit(process.shared.begin, Use(None), process.make)
        go_on.set()
        one.result()
        other.result()
    assert process.connected and not process.ended


def test_one_that_can_t_be_made_leaves_nothing() -> None:
    process, one = Process(), Use("a:1")

    def half() -> None:
        process.make()
        raise ClusterUnfit("nobody there")

    with pytest.raises(ClusterUnfit):
        process.shared.begin(one, half)
    process.shared.leave(one)
    assert not process.connected and process.ended == 1


def test_another_address_is_refused_by_name_and_harms_nobody() -> None:
    process, one, other = Process(), Use("a:1"), Use("b:1")
    process.shared.begin(one, process.make)
    with pytest.raises(InvalidConfig, match=r"at a:1 already.*run the job at b:1 in another process"):
        process.shared.begin(other, process.make)
    process.shared.leave(other)
    process.shared.begin(Use(None), process.make)
    assert process.connected


def test_where_somebody_else_has_ended_it_another_is_made() -> None:
    process, one, other = Process(), Use("a:1"), Use("b:1")
    process.shared.begin(one, process.make)
    process.connection = None
    process.shared.begin(other, process.make)
    process.shared.leave(one)
    assert process.connected
    process.shared.leave(other)
    assert not process.connected


def test_one_that_the_user_has_made_since_stays() -> None:
    process, one, other = Process(), Use("a:1"), Use("b:1")
    process.shared.begin(one, process.make)
    process.connection = 3
    process.shared.begin(other, process.make)
    process.shared.leave(one)
    process.shared.leave(other)
    assert process.connection == 3 and not process.ended
