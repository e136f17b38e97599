"""State around an await, on the heap."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from streamactors.state.backend import KeyedBackend
from streamactors.state.heap.backend import HeapBackend
from tests.state.backend_contract import ALL, GROUPS
from tests.state.calls_contract import CALLS, SLOW_IS_FINE, CallsContract
from tests.state.kinds_contract import MINUTE, TOUCHED
from tests.state.manual_clock import ManualClock


class TestHeapCalls(CallsContract):
    def make(self, clock: ManualClock) -> KeyedBackend:
        return HeapBackend(ALL, GROUPS, uid="totals", clock=clock)

    @settings(
        max_examples=50,
        deadline=None,
        suppress_health_check=SLOW_IS_FINE,
    )
    @given(calls=CALLS, lasting=st.sampled_from([None, MINUTE, TOUCHED]))
    def test_against_the_model(self, calls: list[Any], lasting: Any) -> None:
        self.agrees_with_the_model(calls, lasting)
