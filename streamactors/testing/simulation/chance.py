"""Randomness by seed: one stream per purpose, so that one more draw for one purpose changes no other."""

import math
from random import Random


def stream(seed: int, purpose: str) -> Random:
    """The same in every process and version of Python (seeding by text does not use `hash`)."""
    return Random(f"{seed}/{purpose}")


class Lottery:
    """Strikes up to `most` times, how often and when being drawn: asked once per opportunity.

    Half of the gaps are drawn uniformly up to `spread` opportunities, half log-uniformly, so that early moments
    (opening, restoring) get their share.
    """

    def __init__(self, random: Random, most: int, spread: float) -> None:
        self._random = random
        self._spread = max(1.0, spread)
        self._left = random.randint(0, most)
        self._gap = self._draw()

    def strikes(self) -> bool:
        self._gap -= 1
        if self._gap > 0 or not self._left:
            return False
        self._left -= 1
        self._gap = self._draw()
        return True

    def _draw(self) -> int:
        if self._random.random() < 0.5:
            return max(1, round(self._random.random() * self._spread))
        return max(1, round(math.exp(self._random.random() * math.log(self._spread))))
