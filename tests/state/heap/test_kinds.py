"""All kinds of state on the heap."""

from streamactors.state.backend import KeyedBackend
from streamactors.state.heap.backend import HeapBackend
from tests.state.backend_contract import ALL, GROUPS
from tests.state.kinds_contract import KindsContract
from tests.state.manual_clock import ManualClock


class TestHeapKinds(KindsContract):
    def make(self, clock: ManualClock) -> KeyedBackend:
        return HeapBackend(ALL, GROUPS, uid="totals", clock=clock)
