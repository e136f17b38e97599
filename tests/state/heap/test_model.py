"""The heap backend against plain dicts."""

import pytest
from hypothesis import settings

from streamactors.state.backend import KeyedBackend
from streamactors.state.heap.backend import HeapBackend
from streamactors.state.key_groups import KeyGroupRange
from tests.state.backend_model import BackendModel
from tests.state.manual_clock import ManualClock

pytestmark = pytest.mark.slow


def heap(groups: KeyGroupRange, max_parallelism: int, clock: ManualClock) -> KeyedBackend:
    return HeapBackend(groups, max_parallelism, clock=clock)


class HeapModel(BackendModel):
    make = staticmethod(heap)


TestHeapModel = HeapModel.TestCase
TestHeapModel.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
