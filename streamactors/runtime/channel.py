"""The way into another subtask's mailbox.

Contract of every channel, whatever carries it: elements arrive once and in the order sent; a batch is sent only into
room (`room` counts records), everything else needs none; `notify_room` calls back once there is room again; a barrier
is announced to the receiver on its arrival, and one that overtakes may be told of before that.
"""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from streamactors.actors.mailbox import Mailbox
from streamactors.elements import Barrier, Batch, Element, Watermark


class Channel(Protocol):
    quota: int
    """Records that the channel can hold at most."""

    def room(self) -> int: ...
    def send(self, element: Element) -> None: ...
    def notify_room(self, wake: Callable[[], None]) -> None: ...


@runtime_checkable
class Demanding(Channel, Protocol):
    """A channel that can't carry everything."""

    def prove(self, batch: Batch) -> None:
        """Raises UnserialisableValue, naming the edge, where the first record could not be carried."""


class MailboxChannel:
    """Into a mailbox of the same process."""

    def __init__(self, mailbox: Mailbox[Element], index: int) -> None:
        self._mailbox = mailbox
        self._index = index
        self.quota = mailbox.quota

    def room(self) -> int:
        return self._mailbox.room(self._index)

    def send(self, element: Element) -> None:
        if isinstance(element, Batch):
            self._mailbox.put(self._index, element, len(element), element.estimated_bytes())
        else:
            announce, replace = isinstance(element, Barrier), isinstance(element, Watermark)
            self._mailbox.put(self._index, element, 0, announce=announce, replace=replace)

    def notify_room(self, wake: Callable[[], None]) -> None:
        self._mailbox.notify_room(self._index, wake)
