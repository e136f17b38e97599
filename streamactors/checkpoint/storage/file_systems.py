"""What one job's files are reached by, wherever they lie: which storage a URI stands for, and what its parts share."""

import contextlib
import importlib.util
from collections.abc import Mapping
from typing import Any, Final

from streamactors.checkpoint.storage.contract import Files
from streamactors.checkpoint.storage.fsspec_storage import FsspecStore
from streamactors.checkpoint.storage.lease import LeaseTimes
from streamactors.checkpoint.storage.local import LocalFiles
from streamactors.checkpoint.storage.object_storage import Bucket, ObjectFiles, ObjectStore
from streamactors.checkpoint.storage.retries import Backoff
from streamactors.checkpoint.storage.s3 import S3Store
from streamactors.checkpoint.storage.uris import is_object_uri, normalise_uri
from streamactors.clock import Clock
from streamactors.errors import MissingExtra

_NEEDS: Final = {
    "s3": ("s3fs", "streamactors[s3]"),
    "gs": ("gcsfs", "streamactors[objectstore]' 'gcsfs"),
    "az": ("adlfs", "streamactors[objectstore]' 'adlfs"),
    "abfs": ("adlfs", "streamactors[objectstore]' 'adlfs"),
    "abfss": ("adlfs", "streamactors[objectstore]' 'adlfs"),
    "memory": ("fsspec", "streamactors[objectstore]"),
}
"""By scheme: the package, and what installs it."""


def _require(scheme: str) -> None:
    package, installs = _NEEDS[scheme]
    if importlib.util.find_spec(package) is None:
        raise MissingExtra(f"storage {scheme}://… needs the package {package}: pip install '{installs}'")


class FileSystems:
    """What one job reads and writes with, wherever it lies: one connection for each bucket."""

    def __init__(
        self, scheme: str, options: Mapping[str, Any], clock: Clock, backoff: Backoff, times: LeaseTimes
    ) -> None:
        """`options` are for URIs of `scheme`."""
        self._scheme = scheme
        self._options = options
        self._clock = clock
        self._backoff = backoff
        self._times = times
        self._buckets: dict[str, Bucket] = {}

    def files(self, uri: str) -> Files:
        uri = normalise_uri(uri)
        if not is_object_uri(uri):
            return LocalFiles(uri, clock=self._clock, elsewhere=self)
        scheme, _, rest = uri.partition("://")
        name, _, key = rest.partition("/")
        return ObjectFiles(uri, key, self._bucket(scheme, name), self, self._times)

    def _bucket(self, scheme: str, name: str) -> Bucket:
        uri = f"{scheme}://{name}"
        if uri not in self._buckets:
            _require(scheme)
            self._buckets[uri] = Bucket(uri, self._store(scheme, name), self._clock, self._backoff)
        return self._buckets[uri]

    def _store(self, scheme: str, name: str) -> ObjectStore:
        options = self._options if scheme == self._scheme else {}
        if scheme == "s3":
            return S3Store(name, options, self._clock)
        return FsspecStore(f"{scheme}://{name}", options, self._clock)

    async def close(self) -> None:
        async with contextlib.AsyncExitStack() as closing:  # all of them, whatever one of them raises
            for bucket in self._buckets.values():
                closing.push_async_callback(bucket.store.close)
