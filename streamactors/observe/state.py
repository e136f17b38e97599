"""How the state of operators is spread, over key groups and subtasks: pure, from the parts of one checkpoint.

What is told of one operator is bounded (64 ranges of key groups), however many key groups and subtasks it has.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from streamactors.observe import model
from streamactors.runtime.figures import SubtaskCheckpoint
from streamactors.runtime.group_figures import GroupFigures, bounds_of, buckets_of


def state_of(parts: Iterable[SubtaskCheckpoint]) -> list[model.OperatorState]:
    """In the order in which the operators are met."""
    sizes: defaultdict[str, list[int]] = defaultdict(list)
    groups: defaultdict[str, list[GroupFigures]] = defaultdict(list)
    subtasks, chain_of = Counter[str](), dict[str, str]()
    for part in parts:
        chain = part.subtask.rpartition("[")[0]
        subtasks[chain] += 1
        chain_of |= dict.fromkeys(part.state_bytes, chain)
        for uid, size in part.state_bytes.items():
            sizes[uid].append(size)
        for figures in part.groups:
            chain_of[figures.uid] = chain
            groups[figures.uid].append(figures)
    return [_operator(uid, subtasks[chain], sizes[uid], groups[uid]) for uid, chain in chain_of.items()]


def _operator(uid: str, subtasks: int, sizes: Sequence[int], groups: Sequence[GroupFigures]) -> model.OperatorState:
    """`sizes`: of the subtasks that hold anything."""
    total = sum(sizes)
    subtask_skew = round(max(sizes) * subtasks / total, 3) if total else None
    if not groups:
        return model.OperatorState(
            uid=uid,
            max_parallelism=0,
            subtasks=subtasks,
            entries=0,
            bytes=total,
            key_groups=[],
            subtask_skew=subtask_skew,
        )
    by_bytes = all(figures.largest is not None for figures in groups)
    largest, most = max((_largest(figures, by_bytes=by_bytes) for figures in groups), key=lambda one: one[1])
    key_groups = _key_groups(groups, by_bytes=by_bytes)
    keyed = sum(one.bytes or 0 for one in key_groups) if by_bytes else sum(one.entries for one in key_groups)
    return model.OperatorState(
        uid=uid,
        max_parallelism=groups[0].max_parallelism,
        subtasks=subtasks,
        entries=sum(one.entries for one in key_groups),
        bytes=total,
        key_groups=key_groups,
        skew=round(most * groups[0].max_parallelism / keyed, 3) if keyed else None,
        skew_of="bytes" if by_bytes else "entries",
        largest=largest if keyed else None,
        subtask_skew=subtask_skew,
    )


def _largest(figures: GroupFigures, *, by_bytes: bool) -> tuple[int, int]:
    return figures.largest if by_bytes and figures.largest is not None else figures.fullest


def _key_groups(groups: Sequence[GroupFigures], *, by_bytes: bool) -> list[model.KeyGroups]:
    """All of them, those too that hold nothing. Two subtasks may share a bucket."""
    most = groups[0].max_parallelism
    buckets = len(_all_bounds(most))
    entries, sizes = [0] * buckets, [0] * buckets
    for figures in groups:
        for place, count in enumerate(figures.entries, figures.first):
            entries[place] += count
        for place, size in enumerate(figures.sizes, figures.first):
            sizes[place] += size
    return [
        model.KeyGroups(first=first, last=last, entries=entries[place], bytes=sizes[place] if by_bytes else None)
        for place, (first, last) in enumerate(_all_bounds(most))
    ]


def _all_bounds(max_parallelism: int) -> list[tuple[int, int]]:
    return [bounds_of(bucket, max_parallelism) for bucket in range(buckets_of(max_parallelism))]
