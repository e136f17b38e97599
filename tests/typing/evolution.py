"""What type checkers make of aliases, formats and renamed state."""

from typing import Annotated, assert_type

import msgspec

import streamactors as sa


class Order(msgspec.Struct):
    key: str
    total: Annotated[float, sa.Alias("amount", "sum")]


class Model:
    """Stored in a format of its own."""


class ModelFormat:
    version = 2

    def encode(self, value: Model) -> bytes:
        return b""

    def decode(self, data: bytes) -> Model:
        return Model()

    def decode_version(self, data: bytes, version: int) -> Model:
        return Model()


class Totals(sa.KeyedOperator[str, Order, float]):
    total = sa.stored_as("amount", sa.ValueState(float, default=0.0))
    model = sa.ValueState(sa.Custom(Model, ModelFormat()))
    orders = sa.stored_as("held", sa.MapState(str, Order))
    json = sa.ListState(sa.Custom(Order, sa.Json(Order)))

    def process(self, order: Order, ctx: sa.Context[str, float], /) -> None:
        assert_type(order.total, float)
        assert_type(self.total.get(), float)
        assert_type(self.model.get(), Model | None)
        assert_type(self.orders[order.key], Order)
        assert_type(list(self.json), list[Order])
