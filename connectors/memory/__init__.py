"""Lists as source and sink: for tests and notebooks."""

from connectors.memory.sink import ListSink
from connectors.memory.source import CRASH, ListSource

__all__ = ["CRASH", "ListSink", "ListSource"]
