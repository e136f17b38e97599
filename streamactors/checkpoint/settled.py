"""What the barrier protocols of one subtask share: for which checkpoints nothing is to be begun any more."""


class Settled:
    """The checkpoints that were snapshot, aborted or given up in a subtask with `channels` input channels (0: source).

    Invariant: a checkpoint once in it stays in it, though aborts are remembered one by one only as long as their
    barriers may come.
    """

    def __init__(self, channels: int) -> None:
        self.highest = 0
        """Every checkpoint up to this one is settled."""
        self._given_up: set[int] = set()
        self._taken = [0] * max(1, channels)

    def __contains__(self, checkpoint: int) -> bool:
        return checkpoint <= self.highest or checkpoint in self._given_up

    def up_to(self, checkpoint: int) -> None:
        """It was snapshot; and so is all that is earlier settled, since snapshots are taken in increasing order."""
        self.highest = max(self.highest, checkpoint)
        self._given_up = {number for number in self._given_up if number > self.highest}

    def give_up(self, checkpoint: int) -> None:
        if checkpoint > self.highest:
            self._given_up.add(checkpoint)

    def taken(self, channel: int, checkpoint: int) -> None:
        """Barrier `checkpoint` was taken from `channel` (0 of a source): no earlier one comes on it any more."""
        self._taken[channel] = max(checkpoint, self._taken[channel])
        floor = min(self._taken)
        past = [number for number in self._given_up if number <= floor]
        if past:
            self.up_to(max(past))
