"""Queries and taps of a job whose subtasks are in other processes: there as ever, between as numbers and values.

Invariants. Who looks on never holds the job up: what does not fit the buffer gives way where it was emitted, and the
next values are sent once the ones before are taken; but what was emitted ahead of a report is sent ahead of it, so
that what a checkpoint holds has been seen when it is complete. A query is answered once, or not at all where its
subtask has ended.
"""

import asyncio
import logging
from collections.abc import Callable
from itertools import count
from typing import Any

from streamactors.cluster.failures import received as error_of
from streamactors.cluster.failures import to_send
from streamactors.cluster.line import Line
from streamactors.cluster.messages import Answered, Asked, Tapped, Tapping, Untapping
from streamactors.errors import StreamactorsError
from streamactors.graph.physical import SubtaskId
from streamactors.runtime.messages import AttachTap, Control, DetachTap, Query
from streamactors.runtime.taps import Subscription, Tap
from streamactors.state.serialisation.serializers import AnySerializer

log = logging.getLogger("streamactors.worker")


class Onlookers:
    """The side of the subtasks. `send`: to one of them."""

    def __init__(self, line: Line, send: Callable[[SubtaskId, Control], None]) -> None:
        self._line = line
        self._send = send
        self._values = AnySerializer()
        self._taps: dict[int, _Passing] = {}
        self._leaving: dict[_Passing, None] = {}

    def obey(self, message: Asked | Tapping | Untapping, subtask: SubtaskId) -> None:
        match message:
            case Asked():
                self._query(message, subtask)
            case Tapping(number, _, uid, tag, buffer):
                if number not in self._taps:
                    self._taps[number] = _Passing(number, Subscription(uid, tag, buffer), self._line, self._values)
                self._taps[number].subtasks.add(subtask)
                self._send(subtask, AttachTap(uid, tag, self._taps[number].tap))
            case Untapping(number, _, uid, tag):
                if (passing := self._taps.get(number)) is not None:
                    self._send(subtask, DetachTap(uid, tag, passing.tap))
                    self._untapped(number, passing, subtask)

    def _untapped(self, number: int, passing: "_Passing", subtask: SubtaskId) -> None:
        passing.stop()
        passing.subtasks.discard(subtask)
        if not passing.subtasks:
            del self._taps[number]
            self._leaving[passing] = None
            passing.when_ended(lambda: self._leaving.pop(passing, None))

    def _query(self, asked: Asked, subtask: SubtaskId) -> None:
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        answer.add_done_callback(lambda done: self._answered(asked.number, done))
        try:
            key = self._values.decode(asked.key)
        except (StreamactorsError, TypeError, ValueError, LookupError) as error:
            answer.set_exception(error)
            return
        self._send(subtask, Query(asked.uid, asked.state, key, asked.group, answer))

    def _answered(self, number: int, answer: "asyncio.Future[Any]") -> None:
        error = answer.exception()
        try:
            value = b"" if error is not None else self._values.encode(answer.result())
        except Exception as failure:  # the value's own code among them
            value, error = b"", failure
        self._line.give(Answered(number, value, None if error is None else to_send(error)))

    def push(self) -> None:
        """All that was emitted so far is given to the line, ahead of what is given next."""
        for passing in self._taps.values():
            passing.push()

    async def close(self) -> None:
        for passing in [*self._taps.values(), *self._leaving]:
            passing.stop()
            await passing.close()


class _Passing:
    """What one tap is given, on its way."""

    def __init__(self, number: int, subscription: Subscription, line: Line, values: AnySerializer) -> None:
        self._number = number
        self._subscription = subscription
        self._line = line
        self._values = values
        self.tap = Tap(subscription)
        self.subtasks: set[SubtaskId] = set()
        name = f"tap on {subscription.uid}"
        self._task = asyncio.get_running_loop().create_task(self._pass_on(), name=name)

    async def _pass_on(self) -> None:
        while (taken := await self._subscription.take()) is not None:
            self._give(*taken)
            await self._line.flush()

    def push(self) -> None:
        values, lost = self._subscription.drain()
        if values:
            self._give(values, lost)

    def _give(self, values: list[Any], lost: int) -> None:
        try:
            self._line.give(Tapped(self._number, self._values.encode_many(values), lost))
        except Exception as error:  # likewise; and a report goes right behind this
            uid = self._subscription.uid
            log.warning("what step %r emits can't be looked at from another process: %s", uid, error)
            self.stop()

    def when_ended(self, tell: Callable[[], object]) -> None:
        self._task.add_done_callback(lambda _: tell())

    def stop(self) -> None:
        self.tap.close()
        self._subscription.close()

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])


class RemoteOnlookers:
    """The job's side. `give`: to the worker that has a subtask, together with the subtask's number."""

    def __init__(self, give: Callable[[SubtaskId, Callable[[int], object]], None]) -> None:
        self._give = give
        self._values = AnySerializer()
        self._numbers = count(1)
        self._queries: dict[int, asyncio.Future[Any]] = {}
        self._taps: dict[int, Tap] = {}
        self._known: dict[Tap, tuple[int, int]] = {}
        """Its number, and how many subtasks have it."""

    def send(self, subtask: SubtaskId, message: Query | AttachTap | DetachTap) -> None:
        match message:
            case Query():
                self._ask(subtask, message)
            case AttachTap(uid, tag, tap):
                number, uses = self._known.get(tap) or (next(self._numbers), 0)
                self._known[tap] = number, uses + 1
                self._taps[number] = tap
                self._give(subtask, lambda place: Tapping(number, place, uid, tag, tap.buffer))
            case DetachTap(uid, tag, tap):
                number, uses = self._known.pop(tap)
                if uses > 1:
                    self._known[tap] = number, uses - 1
                self._taps.pop(number, None)
                self._give(subtask, lambda place: Untapping(number, place, uid, tag))

    def _ask(self, subtask: SubtaskId, query: Query) -> None:
        number = next(self._numbers)
        try:
            key = self._values.encode(query.key)
        except StreamactorsError as error:
            query.answer.set_exception(error)
            return
        self._queries[number] = query.answer
        query.answer.add_done_callback(lambda _: self._queries.pop(number, None))
        self._give(subtask, lambda place: Asked(number, place, query.uid, query.state, key, query.group))

    def take(self, message: Answered | Tapped) -> None:
        match message:
            case Answered(number, value, error):
                answer = self._queries.get(number)
                if answer is not None and not answer.done():
                    self._answer(answer, value, None if error is None else error_of(error))
            case Tapped(number, values, lost):
                if (tap := self._taps.get(number)) is not None:
                    self._receive(number, tap, values, lost)

    def _receive(self, number: int, tap: Tap, values: bytes, lost: int) -> None:
        try:
            seen = self._values.decode_many(values)
        except Exception as error:  # of classes that are others here
            del self._taps[number]
            log.warning("what a step emits can't be looked at from another process: %s", error)
            return
        tap.receive(seen, lost)

    def _answer(self, answer: "asyncio.Future[Any]", value: bytes, error: BaseException | None) -> None:
        if error is not None:
            answer.set_exception(error)
            return
        try:
            answer.set_result(self._values.decode(value))
        except Exception as unreadable:  # as above
            answer.set_exception(unreadable)
