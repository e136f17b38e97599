"""The folder in which a job is started, which relative paths of its sources and sinks mean."""

import logging
import os
import platform

log = logging.getLogger("streamactors.ray")


def go_to(folder: str) -> None:
    """Where this process is on a machine that has no such folder, it stays where it is, and says so."""
    try:
        os.chdir(folder)
    except OSError as error:
        log.warning(
            "node %r: can't work in %s, where the job was started (%s): relative paths of sources and sinks lie below "
            "%s here; make them absolute",
            platform.node(),
            folder,
            error.strerror,
            os.getcwd(),
        )
