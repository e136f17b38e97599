"""What a process of a job on a cluster logs: lines that reach the driver's terminal by way of its standard error."""

import logging


class SubtaskFormatter(logging.Formatter):
    """Names the subtask whose log it is, which comes beside the message, such as `totals[1]`."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (logging's name)
        uid, subtask = getattr(record, "uid", None), getattr(record, "subtask", None)
        record.whose = "" if uid is None or subtask is None else f" {uid}[{subtask}]"
        return super().formatMessage(record)


def log_as(level: int) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(SubtaskFormatter("%(asctime)s %(levelname)-8s %(name)s%(whose)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("streamactors").setLevel(level)
