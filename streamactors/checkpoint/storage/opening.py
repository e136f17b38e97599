"""Opens the storage that a URI stands for. What reaches it is imported then: most of a program's imports need none."""

from collections.abc import Mapping
from typing import Any

from streamactors.checkpoint.storage.contract import Files
from streamactors.checkpoint.storage.lease import LeaseTimes
from streamactors.checkpoint.storage.retries import Backoff
from streamactors.checkpoint.storage.uris import normalise_uri
from streamactors.clock import SYSTEM, Clock


def open_files(
    uri: str,
    *,
    clock: Clock = SYSTEM,
    options: Mapping[str, Any] | None = None,
    backoff: Backoff | None = None,
    times: LeaseTimes | None = None,
) -> Files:
    """Files rooted at `uri`; nothing is connected yet. `options`: of the file system that `uri` needs, for all URIs of
    its scheme. Whoever opens them closes them.

    Raises InvalidConfig for a URI that can't be, MissingExtra where a package is missing.
    """
    from streamactors.checkpoint.storage.file_systems import FileSystems

    uri = normalise_uri(uri)
    scheme = uri.partition(":")[0]
    return FileSystems(scheme, options or {}, clock, backoff or Backoff(), times or LeaseTimes()).files(uri)
