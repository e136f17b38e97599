"""How much of a snapshot to serialise at a time."""


class Pace:
    """How many items fit into a time, learnt from block to block: an item may be a float or a whole document."""

    def __init__(self) -> None:
        self._per_second = 200_000.0

    def items(self, seconds: float) -> int:
        return max(1, int(seconds * self._per_second))

    def measured(self, items: int, seconds: float) -> None:
        """Grows at most twofold at a time, since a short block says little; shrinks at once."""
        faster = 2 * self._per_second
        self._per_second = min(items / seconds, faster, 20_000_000) if seconds > 0 else min(faster, 20_000_000)

    def recover(self) -> None:
        """What was slow once, and has not been tried since, may be fast again."""
        self._per_second = min(self._per_second * 1.02, 20_000_000)
