"""The script that a program was started as, in other processes of its job: there it is a module like any other.

What a script defines travels as a reference, and is found again by loading the script once, under the name by which it
would be imported. So it is the same class in every message, and `if __name__ == "__main__":` keeps the script's last
lines from running there, as with `multiprocessing`.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

from streamactors.errors import InvalidDataflow


class MainScript(NamedTuple):
    """`module`: by which it can be imported, where it was started by `python -m`; else `path` is its file."""

    module: str
    path: str

    def __str__(self) -> str:
        return self.path or self.module


_loaded: dict[str, MainScript] = {}
"""By the name of the module that was made of it here."""
_loading: list[MainScript] = []


def main_script() -> MainScript | None:
    """None where there is no file, as in a notebook or with `python -c`."""
    main = sys.modules["__main__"]
    spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    if spec is not None:
        return MainScript(str(spec.name), "")
    return None if file is None else MainScript("", str(Path(file).resolve()))


def reference_to(thing: object) -> tuple[MainScript, str] | None:
    """The script that defines a class or function, and its qualified name there. None for what is not a script's, or
    can't be found in it by name."""
    if not isinstance(thing, type | FunctionType):
        return None
    module = thing.__module__
    script = main_script() if module == "__main__" else _loaded.get(module)
    if script is None or _find(sys.modules[module], thing.__qualname__) is not thing:
        return None
    return script, thing.__qualname__


def find_in_script(script: MainScript, name: str) -> Any:
    """What `reference_to` refers to. Raises InvalidDataflow where the script can't be loaded here."""
    return _find(sys.modules["__main__"] if script == main_script() else _module_of(script), name)


def refuse_while_loading() -> None:
    """Raises InvalidDataflow if a script is just being loaded: it would start its job once more in every worker."""
    if _loading:
        raise InvalidDataflow(
            f"{_loading[-1]} starts its job whenever it is imported, and each worker imports it: "
            "put its last lines under `if __name__ == '__main__':`"
        )


def _find(module: ModuleType, name: str) -> Any:
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def _module_of(script: MainScript) -> ModuleType:
    if script.module:
        return _guarded(script, lambda: importlib.import_module(script.module))
    name = next((name for name, loaded in _loaded.items() if loaded == script), None)
    if name is not None:
        return sys.modules[name]
    if not Path(script.path).exists():
        raise InvalidDataflow(
            f"the script {script.path} is not on this machine: put the classes and functions of the flow into a module "
            "that every node can import, or submit the job with its folder (ray job submit --working-dir .)"
        )
    return _guarded(script, lambda: _load_file(script))


def _load_file(script: MainScript) -> ModuleType:
    name = Path(script.path).stem
    while name in sys.modules:
        name += "_"
    if (folder := str(Path(script.path).parent)) not in sys.path:
        sys.path.insert(0, folder)
    spec = importlib.util.spec_from_file_location(name, script.path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    _loaded[name] = script
    return module


def _guarded(script: MainScript, load: Callable[[], ModuleType]) -> ModuleType:
    _loading.append(script)
    try:
        return load()
    except InvalidDataflow:
        raise
    except (Exception, SystemExit) as error:
        if isinstance(error.__cause__, InvalidDataflow):  # as `main` ends
            raise error.__cause__ from None
        raise InvalidDataflow(
            f"{script} can't be imported in another process of the job ({type(error).__name__}: {error}): what it reads"
            " when it is imported, such as the environment, is not there"
        ) from error
    finally:
        _loading.pop()
