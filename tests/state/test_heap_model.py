"""The heap backend against plain dicts."""

import pytest
from hypothesis import settings

from streamactors.state.heap import HeapBackend
from tests.state.backend_model import BackendModel

pytestmark = pytest.mark.slow


class HeapModel(BackendModel):
    make = HeapBackend


TestHeapModel = HeapModel.TestCase
TestHeapModel.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
