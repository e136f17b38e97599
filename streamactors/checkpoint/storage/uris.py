"""URIs of storages, and names of the files in them."""

import os
import sys
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from streamactors.errors import InvalidConfig

OBJECT_STORES: Final = ("s3", "gs", "az", "abfs", "abfss", "memory")
"""Schemes of the stores whose files appear whole, or not at all."""
_SAME_STORE: Final = {"s3a": "s3", "gcs": "gs"}


def normalise_uri(uri: str) -> str:
    """`file:///absolute/path` for such a URI or a plain path, `s3://bucket/path` for an object store; raises
    InvalidConfig for anything else."""
    if not uri or "\0" in uri:
        raise InvalidConfig(f"storage {uri!r} names no folder. Give a path, or file:///absolute/path.")
    scheme, colon, rest = uri.partition(":")
    if colon and rest.startswith("//") and scheme.lower() != "file":
        return _normalise_object_uri(scheme.lower(), rest[2:])
    return _normalise_local_uri(uri)


def _normalise_local_uri(uri: str) -> str:
    scheme, colon, rest = uri.partition(":")
    if colon and scheme.lower() == "file":
        host, slash, path = rest[2:].partition("/") if rest.startswith("//") else ("", rest[:1], rest[1:])
        if slash != "/" or host not in ("", "localhost"):
            raise InvalidConfig(f"storage {uri!r} is no absolute file URI. Write three slashes: file:///absolute/path.")
        path = unquote(path if sys.platform == "win32" else f"/{path}")
    else:
        path = os.path.expanduser(uri)
    return Path(os.path.abspath(path)).as_uri()


def _normalise_object_uri(scheme: str, rest: str) -> str:
    """What is wrong is not repeated: it may hold a secret."""
    scheme = _SAME_STORE.get(scheme, scheme)
    if scheme not in OBJECT_STORES:
        raise InvalidConfig(
            f"storage {scheme}://… is not supported: {scheme!r} is none of {', '.join(OBJECT_STORES)}. Local and "
            "mounted folders are, as file:///absolute/path or a plain path."
        )
    bucket, _, path = rest.partition("/")
    user, at, host = bucket.rpartition("@")
    names_account = at and scheme not in ("s3", "gs", "memory") and ":" not in user  # abfs://container@account.…
    if (at and not names_account) or "?" in rest or "#" in rest:
        raise InvalidConfig(
            f"storage {scheme}://…: credentials and options don't belong into a URI. Give them by the environment, or "
            "as Checkpoints(storage_options=…)."
        )
    path = path.rstrip("/")
    if not host or (path and not is_plain_path(path)):
        raise InvalidConfig(f"storage {scheme}://… names no bucket and path: write {scheme}://bucket/path.")
    return f"{scheme}://{bucket}/{path}" if path else f"{scheme}://{bucket}"


def is_object_uri(uri: str) -> bool:
    """Of a normalised URI."""
    return not uri.startswith("file:")


def local_path(uri: str) -> str:
    """The path of a normalised file URI."""
    path = unquote(uri.removeprefix("file://"))
    return path.removeprefix("/") if sys.platform == "win32" else path


def is_plain_path(path: str) -> bool:
    """Whether a relative path stays below its root."""
    return all(part not in ("", ".", "..") and "\\" not in part and "\0" not in part for part in path.split("/"))


def temporary_name(name: str, token: str) -> str:
    return f".{name}.{token}.tmp"


def is_temporary(name: str) -> bool:
    return name.startswith(".") and name.endswith(".tmp")
