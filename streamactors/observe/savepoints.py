"""Where whoever asks from elsewhere may have savepoints written: below the folders that the job's owner has named."""

from collections.abc import Sequence
from urllib.parse import quote

from streamactors.checkpoint.storage.uris import is_plain_path, normalise_uri
from streamactors.errors import InvalidRequest
from streamactors.settings import redacted


class SavepointFolders:
    """`folders`: URIs or absolute paths; without any, no savepoint is taken. Raises InvalidConfig for what is none."""

    def __init__(self, folders: Sequence[str]) -> None:
        self._folders = [normalise_uri(folder) for folder in folders]

    def target(self, uri: str) -> str:
        """Below a folder, or a plain name in the first one. Raises InvalidRequest, or InvalidConfig for no URI."""
        if not self._folders:
            raise _refused(uri, "none is named; name one where the job is served, by --savepoints FOLDER")
        if "://" not in uri and not uri.startswith("/"):
            if not is_plain_path(uri):
                raise _refused(uri, "a name in it must stay in it")
            uri = _below(self._folders[0], uri)
        target = normalise_uri(uri)
        if not any(target.startswith(f"{folder}/") for folder in self._folders):
            raise _refused(uri, f"these are: {', '.join(self._folders)}")
        return target


def _below(folder: str, name: str) -> str:
    """A file URI is decoded later on."""
    return f"{folder}/{quote(name) if folder.startswith('file:') else name}"


def _refused(uri: str, why: str) -> InvalidRequest:
    what = f"savepoint {redacted(uri)!r}: over this address savepoints go below named folders only: {why}"
    return InvalidRequest(what, "savepoint-refused", 403)
