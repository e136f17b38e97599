"""The rules of the house that no linter knows, each a function from a parsed module to its violations."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Self

ROOT = Path(__file__).resolve().parents[2]
CODE = ("streamactors", "connectors", "pytest_streamactors", "examples", "benchmarks")

# Where time, randomness, threads and files are reached; everything else goes through them (docs/architecture.md).
SEAMS = (
    "streamactors/clock.py",
    "streamactors/checkpoint/storage/",
    "streamactors/state/rocksdb/folder.py",  # RocksDB works on local files itself, and a simulation runs it inline
    "streamactors/testing/",
)
# Reached before or outside any job, so that no simulation has to own it.
ALLOWED = {
    "streamactors/settings.py": {"open"},  # Config.from_toml
    "streamactors/filelock.py": {"fcntl"},  # for the storage, and for the logs of connectors
    "streamactors/demo/crash.py": {"subprocess"},  # the processes that it starts and kills
    "streamactors/demo/event_log.py": {"random"},  # seeded
    "streamactors/cli/demo_view.py": {"shutil", "tempfile"},
    "streamactors/cli/graph_view.py": {"write_text"},
    "streamactors/cli/project.py": {"read_text", "write_text"},  # a new project, from the template in the wheel
    "streamactors/cli/doctor/machine.py": {"open"},  # what a container is allowed
    "streamactors/cli/doctor/storage.py": {"os.stat", "tempfile"},  # who dates the files there; where others go
    "streamactors/observe/tracing.py": {"threading"},  # beside the job: a thread that may hang and hold nothing up
    "streamactors/deploy/connection.py": {"threading"},  # one for the process, whose jobs may be on several loops
    # Beside the job: its entry, and the entries of others, in a folder of the user's session.
    "streamactors/observe/registry.py": {"fcntl", "tempfile", "os.open", "os.mkdir", "os.listdir", "os.unlink"},
}
SEAM_MODULES = {
    "aiofiles", "concurrent", "fcntl", "multiprocessing", "random", "secrets", "shutil", "subprocess", "tempfile",
    "threading", "time",
}  # fmt: skip
SEAM_NAMES = {
    "open", "asyncio.to_thread", "datetime.datetime.now", "datetime.datetime.utcnow", "datetime.datetime.today",
    "datetime.date.today", "uuid.uuid1", "uuid.uuid4",
} | {
    f"os.{name}"
    for name in (
        "fdopen", "fork", "fsync", "link", "listdir", "makedirs", "mkdir", "open", "remove", "rename", "replace",
        "rmdir", "scandir", "stat", "symlink", "system", "truncate", "unlink", "urandom", "walk",
    )
}  # fmt: skip
SEAM_METHODS = {"run_in_executor", "read_text", "write_text"}

CLUSTER_MODULES = {"ray"}
CLUSTER = "streamactors/deploy/ray.py"
TERMINAL_MODULES = {"typer", "rich"}
TERMINAL = "streamactors/cli/"
VAGUE = {"common", "helper", "helpers", "misc", "util", "utils"}


@dataclass(frozen=True)
class Module:
    path: str
    """Relative to the project, with slashes."""
    text: str
    tree: ast.Module

    @classmethod
    def parse(cls, path: str, text: str) -> Self:
        return cls(path, text, ast.parse(text, path))

    def at(self, node: ast.AST, what: str) -> str:
        return f"{self.path}:{getattr(node, 'lineno', 1)}: {what}"


def modules(*folders: str) -> Iterator[Module]:
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield Module.parse(path.relative_to(ROOT).as_posix(), path.read_text())


def imported(tree: ast.Module) -> Iterator[tuple[ast.AST, str]]:
    """Every imported module's dotted name, wherever the import stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node, node.module


def names(tree: ast.Module) -> dict[str, str]:
    """Local name → what it was imported as: `dt` → `datetime`, `to_thread` → `asyncio.to_thread`."""
    known: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            known.update((alias.asname, alias.name) for alias in node.names if alias.asname)
        elif isinstance(node, ast.ImportFrom) and node.module:
            known.update((alias.asname or alias.name, f"{node.module}.{alias.name}") for alias in node.names)
    return known


def dotted(node: ast.expr, known: dict[str, str]) -> str | None:
    """`dt.datetime.now` → `datetime.datetime.now`; None for what hangs on anything but a name."""
    if isinstance(node, ast.Name):
        return known.get(node.id, node.id)
    if isinstance(node, ast.Attribute) and (base := dotted(node.value, known)):
        return f"{base}.{node.attr}"
    return None


def beside_the_seams(module: Module) -> Iterator[str]:
    """Time, randomness, uuids, threads, executors and file I/O, other than through the seams."""
    if module.path.startswith(SEAMS):
        return
    allowed = ALLOWED.get(module.path, set())
    for node, name in imported(module.tree):
        top = name.split(".")[0]
        if top in SEAM_MODULES - allowed:
            yield module.at(node, f"imports {top}: use clock.py or checkpoint/storage/")
    known = names(module.tree)
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Name | ast.Attribute) and dotted(node, known) in SEAM_NAMES - allowed:
            yield module.at(node, f"uses {dotted(node, known)}: use clock.py or checkpoint/storage/")
        elif isinstance(node, ast.Attribute) and node.attr in SEAM_METHODS - allowed:
            yield module.at(node, f"uses {node.attr}: use clock.py or checkpoint/storage/")


def swallowed_errors(module: Module) -> Iterator[str]:
    """`except Exception: pass`, in all its spellings."""
    known = names(module.tree)
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ExceptHandler) and _is_broad(node.type) and all(map(_does_nothing, node.body)):
            yield module.at(node, "swallows every error: name the one that is meant, or log it")
        elif isinstance(node, ast.Call) and dotted(node.func, known) == "contextlib.suppress" and _any_broad(node.args):
            yield module.at(node, "suppresses every error: name the one that is meant")


def _is_broad(kind: ast.expr | None) -> bool:
    if isinstance(kind, ast.Tuple):
        return _any_broad(kind.elts)
    return kind is None or (isinstance(kind, ast.Name) and kind.id in ("Exception", "BaseException"))


def _any_broad(kinds: list[ast.expr]) -> bool:
    return any(_is_broad(kind) for kind in kinds)


def _does_nothing(statement: ast.stmt) -> bool:
    constant = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    return constant or isinstance(statement, ast.Pass | ast.Continue)


def missing_docstring(module: Module) -> Iterator[str]:
    if not ast.get_docstring(module.tree):
        yield module.at(module.tree, "has no docstring saying what the module is for")


def vague_name(module: Module) -> Iterator[str]:
    if VAGUE & set(module.path.removesuffix(".py").split("/")):
        yield module.at(module.tree, "is named after nothing: name the module after what it does")


def terminal_outside_cli(module: Module) -> Iterator[str]:
    if module.path.startswith(TERMINAL):
        return
    for node, name in imported(module.tree):
        if name.split(".")[0] in TERMINAL_MODULES:
            yield module.at(node, f"imports {name}: only {TERMINAL} may")


def cluster_elsewhere(module: Module) -> Iterator[str]:
    """Ray, which only one module of the library knows. Programs that stand on it, such as examples, may look at the
    cluster that they run on."""
    if module.path == CLUSTER:
        return
    for node, name in imported(module.tree):
        if name.split(".")[0] in CLUSTER_MODULES:
            yield module.at(node, f"imports {name}: only {CLUSTER} may")


def errors_elsewhere(module: Module) -> Iterator[str]:
    """Error classes of the package stand in one file; a connector, which may be a third party's, has its own."""
    if module.path == "streamactors/errors.py" or PurePath(module.path).match("connectors/*/errors.py"):
        return
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ClassDef) and any(_names_error(base) for base in node.bases):
            yield module.at(node, f"defines the error {node.name}: errors belong in streamactors/errors.py")


def _names_error(base: ast.expr) -> bool:
    name = base.attr if isinstance(base, ast.Attribute) else base.id if isinstance(base, ast.Name) else ""
    return name.endswith(("Error", "Exception"))


def unfinished(module: Module) -> Iterator[str]:
    """Marks of what was put off."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Name) and node.id == "NotImplementedError":
            yield module.at(node, "raises NotImplementedError: an abstract method needs no body")
    for number, line in enumerate(module.text.splitlines(), 1):
        if any(f"# {mark}" in line for mark in ("TODO", "FIXME", "XXX")):
            yield f"{module.path}:{number}: is unfinished: {line.strip()}"
