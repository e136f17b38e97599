"""Lists as source and sink: for tests and notebooks."""

from connectors.memory.source import ListSource
from streamactors.listsink import ListSink
from streamactors.sources import CRASH

__all__ = ["CRASH", "ListSink", "ListSource"]
