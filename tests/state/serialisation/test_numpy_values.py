"""numpy arrays and scalars as state: they come back with their dtype and shape."""

from typing import Any

import msgspec
import numpy as np
import pytest

from streamactors.errors import InvalidDataflow, UnserialisableKey, UnserialisableValue
from streamactors.state.descriptors import ListState, MapState, ValueState
from streamactors.state.heap.backend import HeapBackend
from streamactors.state.key_groups import KeyGroupRange, key_group
from streamactors.state.serialisation.serializers import AnySerializer, serializer_for
from tests.state.backend_contract import contents, drained, stand_on


class Model(msgspec.Struct):
    weights: np.ndarray[Any, Any]
    steps: int


ARRAYS: list[np.ndarray[Any, Any]] = [
    np.arange(6, dtype=np.float32).reshape(2, 3),
    np.asfortranarray(np.arange(6).reshape(2, 3)),
    np.array(3.5),
    np.array([], dtype=np.int8),
    np.array([np.nan, 1.0]),
    np.array(["2024-01-01"], dtype="datetime64[D]"),
    np.array([(1, 2.0)], dtype=[("n", "<i4"), ("x", "<f8")]),
    np.array([True, False]),
]


def assert_same(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("array", ARRAYS, ids=[str(array.dtype) for array in ARRAYS])
def test_arrays_come_back_as_they_were(array: np.ndarray[Any, Any]) -> None:
    for serializer in (serializer_for(np.ndarray), AnySerializer()):
        assert_same(serializer.decode(serializer.encode(array)), array)
        (found,) = serializer.decode_many(serializer.encode_many([array]))
        assert_same(found, array)
        assert serializer.copy(array) is not array


@pytest.mark.parametrize("scalar", [np.float64(0.5), np.int32(7), np.bool_(True), np.datetime64("2024-01-01")])
def test_scalars_come_back_as_they_were(scalar: Any) -> None:
    assert_same(AnySerializer().decode(AnySerializer().encode([scalar]))[0], scalar)


def test_arrays_inside_other_values() -> None:
    serializer = serializer_for(Model)
    found = serializer.decode_many(serializer.encode_many([Model(array, 1) for array in ARRAYS]))
    for model, array in zip(found, ARRAYS, strict=True):
        assert_same(model.weights, array)
    nested = serializer_for(dict[str, list[np.ndarray]])
    assert_same(nested.decode(nested.encode({"a": [ARRAYS[0]]}))["a"][0], ARRAYS[0])


def test_arrays_as_state_with_a_snapshot_running() -> None:
    backend = HeapBackend(KeyGroupRange(0, 1), 1)
    declared: dict[str, Any] = {
        "value": ValueState(Model),
        "items": ListState(np.ndarray),
        "map": MapState(str, np.ndarray),
    }
    bound = {name: backend.bind(name, declaration) for name, declaration in declared.items()}
    for key in range(4):
        stand_on(backend.cursor, key, 1)
        bound["value"].set(Model(np.zeros(3), 0))
        bound["items"].append(np.zeros(3))
        bound["map"]["a"] = np.zeros(3)
    snapshot = backend.begin_snapshot(1)
    for key in range(2):
        stand_on(backend.cursor, key, 1)
        for array in (bound["value"].get().weights, next(iter(bound["items"])), bound["map"]["a"]):
            array += 1
    later = HeapBackend(KeyGroupRange(0, 1), 1)
    for name, declaration in declared.items():
        later.bind(name, declaration)
    later.restore(drained(snapshot))
    for held in contents(later, "value").values():
        assert_same(held.weights, np.zeros(3))
    for held in [*contents(later, "items").values(), *contents(later, "map").values()]:
        assert_same(held[0] if isinstance(held, list) else held["a"], np.zeros(3))


def test_what_numpy_could_only_pickle_is_refused() -> None:
    for serializer in (serializer_for(np.ndarray), AnySerializer()):
        with pytest.raises(UnserialisableValue, match=r"dtype object can.t be stored"):
            serializer.encode(np.array([object()]))


def test_numpy_numbers_are_neither_floats_nor_keys() -> None:
    with pytest.raises(UnserialisableValue, match=r"expected float, found numpy\.float64"):
        serializer_for(float).accept(np.float64(1.0))
    for key in (np.int64(1), np.float64(1.0), np.str_("a")):
        with pytest.raises(UnserialisableKey, match="no stable serialisation"):
            key_group(key, 128)


def test_other_array_types_are_refused_as_a_declaration() -> None:
    with pytest.raises(InvalidDataflow, match="Generator has no declared fields"):
        serializer_for(np.random.Generator)
