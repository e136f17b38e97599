"""How much of its input each source has read: pure, from what the subtasks count."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from streamactors.sources import InputProgress


def input_progress(subtasks: Iterable[Mapping[str, Any]]) -> dict[str, InputProgress]:
    """By uid; of sources all of whose subtasks know their end."""
    parts: defaultdict[str, list[Any]] = defaultdict(list)
    for subtask in subtasks:
        if "progress" in subtask:
            parts[subtask["vertex"]].append(subtask["progress"])
    return {uid: _together(told) for uid, told in parts.items() if None not in told}


def _together(parts: list[Any]) -> InputProgress:
    done, total = sum(done for done, _, _ in parts), sum(total for _, total, _ in parts)
    return InputProgress(min(done, total), total, parts[0][2])
