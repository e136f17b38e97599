"""Lists as source and sink: for tests and notebooks."""

from connectors.memory.source import CRASH, ListSource
from streamactors.listsink import ListSink

__all__ = ["CRASH", "ListSink", "ListSource"]
