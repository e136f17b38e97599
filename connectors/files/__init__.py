"""Files as source and sink: JSON lines, text, or whatever a decoder makes of a line."""

from connectors.files.errors import FileChanged, NoSuchFiles, ReadFailed, WriteFailed
from connectors.files.sink import FileSink
from connectors.files.source import FileSource

__all__ = ["FileChanged", "FileSink", "FileSource", "NoSuchFiles", "ReadFailed", "WriteFailed"]
