"""`streamactors inspect URI --operator U [--state S]`: one operator's state, and the rows of a state.

Reads only. Rows come as they are stored: instances of classes, which are not imported, as their fields.
"""

import json
import sys
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import ExitStack, aclosing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from streamactors import state_processor
from streamactors.checkpoint.restorable import Verify
from streamactors.diagnosis import in_bytes
from streamactors.errors import InvalidConfig, StateAccessError, StorageFailed, UnserialisableKey
from streamactors.state_processor import KeyedRows, OperatorInfo, Snapshot, StateInfo, StoredRows, plain
from streamactors.state_processor.arrow import TableType, pyarrow
from streamactors.state_processor.rows import ARROW_ROWS, Row

Format = Literal["table", "json", "parquet"]

TABLE_ROWS: Final = 20
"""What a table shows unless told."""
_LARGEST: Final = 5
_CELL: Final = 200


@dataclass(frozen=True)
class Wanted:
    """What of a checkpoint is to be shown. `limit` None: all, of a table 20 rows."""

    operator: str | None = None
    state: str | None = None
    key: str | None = None
    limit: int | None = None
    format: Format = "table"
    output: Path | None = None

    @property
    def anything(self) -> bool:
        return self.operator is not None or self.state is not None or self.key is not None

    def check(self) -> None:
        """Raises InvalidConfig for options that don't go together."""
        if self.format == "parquet" and (self.output is None or not self._rows):
            raise InvalidConfig("--format parquet writes the rows of a state: give --state, and --output FILE")
        if self.key is not None and self.state is None:
            raise InvalidConfig("--key looks into one state: give --state")
        if self.output is not None and (self.format == "table" or not self._rows):
            raise InvalidConfig("--output FILE takes the rows of a state: give --state, and --format json or parquet")

    @property
    def _rows(self) -> bool:
        return self.state is not None


async def show(uri: str, wanted: Wanted, verify: Verify) -> None:
    """Raises what `state_processor.open` does, and StateAccessError for what the checkpoint does not hold."""
    async with state_processor.open(uri, verify=verify) as snapshot:
        if wanted.state is None:
            operator = snapshot.operator(wanted.operator or "")
            await (_print_operator if wanted.format == "table" else _print_operator_json)(snapshot, operator)
        else:
            uid = wanted.operator or _owner(snapshot, wanted.state)
            rows = snapshot.state(uid, wanted.state)
            found = await _of_key(rows, wanted.key) if wanted.key is not None else rows
            await _WRITERS[wanted.format](found, wanted)


def _owner(snapshot: Snapshot, state: str) -> str:
    """Of a state that only one operator has."""
    owners = [uid for uid, operator in snapshot.operators.items() if state in operator.states]
    if len(owners) != 1:
        found = f"{' and '.join(owners)} have one: name it by --operator" if owners else "no operator has one"
        raise StateAccessError(f"which state {state!r} of {snapshot.uri}? {found}")
    return owners[0]


# ------------------------------------------------------------------------------------------------------- one operator
async def described(snapshot: Snapshot, operator: OperatorInfo) -> dict[str, Any]:
    states = [await _state(snapshot, info) for info in operator.states.values()]
    return {
        "uid": operator.uid,
        "kind": operator.kind,
        "parallelism": operator.parallelism,
        "max_parallelism": operator.max_parallelism,
        "bytes": operator.bytes,
        "states": states,
        "positions": plain.as_json(dict(operator.positions)),
        "pending": plain.as_json(list(operator.pending)),
        "watermarks": {str(subtask): watermark for subtask, watermark in operator.watermarks.items()},
    }


async def _state(snapshot: Snapshot, info: StateInfo) -> dict[str, Any]:
    return {
        "name": info.name,
        "kind": info.kind,
        "keys": dict(await snapshot.state(info.uid, info.name).types_of("key")) if info.keyed else {},
        "type": info.type,
        "entries": info.entries,
        "bytes": info.bytes,
        "key_groups": len(info.groups),
        "largest_key_groups": [
            {"key_group": group, "entries": size.entries, "bytes": size.bytes}
            for group, size in info.largest_groups(_LARGEST)
        ],
    }


async def _print_operator_json(snapshot: Snapshot, operator: OperatorInfo) -> None:
    print(json.dumps(await described(snapshot, operator), indent=2, ensure_ascii=False))


async def _print_operator(snapshot: Snapshot, operator: OperatorInfo) -> None:
    content = await described(snapshot, operator)
    console = _console()
    console.print(
        Text(
            f"{operator.uid}: {operator.kind}, parallelism {operator.parallelism} of {operator.max_parallelism}, "
            f"{in_bytes(operator.bytes)}"
        )
    )
    table = _table("state", "kind", "keys", "type", "entries", "size", "key groups", "largest key groups")
    for state in content["states"]:
        table.add_row(*map(Text, _state_cells(operator, state)))
    if content["states"]:
        console.print(table)
    for what in ("positions", "watermarks"):
        for name, value in content[what].items():
            console.print(Text(f"{what.removesuffix('s')} of {name}: {plain.as_json_text(value)}"))
    for pending in content["pending"]:
        console.print(Text(f"pending: {plain.as_json_text(pending)}"))


def _state_cells(operator: OperatorInfo, state: dict[str, Any]) -> Iterator[str]:
    yield state["name"]
    yield state["kind"]
    yield ", ".join(state["keys"])
    yield state["type"]
    yield f"{state['entries']:,}"
    yield in_bytes(state["bytes"])
    keyed = operator.states[state["name"]].keyed
    yield f"{state['key_groups']} of {operator.max_parallelism}" if keyed else ""
    yield ", ".join(f"{group['key_group']}: {group['entries']:,}" for group in state["largest_key_groups"])


# -------------------------------------------------------------------------------------------------------------- one key
async def _of_key(rows: StoredRows, text: str) -> StoredRows:
    """The rows of the key that is written like this: "7" may be a string or a number."""
    if not isinstance(rows, KeyedRows):
        raise StateAccessError(f"operator {rows.info.uid!r}, state {rows.info.name!r} belongs to no key")
    for key in _keys_like(text):
        try:
            if found := await rows.of_key(key):
                return _Given(rows, found)
        except UnserialisableKey:  # nothing that could be a key is written like this
            continue
    raise StateAccessError(f"operator {rows.info.uid!r}, state {rows.info.name!r} holds nothing for the key {text!r}")


def _keys_like(text: str) -> Iterator[Any]:
    yield text
    try:
        yield _hashable(json.loads(text))
    except ValueError:  # it is no JSON
        pass
    yield from plain.leaves_like(text)
    yield text.encode()


def _hashable(value: Any) -> Any:
    return tuple(map(_hashable, value)) if isinstance(value, list) else value


class _Given(StoredRows):
    """Some rows of a state, already read."""

    def __init__(self, rows: StoredRows, found: Sequence[Row]) -> None:
        self.info = rows.info
        self.columns = rows.columns
        self._found = list(found)
        self._schemas = rows.column_schemas()

    def column_schemas(self) -> Any:
        return self._schemas

    async def lists(self) -> AsyncGenerator[list[Row], None]:
        yield self._found


# -------------------------------------------------------------------------------------------------------------- formats
async def _write_table(rows: StoredRows, wanted: Wanted) -> None:
    limit = TABLE_ROWS if wanted.limit is None else wanted.limit
    found = await rows.first(limit + 1)
    table = _table(*rows.columns)
    for row in found[:limit]:
        table.add_row(*(Text(_cell(value)) for value in row))
    console = _console()
    console.print(table)
    if len(found) > limit:
        console.print(Text(f"… and more: --limit shows more than {limit}, --format json or parquet all"))


def _cell(value: Any) -> str:
    text = value if isinstance(value, str) else plain.as_json_text(value)
    if not text.isprintable():  # what moves the cursor of a terminal, or worse
        text = json.dumps(plain.as_json(value))
    return text if len(text) <= _CELL else f"{text[:_CELL]}…"


async def _write_json(rows: StoredRows, wanted: Wanted) -> None:
    """An object a line."""
    with _opened(wanted.output) as file:
        async with aclosing(_limited(rows, wanted.limit)) as lists:
            async for part in lists:
                for row in part:
                    line = {name: plain.as_json(value) for name, value in zip(rows.columns, row, strict=True)}
                    file.write(plain.written(line) + "\n")


@contextmanager
def _opened(output: Path | None) -> Iterator[IO[str]]:
    if output is None:
        yield sys.stdout
        return
    try:
        with output.open("w", encoding="utf-8") as file:
            yield file
    except OSError as error:
        raise StorageFailed(f"can't write {output}: {error.strerror or error}") from error


async def _limited(rows: StoredRows, limit: int | None) -> AsyncGenerator[list[Row], None]:
    left = limit
    async with aclosing(rows.lists()) as lists:
        async for part in lists:
            yield part if left is None else part[:left]
            left = None if left is None else left - len(part)
            if left is not None and left <= 0:
                return


async def _write_parquet(rows: StoredRows, wanted: Wanted) -> None:
    """Read twice: a column has the type of all its values."""
    assert wanted.output is not None
    pyarrow()
    from pyarrow import parquet

    table = TableType(rows.columns, rows.column_schemas())
    async with aclosing(_limited(rows, wanted.limit)) as lists:
        async for part in lists:
            table.observe(part)
    with ExitStack() as stack:
        try:
            writer = stack.enter_context(parquet.ParquetWriter(str(wanted.output), table.schema))
        except OSError as error:
            raise StorageFailed(f"can't write {wanted.output}: {error.strerror or error}") from error
        async with aclosing(_limited(rows, wanted.limit)) as lists:
            waiting: list[Row] = []
            async for part in lists:
                waiting += part
                if len(waiting) >= ARROW_ROWS:
                    writer.write_batch(table.batch(waiting))
                    waiting = []
            if waiting:
                writer.write_batch(table.batch(waiting))


_WRITERS: Final = {"table": _write_table, "json": _write_json, "parquet": _write_parquet}


def _console() -> Console:
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 400  # whoever reads a pipe can wrap lines; unwrapping them is hard
    return console


_NUMBERS: Final = {"entries", "size", "subtask"}


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold", justify="right" if column in _NUMBERS else "left")
    return table
