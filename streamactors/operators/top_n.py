"""`top_n`: the ranking of each key, whenever it changes (Flink SQL: Top-N, which gives rows and takes them back).

Invariant: the last that has come out for a key is the ranking of all its records so far.
"""

from dataclasses import dataclass
from operator import is_not
from typing import Any

from streamactors.errors import InvalidDataflow
from streamactors.operators.base import Context, KeyedOperator, Link, LinkContext, OperatorSpec, is_async
from streamactors.operators.process import Hook, ProcessLink
from streamactors.state.aggregates import TopN
from streamactors.state.descriptors import AggregatingState, Ttl


class Ranking(KeyedOperator[Any, Any, Any]):
    ranking: AggregatingState[Any, list[Any]]

    def process(self, row: Any, ctx: Context[Any, Any], /) -> None:
        before = self.ranking.get()
        self.ranking.add(row)
        after = self.ranking.get()
        # Whoever has moved down was another than who stands there now: ranks are never equal where one takes a place.
        if len(after) > len(before) or any(map(is_not, after, before)):
            ctx.emit(after)


@dataclass(frozen=True)
class TopNSpec(OperatorSpec):
    n: int
    by: Any
    """A function that gives a record's rank."""
    ttl: Ttl | None

    @property
    def kind(self) -> str:
        return "top_n"

    @property
    def keyed_state(self) -> bool:
        return True

    def validate(self, uid: str) -> None:
        if type(self.n) is not int or self.n < 1:
            raise InvalidDataflow(f"top_n {uid!r}: n={self.n!r}: give a whole number from 1 up")
        if not callable(self.by) or is_async(self.by):
            raise InvalidDataflow(f"top_n {uid!r}: by= is a plain function that gives a record's rank, not {self.by!r}")
        if self.ttl is not None and not isinstance(self.ttl, Ttl):
            raise InvalidDataflow(f"top_n {uid!r}: ttl={self.ttl!r}: give a Ttl, as in ttl=sa.Ttl(after=…)")

    def link(self, ctx: LinkContext) -> Link:
        spec = self

        class Made(Ranking):
            ranking = AggregatingState[Any, list[Any]](TopN(spec.n, spec.by), ttl=spec.ttl)

        operator = Made()
        return ProcessLink(ctx, operator, Hook.of(operator.process, keyed=True))
