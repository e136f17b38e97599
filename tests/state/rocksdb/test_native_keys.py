"""Keys that are instances of a class: RocksDB finds them by bytes that depend on it, and it may have changed since.

Restored from native files or from blocks, the outcome is the same.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from streamactors.errors import IncompatibleState
from streamactors.state.backend import NativePart, StateBlock
from streamactors.state.descriptors import MapState, ValueState
from tests.state.backend_contract import ALL, drained, stand_on
from tests.state.rocksdb.test_native import Make, make, stored
from tests.state.serialisation.test_evolution import frozen_record, made

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("native", [True, False], ids=["native", "blocks"])]
__all__ = ["make"]


def kept(backend: Any, folder: Path) -> tuple[dict[str, Any], list[StateBlock]]:
    """Its schemas, and what it holds as blocks; its native files lie in `folder`."""
    schemas = msgspec.msgpack.decode(msgspec.msgpack.encode(backend.schemas()))
    blocks = drained(backend.begin_snapshot(2))
    stored(backend.begin_native_snapshot(1), folder)
    return schemas, blocks


def restore(backend: Any, folder: Path, of: tuple[dict[str, Any], list[StateBlock]], *, native: bool) -> None:
    schemas, blocks = of
    backend.check_schemas(schemas)
    if native:
        backend.restore_native([NativePart(str(folder), ALL)])
    else:
        backend.restore(blocks)


def test_a_key_that_falls_elsewhere_now_is_refused(make: Make, tmp_path: Path, native: bool) -> None:
    declared: dict[str, Callable[[], Any]] = {"total": lambda: ValueState(int, default=0)}
    old = made("NativeCustomer", [("id", int)], frozen_record)
    before: Any = make(declared=declared)
    for number in range(50):
        stand_on(before.cursor, old(number))
        before.state_total.set(number)
    found = kept(before, tmp_path / "1")
    new = made("NativeCustomer", [("id", int), ("region", str, "eu")], frozen_record)
    with pytest.raises(IncompatibleState, match="key group"):
        restore(make(declared=declared), tmp_path / "1", found, native=native)
    assert new(1).region == "eu"  # kept until here: a class that is gone is found by nobody


@pytest.mark.parametrize("declared", [True, False], ids=["typed", "any"])
def test_the_keys_of_a_map_are_found_again(make: Make, tmp_path: Path, native: bool, declared: bool) -> None:
    old = made("NativeProduct", [("id", int)], frozen_record)
    before: Any = make(declared={"m": lambda: MapState(old if declared else Any, int)})
    stand_on(before.cursor, "a")
    for number in range(200):
        before.state_m[old(number)] = number
    found = kept(before, tmp_path / "1")
    new = made("NativeProduct", [("id", int), ("region", str, "eu")], frozen_record)
    after: Any = make(declared={"m": lambda: MapState(new if declared else Any, int)})
    restore(after, tmp_path / "1", found, native=native)
    stand_on(after.cursor, "a")
    assert [after.state_m[new(number)] for number in range(200)] == list(range(200))


def test_what_has_not_changed_is_opened_and_goes_on(make: Make, tmp_path: Path, native: bool) -> None:
    """Twice: what is opened as it is still knows what its keys depend on."""
    declared: dict[str, Callable[[], Any]] = {"m": lambda: MapState(Any, int)}
    old = made("NativePlace", [("id", int)], frozen_record)
    backend: Any = make(declared=declared)
    stand_on(backend.cursor, "a")
    backend.state_m[old(1)] = 1
    for number in range(2):
        found = kept(backend, tmp_path / str(number))
        backend = make(declared=declared)
        restore(backend, tmp_path / str(number), found, native=native)
        stand_on(backend.cursor, "a")
        assert backend.state_m[old(1)] == 1
    found = kept(backend, tmp_path / "last")
    new = made("NativePlace", [("id", int), ("region", str, "eu")], frozen_record)
    after: Any = make(declared=declared)
    restore(after, tmp_path / "last", found, native=native)
    stand_on(after.cursor, "a")
    assert after.state_m[new(1)] == 1
