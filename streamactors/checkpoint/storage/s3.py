"""S3 and what speaks its protocol, by s3fs, on the running event loop.

Invariant: one request per operation. Neither s3fs nor botocore tries again: that is done in one place (`retries.py`).
s3fs knows how to find credentials and what every request needs; requests are made with the client that it sets up.
"""

import asyncio
import base64
import errno
import functools
import importlib
import io
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Final

from streamactors.checkpoint.storage.contract import Entry
from streamactors.checkpoint.storage.object_storage import Checked, Upload
from streamactors.clock import Clock
from streamactors.errors import InvalidConfig

BULK: Final = 1000
"""Keys that one request may delete."""
MARK: Final = "streamactors-token"
CONNECTIONS: Final = 32
CONNECT_SECONDS: Final = 5
READ_SECONDS: Final = 20

_NOT_OF_A_SESSION: Final = frozenset(
    {
        "anon", "client_kwargs", "config_kwargs", "endpoint_url", "key", "requester_pays", "s3_additional_kwargs",
        "secret", "token", "use_ssl",
    }
)  # fmt: skip
_PASSES: Final = frozenset(
    {
        "BadDigest", "ConditionalRequestConflict", "IncompleteBody", "InternalError", "OperationAborted",
        "RequestLimitExceeded", "RequestTimeout", "ServiceUnavailable", "SlowDown", "Throttling", "ThrottlingException",
        "TooManyRequests", "XAmzContentChecksumMismatch", "XAmzContentSHA256Mismatch",
    }
)  # fmt: skip
"""Errors that may pass by themselves, besides all of status 5xx."""
_MISSING: Final = frozenset({"404", "NoSuchKey", "NoSuchUpload"})


class S3Store:
    """An `ObjectStore`. `options` are those of `s3fs.S3FileSystem`; connects on first use."""

    def __init__(self, bucket: str, options: Mapping[str, Any], clock: Clock) -> None:
        self._bucket = bucket
        self._options = options
        self._clock = clock
        self._connecting = asyncio.Lock()
        self._files: Any = None
        self._client: Any = None

    # ------------------------------------------------------------------------------------------------------ connection
    async def _call(self, method: str, **arguments: Any) -> Any:
        try:
            await self._connect()
            call = getattr(self._client, method)
            return await call(**self._files._get_s3_method_kwargs(call, Bucket=self._bucket, **arguments))
        except Exception as error:
            if not _is_of_the_connection(error):
                raise
            raise self._as_os_error(error) from error

    async def _connect(self) -> None:
        async with self._connecting:
            if self._client is not None:
                return
            s3fs, session = await self._clock.run_blocking(_prepared)
            # A session of ours would have to know what s3fs hands on to one.
            shared = {"session": session} if set(self._options) <= _NOT_OF_A_SESSION else {}
            try:
                self._files = s3fs.S3FileSystem(**self._settings(), **shared)
                self._client = await self._files.set_session()
            except (TypeError, ValueError, KeyError) as error:
                # Not chained: it may show values.
                raise InvalidConfig(
                    f"s3://{self._bucket}: the storage options {', '.join(sorted(self._options)) or '(none)'} are not "
                    f"what s3fs takes ({type(error).__name__}). See docs/storage.md."
                ) from None

    def _settings(self) -> dict[str, Any]:
        given = dict(self._options)
        config = {
            "connect_timeout": CONNECT_SECONDS,
            "read_timeout": READ_SECONDS,
            "max_pool_connections": CONNECTIONS,
            **given.pop("config_kwargs", {}),
            "retries": {"total_max_attempts": 1},
        }
        # Not signed but checked by a CRC that is computed off the loop; over https nothing is lost by that.
        config["s3"] = {"payload_signing_enabled": False, **config.get("s3", {})}
        ours = {"asynchronous": True, "skip_instance_cache": True, "use_listings_cache": False, "version_aware": False}
        return {**given, **ours, "config_kwargs": config}

    async def close(self) -> None:
        client, self._client, self._files = self._client, None, None
        if client is not None:
            await client.close()

    # -------------------------------------------------------------------------------------------------------- requests
    async def put(self, key: str, data: Checked, *, token: str | None) -> None:
        condition = {} if token is None else {"IfNoneMatch": "*", **_marked(token)}
        await self._call("put_object", Key=key, **_body(data), **condition)

    async def upload(self, key: str, token: str) -> Upload:
        answer = await self._call("create_multipart_upload", Key=key, **_marked(token))
        return S3Upload(self, key, answer["UploadId"])

    async def carries(self, key: str, token: str) -> bool:
        try:
            answer = await self._call("head_object", Key=key)
        except FileNotFoundError:
            return False
        return bool(answer["Metadata"].get(MARK) == token)

    async def get(self, key: str, start: int, length: int) -> bytes:
        if not length:
            return b""
        last = "" if length < 0 else str(start + length - 1)
        ranged = {} if length < 0 and not start else {"Range": f"bytes={start}-{last}"}
        try:
            answer = await self._call("get_object", Key=key, **ranged)
        except OSError as error:
            if error.errno == errno.ERANGE:
                return b""  # it begins behind the end
            raise
        try:
            async with answer["Body"] as body:
                return bytes(await body.read())
        except Exception as error:
            if not _is_of_the_connection(error):
                raise
            raise self._as_os_error(error) from error

    async def size(self, key: str) -> int | None:
        try:
            answer = await self._call("head_object", Key=key)
        except FileNotFoundError:
            return None
        return int(answer["ContentLength"])

    async def children(self, prefix: str) -> list[Entry]:
        found: list[Entry] = []
        async for page in self._pages(prefix, Delimiter="/"):
            found += [Entry(common["Prefix"][len(prefix) : -1], True, 0) for common in page.get("CommonPrefixes", ())]
            found += [Entry(item["Key"][len(prefix) :], False, item["Size"]) for item in page.get("Contents", ())]
        return found

    async def keys(self, prefix: str) -> list[str]:
        return [item["Key"] async for page in self._pages(prefix) for item in page.get("Contents", ())]

    async def _pages(self, prefix: str, **arguments: Any) -> AsyncIterator[Any]:
        while True:
            page = await self._call("list_objects_v2", Prefix=prefix, **arguments)
            yield page
            if not page.get("IsTruncated"):
                return
            arguments["ContinuationToken"] = page["NextContinuationToken"]

    async def delete(self, keys: Sequence[str]) -> None:
        if len(keys) == 1:
            await self._call("delete_object", Key=keys[0])
            return
        for first in range(0, len(keys), BULK):
            objects = [{"Key": key} for key in keys[first : first + BULK]]
            answer = await self._call("delete_objects", Delete={"Objects": objects, "Quiet": True})
            for error in answer.get("Errors", ()):
                if error.get("Code") not in _MISSING:
                    raise _os_error(error.get("Code", ""), 0, error.get("Message", ""))

    async def abort_uploads(self, prefix: str) -> int:
        count = 0
        while True:
            answer = await self._call("list_multipart_uploads", Prefix=prefix)
            found = answer.get("Uploads", ())
            uploads = [each for each in found if not prefix or prefix.endswith("/") or each["Key"] == prefix]
            for upload in uploads:
                await S3Upload(self, upload["Key"], upload["UploadId"]).abort()
            count += len(uploads)
            if not uploads or not answer.get("IsTruncated"):
                return count

    # ---------------------------------------------------------------------------------------------------------- errors
    def _as_os_error(self, error: Exception) -> OSError:
        response = getattr(error, "response", None)
        if not isinstance(response, dict):
            return _without_answer(error)
        told = response.get("Error", {})
        if told.get("Code") == "NoSuchBucket":
            return OSError(errno.ENODEV, f"there is no bucket {self._bucket!r}")
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return _os_error(str(told.get("Code", "")), status, str(told.get("Message", "")))


def _prepared() -> tuple[Any, Any]:
    """s3fs, and a session that has read the descriptions of S3 that a client is made from: together that takes some
    tenths of a second, so it is done in a thread."""
    s3fs = importlib.import_module("s3fs")
    session = importlib.import_module("aiobotocore.session").AioSession()
    session.register_component("data_loader", _descriptions(session.get_config_variable("data_path")))
    return s3fs, session


@functools.cache
def _descriptions(path: str | None) -> Any:
    """Read once for all clients of this process, which only look at them."""
    loader = importlib.import_module("botocore.loaders").create_loader(path)
    loader.load_service_model("s3", "service-2")
    loader.load_service_model("s3", "endpoint-rule-set-1")
    loader.load_data("endpoints")
    loader.load_data("partitions")
    return loader


class S3Upload:
    """An `Upload` in parts."""

    def __init__(self, store: S3Store, key: str, id: str) -> None:
        self._store = store
        self._upload = {"Key": key, "UploadId": id}
        self._parts: dict[int, str] = {}

    async def send(self, number: int, part: Checked) -> None:
        answer = await self._store._call("upload_part", **self._upload, PartNumber=number, **_body(part))
        self._parts[number] = answer["ETag"]

    async def finish(self) -> None:
        parts = [{"PartNumber": number, "ETag": etag} for number, etag in sorted(self._parts.items())]
        await self._store._call(
            "complete_multipart_upload", **self._upload, MultipartUpload={"Parts": parts}, IfNoneMatch="*"
        )

    async def abort(self) -> None:
        try:
            await self._store._call("abort_multipart_upload", **self._upload)
        except FileNotFoundError:
            return  # finished or aborted


def _body(data: Checked) -> dict[str, Any]:
    return {"Body": io.BytesIO(data.data), "ChecksumCRC32": base64.b64encode(data.crc.to_bytes(4, "big")).decode()}


def _marked(token: str) -> dict[str, Any]:
    return {"Metadata": {MARK: token}}


def _os_error(code: str, status: int, message: str) -> OSError:
    text = f"{message} ({code})" if message else code
    if code in _MISSING or (status == 404 and code != "NoSuchBucket"):
        return FileNotFoundError(errno.ENOENT, text)
    if code == "PreconditionFailed" or status == 412:
        return FileExistsError(errno.EEXIST, text)
    if code == "InvalidRange" or status == 416:
        return OSError(errno.ERANGE, text)
    if code in _PASSES or status in (408, 429) or (status >= 500 and status != 501):
        return OSError(errno.EBUSY, text)
    if code == "NotImplemented" or status == 501:
        return OSError(errno.ENOSYS, text)
    if status in (401, 403):
        return PermissionError(errno.EACCES, text)
    return OSError(errno.EINVAL if 400 <= status < 500 else errno.EIO, text)


_LIBRARIES: Final = frozenset({"aiobotocore", "aiohttp", "botocore", "urllib3"})


def _is_of_the_connection(error: Exception) -> bool:
    """And not a mistake in a program, which is no reason to try again."""
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0] in _LIBRARIES


_NO_CREDENTIALS: Final = ("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError")
_NO_REQUEST: Final = (
    "ConfigNotFound", "ConfigParseError", "InvalidConfigError", "InvalidEndpointDiscoveryConfigurationError",
    "NoRegionError", "ParamValidationError", "ProfileNotFound", "UnknownRegionError",
)  # fmt: skip


def _without_answer(error: Exception) -> OSError:
    """What failed before there was an answer. Told by name, so that what the libraries raise needs no import; their
    messages are left out, which may show a URL with more in it than should be seen."""
    names = [kind.__name__ for kind in type(error).__mro__]
    if any(name in names for name in _NO_CREDENTIALS):
        return PermissionError(errno.EACCES, f"there are no usable credentials ({names[0]})")
    if any(name in names for name in _NO_REQUEST):
        return OSError(errno.EINVAL, f"the request can't be made ({names[0]})")
    if isinstance(error, TimeoutError) or any("Timeout" in name for name in names):
        return TimeoutError(errno.ETIMEDOUT, f"no answer in time ({names[0]})")
    return ConnectionResetError(errno.ECONNRESET, f"the connection failed ({names[0]})")
