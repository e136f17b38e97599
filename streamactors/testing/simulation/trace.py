"""What happened in a run, as a hash: the same seed gives the same hash, or something is not deterministic."""

import hashlib
from collections.abc import Callable


class Trace:
    """`listen` is given every line, for people."""

    def __init__(self, listen: Callable[[str], None] | None = None) -> None:
        self._digest = hashlib.blake2b(digest_size=8)
        self._listen = listen

    @property
    def followed(self) -> bool:
        """Whether somebody listens: then steps are worth a name."""
        return self._listen is not None

    def decided(self, choice: int, among: int) -> None:
        """A scheduling decision."""
        self._digest.update(b"%d/%d;" % (choice, among))

    def note(self, line: str) -> None:
        self._digest.update(line.encode())
        if self._listen is not None:
            self._listen(line)

    def tell(self, line: str) -> None:
        """For people only: not part of the hash."""
        if self._listen is not None:
            self._listen(line)

    @property
    def hash(self) -> str:
        return self._digest.hexdigest()
