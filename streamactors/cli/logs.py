"""Logging for the command line: lines for people, or JSON, one object per line."""

import json
import logging
import sys
import traceback
from typing import Any, Literal

from streamactors.cli.failure import where
from streamactors.errors import JobFailed

LogFormat = Literal["text", "json"]
_STANDARD = set(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


class StderrHandler(logging.Handler):
    """To whatever `sys.stderr` is at the time, since a live table puts itself in front of it."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            print(self.format(record), file=sys.stderr, flush=True)
        except Exception:  # whoever read the log may have gone: that is no reason for a job to fail
            self.handleError(record)


class TextFormatter(logging.Formatter):
    """An exception is one line, unless `full`."""

    def __init__(self, *, full: bool) -> None:
        super().__init__("%(asctime)s %(levelname)-8s %(message)s", "%H:%M:%S")
        self._full = full

    def formatException(self, ei: Any) -> str:  # noqa: N802 (logging's name)
        return super().formatException(ei) if self._full else f"    {where(ei[1])}"


class JsonFormatter(logging.Formatter):
    """What a record carries beyond the standard (`extra=`; flow, uid and subtask of an operator's log) comes too."""

    def __init__(self, flow: str) -> None:
        super().__init__()
        self._flow = flow

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S") + f".{int(record.msecs):03}",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "flow": self._flow,
        }
        line |= {name: value for name, value in record.__dict__.items() if name not in _STANDARD}
        if record.exc_info and record.exc_info[1] is not None:
            line["error"] = where(record.exc_info[1])
            line["exception"] = "".join(traceback.format_exception(record.exc_info[1]))
        return json.dumps(line, default=str, ensure_ascii=False)


def untold_elsewhere(record: logging.LogRecord) -> bool:
    """The failure of the job ends the command, and that is told by a panel."""
    return record.exc_info is None or not isinstance(record.exc_info[1], JobFailed)


def set_up(format: LogFormat, flow: str, *, level: int, full: bool) -> None:
    """What is kept of a log needs the failure at its place and time; on a terminal the panel alone shows it."""
    handler = StderrHandler()
    if format == "text" and sys.stderr.isatty():
        handler.addFilter(untold_elsewhere)
    handler.setFormatter(TextFormatter(full=full) if format == "text" else JsonFormatter(flow))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.captureWarnings(True)
