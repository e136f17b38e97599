"""What Ray says of an actor that is gone, in a line."""

from typing import Final

_MOST: Final = 400
"""Characters."""
_ALWAYS: Final = "The actor died unexpectedly"
"""What it says first of every death: nothing that helps."""


def in_a_line(error: BaseException) -> str:
    """Without whose death it was, which is told in lines that are indented."""
    said = [line.strip() for line in str(error).splitlines() if line.strip() and not line.startswith("\t")]
    reason = said[1:] if len(said) > 1 and said[0].startswith(_ALWAYS) else said[:1]
    return f"{type(error).__name__}: {' '.join(reason)[:_MOST]}"
