"""Files that nobody will ever read: nothing may be left in a flow's folder but what retained checkpoints refer to."""

import re
from collections.abc import Iterator
from posixpath import basename, dirname, join
from typing import Final

from streamactors.checkpoint import layout, manifest
from streamactors.checkpoint.storage.uris import is_temporary
from streamactors.testing.simulation.disk import File, Folder

BOOKKEEPING: Final = re.compile(
    r"owner\.lock|used-\d+|run-\d+/(epoch|after|base|base\.committed)|"
    r"run-\d+/attempt-\d+/(widest|chk-\d+/(savepoint|unclaimed))"
)


def leaked(flow: Folder, retain: int) -> list[str]:
    """Paths in the flow's folder that no manifest in it refers to; and checkpoints, if there are more than `retain` and
    those that runs were started from."""
    files = dict(_files(flow, ""))
    manifests = [path for path in files if basename(path) == layout.MANIFEST]
    wanted = {
        handle.path for path in manifests for handle in manifest.decode_manifest(bytes(files[path].content), path).files
    }
    complete = {dirname(path) for path in files if basename(path) in (layout.MANIFEST, layout.SAVEPOINT)}
    wanted.update(join(folder, name) for folder in complete for name in (layout.MANIFEST, layout.RECEIPT))
    # What a crash has left of a file that was being written goes with its folder, which is that of a checkpoint or run.
    wanted.update(path for path in files if is_temporary(basename(path)) and not _incomplete(dirname(path), complete))
    left = sorted(path for path in files if path not in wanted and not BOOKKEEPING.fullmatch(path))
    bases = sum(basename(path) in (layout.BASE, layout.UNCLAIMED) for path in files)
    return left if len(complete) <= retain + bases else [*left, *sorted(complete)]


def _incomplete(folder: str, complete: set[str]) -> bool:
    return basename(folder).startswith("chk-") and folder not in complete


def _files(folder: Folder, path: str) -> Iterator[tuple[str, File]]:
    for name, node in sorted(folder.names.items()):
        if isinstance(node, Folder):
            yield from _files(node, join(path, name))
        else:
            yield join(path, name), node
