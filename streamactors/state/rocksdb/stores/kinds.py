"""Which store a kind of state has."""

from typing import Any

from streamactors.state.blocks import ListCodec, ValueCodec
from streamactors.state.rocksdb.stores.lists import ListStore
from streamactors.state.rocksdb.stores.maps import MapStore
from streamactors.state.rocksdb.stores.store import Shared, Store
from streamactors.state.rocksdb.stores.values import ValueStore


def store_for(codec: Any, name: str, shared: Shared, capacity: int) -> Store[Any]:
    match codec:
        case ValueCodec():
            return ValueStore(name, codec, shared, capacity)
        case ListCodec():
            return ListStore(name, codec, shared, capacity)
    return MapStore(name, codec, shared, capacity)
