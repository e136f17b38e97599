"""`streamactors inspect`: what lies in a storage. Reads only, and needs no ownership: the job may be running."""

import datetime as dt
import json
from collections.abc import Sequence
from typing import Any, Literal

import msgspec
from rich.console import Console, RenderableType
from rich.table import Table

from streamactors.checkpoint import layout
from streamactors.checkpoint.manifest import EdgeKey, Manifest, OperatorMeta
from streamactors.checkpoint.restorable import CheckpointSummary, list_checkpoints, load
from streamactors.checkpoint.storage.contract import Files
from streamactors.checkpoint.storage.opening import open_files
from streamactors.checkpoint.storage.uris import normalise_uri
from streamactors.cli.state_rows import Wanted, show
from streamactors.clock import SYSTEM
from streamactors.diagnosis import in_bytes
from streamactors.errors import CorruptCheckpoint, InvalidConfig, StreamactorsError
from streamactors.launch import EXIT_FAILED, EXIT_OK
from streamactors.settings import redacted
from streamactors.state.key_groups import KeyGroupRange, subtask_range
from streamactors.state_processor.overview import OperatorInfo, StateInfo, operators_of

Depth = Literal["manifest", "sizes", "digests"]
_SKEWED, _MANY = 3.0, 1000


async def inspect(uri: str, *, as_json: bool, verify: Depth, wanted: Wanted | None = None) -> int:
    """The exit code. `wanted`: one operator's state, or its rows. Raises InvalidConfig if there is nothing of the kind,
    CorruptCheckpoint if even the manifest of the one that is named can't be read."""
    if wanted is not None and wanted.anything:
        await show(uri, wanted, verify)
        return EXIT_OK
    files = open_files(uri, clock=SYSTEM)
    try:
        return await _inspect(files, uri, as_json=as_json, verify=verify)
    finally:
        await files.close()


async def _inspect(files: Files, uri: str, *, as_json: bool, verify: Depth) -> int:
    if await _is_checkpoint(files, uri):
        return await _inspect_one(files, uri, as_json=as_json, verify=verify)
    found = [await _row(files, summary, verify) for summary in await list_checkpoints(uri, files=files)]
    if not found:
        raise InvalidConfig(
            f"{redacted(normalise_uri(uri))} holds no checkpoints: name a storage, a flow's folder in it, or a "
            "checkpoint (…/run-1/attempt-1/chk-7)"
        )
    _print(found, as_json, lambda: [_checkpoints(found)])
    return EXIT_OK


async def _is_checkpoint(files: Files, uri: str) -> bool:
    uri = normalise_uri(uri).removesuffix(f"/{layout.MANIFEST}")
    if layout.split_checkpoint(uri):
        return True
    return any(entry.name == layout.MANIFEST for entry in await files.at(uri).list(""))


# --------------------------------------------------------------------------------------------------------- all of them
async def _row(files: Files, summary: CheckpointSummary, verify: Depth) -> dict[str, Any]:
    manifest, problem = summary.manifest, summary.problem
    if manifest is not None and problem is None:
        try:
            await load(files, summary.uri, verify=verify)
        except StreamactorsError as error:
            problem = str(error)
    return {
        "uri": summary.uri,
        "checkpoint": summary.checkpoint,
        "run": summary.run,
        "attempt": summary.attempt,
        "committed": summary.committed,
        "problem": problem,
        **(_totals(manifest) if manifest is not None else {}),
    }


def _totals(manifest: Manifest) -> dict[str, Any]:
    return {
        "flow": manifest.flow,
        "time": dt.datetime.fromtimestamp(manifest.time_ms / 1000, dt.UTC).isoformat(timespec="milliseconds"),
        "bytes": manifest.state_bytes,
        "entries": manifest.entries,
        "in_flight_records": manifest.in_flight_records,
        "in_flight_bytes": manifest.in_flight_bytes,
        "final": manifest.final,
    }


def _checkpoints(rows: Sequence[dict[str, Any]]) -> Table:
    columns = "checkpoint", "run", "attempt", "flow", "time", "size", "entries", "in flight", "committed", "problem"
    table = _table(*columns)
    for row in rows:
        known = "time" in row
        table.add_row(
            f"chk-{row['checkpoint']}",
            str(row["run"]),
            str(row["attempt"]),
            row.get("flow", ""),
            _local(row["time"]) if known else "",
            in_bytes(row["bytes"]) if known else "",
            f"{row['entries']:,}" if known else "",
            f"{row['in_flight_records']:,}" if known else "",
            "yes" if row["committed"] else "no",
            f"[red]{_plain(row['problem'])}[/red]" if row["problem"] else "",
        )
    return table


# --------------------------------------------------------------------------------------------------------- one of them
async def _inspect_one(files: Files, uri: str, *, as_json: bool, verify: Depth) -> int:
    problem = None
    try:
        restorable = await load(files, uri, verify=verify)
    except CorruptCheckpoint as error:
        problem = str(error)
        # Its manifest may be readable all the same.
        try:
            restorable = await load(files, uri, verify="manifest")
        except CorruptCheckpoint:
            raise error from None
    manifest = restorable.manifest
    operators = operators_of(manifest)
    content = {
        "uri": restorable.uri,
        "checkpoint": manifest.checkpoint,
        "run": manifest.run,
        "attempt": manifest.attempt,
        "committed": restorable.committed,
        "problem": problem,
        **_totals(manifest),
        "operators": [_operator(manifest, meta, operators[meta.uid]) for meta in manifest.operators],
        "in_flight": _in_flight(manifest),
    }
    _print(content, as_json, lambda: _one(content))
    return EXIT_FAILED if problem else EXIT_OK


def _operator(manifest: Manifest, meta: OperatorMeta, info: OperatorInfo) -> dict[str, Any]:
    states = info.states.values()
    return {
        "uid": meta.uid,
        "kind": meta.kind,
        "parallelism": meta.parallelism,
        "max_parallelism": meta.max_parallelism,
        "bytes": info.bytes,
        "states": {state.name: state.entries for state in states if state.keyed},
        "lists": {state.name: _list(state) for state in states if not state.keyed},
        "sizes": {state.name: _sizes(state) for state in states if state.keyed},
        "subtasks": [
            {
                "index": subtask.index,
                "key_groups": _first_and_last(subtask_range(subtask.index, meta.parallelism, meta.max_parallelism)),
                "ended": subtask.ended,
                "positions": dict(node.positions),
                "pending": list(node.pending),
            }
            for subtask, node in manifest.nodes(meta.uid)
        ],
    }


def _first_and_last(groups: KeyGroupRange) -> list[int]:
    return [groups.start, groups.stop - 1] if groups else []


def _list(state: StateInfo) -> dict[str, Any]:
    """What a restore does with its items: `union`, all of them reach every subtask; `broadcast`, one copy does."""
    broadcast = {"broadcast": True} if state.kind == "broadcast" else {}
    return {"items": state.entries, "union": state.kind == "union list", **broadcast}


def _sizes(state: StateInfo) -> dict[str, Any]:
    """How its entries are spread: `skew` is the largest key group's share over an even one."""
    largest = next(iter(state.largest_groups(1)), None)
    even = state.entries / max(len(state.groups), 1)
    return {
        "type": state.type,
        "kind": state.kind,
        "bytes": state.bytes,
        "key_groups": len(state.groups),
        "largest_key_group": None if largest is None else largest[0],
        "largest_entries": 0 if largest is None else largest[1].entries,
        "skew": None if largest is None else round(largest[1].entries / even, 2),
    }


def _in_flight(manifest: Manifest) -> list[dict[str, Any]]:
    """By edge."""
    edges: dict[EdgeKey, dict[str, Any]] = {}
    for _, edge, frame in manifest.in_flight():
        key = edge.key
        found = edges.setdefault(key, msgspec.structs.asdict(key) | {"kind": edge.kind, "records": 0, "bytes": 0})
        found["records"] += frame.records
        found["bytes"] += frame.length
    return list(edges.values())


def _in_flight_table(edges: Sequence[dict[str, Any]]) -> Table:
    table = _table("in flight from", "to", "side output", "kind", "records", "size")
    for edge in edges:
        table.add_row(
            _plain(edge["upstream"]),
            _plain(edge["downstream"]) + (f" (no. {edge['ordinal'] + 1})" if edge["ordinal"] else ""),
            _plain(edge["tag"] or ""),
            edge["kind"],
            f"{edge['records']:,}",
            in_bytes(edge["bytes"]),
        )
    return table


def _one(content: dict[str, Any]) -> list[RenderableType]:
    title = (
        f"[bold]{_plain(content['flow'])}[/bold] chk-{content['checkpoint']}: run {content['run']}, "
        f"attempt {content['attempt']}, {_local(content['time'])}, {in_bytes(content['bytes'])}, "
        f"{content['entries']:,} entries, {content['in_flight_records']:,} records in flight, "
        f"{'committed' if content['committed'] else 'not known to be committed'}"
    )
    table = _table("operator", "kind", "parallelism", "key groups", "state", "size", "positions", "pending")
    for operator in content["operators"]:
        subtasks = operator["subtasks"]
        keyed, lists = bool(operator["states"]), operator["lists"]
        states = [
            _plain(f"{name}: {entries:,}{_skewed(operator, name)}") for name, entries in operator["states"].items()
        ]
        states += [
            f"{_plain(name)}: {found['items']:,} items{', union' if found['union'] else ''}"
            f"{', broadcast' if found.get('broadcast') else ''}"
            for name, found in lists.items()
        ]
        table.add_row(
            _plain(operator["uid"]),
            _plain(operator["kind"]),
            f"{operator['parallelism']} of {operator['max_parallelism']}",
            "\n".join(_range(subtask["key_groups"]) for subtask in subtasks) if keyed else "",
            "\n".join(states),
            in_bytes(operator["bytes"]) if keyed or lists else "",
            "\n".join(_plain(line) for subtask in subtasks for line in _positions(subtask)),
            "\n".join(_plain(_words(pending)) for subtask in subtasks for pending in subtask["pending"]),
        )
    problem = [f"[red]{_plain(content['problem'])}[/red]"] if content["problem"] else []
    tables: list[RenderableType] = [table]
    if content["in_flight"]:
        tables += ["", _in_flight_table(content["in_flight"])]
    return [title, *problem, *tables]


def _skewed(operator: dict[str, Any], state: str) -> str:
    """Worth to be told where a key group is much larger than the others."""
    sizes = operator["sizes"][state]
    if sizes["skew"] is None or sizes["skew"] < _SKEWED or sizes["largest_entries"] < _MANY:
        return ""
    return f" (key group {sizes['largest_key_group']} has {sizes['largest_entries']:,})"


def _positions(subtask: dict[str, Any]) -> list[str]:
    return [f"{split}: {_words(position)}" for split, position in subtask["positions"].items()]


def _words(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _range(groups: Sequence[int]) -> str:
    return "..".join(map(str, groups))


# ------------------------------------------------------------------------------------------------------------ printing
def _print(content: Any, as_json: bool, tables: Any) -> None:
    console = Console(highlight=False)
    if as_json:
        console.out(json.dumps(content, indent=2, default=str, ensure_ascii=False), highlight=False)
        return
    if not console.is_terminal:
        console.width = 400  # whoever reads a pipe can wrap lines; unwrapping them is hard
    for table in tables():
        console.print(table)


_NUMBERS = {"size", "entries", "records", "in flight"}


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold", justify="right" if column in _NUMBERS else "left")
    return table


def _local(time: str) -> str:
    return dt.datetime.fromisoformat(time).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _plain(text: str) -> str:
    """Without markup: a path may hold brackets."""
    return text.replace("[", r"\[")
