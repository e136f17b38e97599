"""`module:flow` → a Dataflow and its Config; says what is wrong with it in terms of what was typed."""

import importlib
import os
import sys
from types import ModuleType
from typing import Any

from streamactors.api.dataflow import Dataflow
from streamactors.config import Config
from streamactors.errors import InvalidDataflow

CURE = '__path__ = __import__("pkgutil").extend_path(__path__, __name__)'


def load_flow(target: str) -> tuple[Dataflow, Config | None]:
    """Imports from the current folder first. Raises InvalidDataflow; the user's own error on import is its cause."""
    name, colon, attribute = target.partition(":")
    if not (colon and name and attribute):
        raise InvalidDataflow(f"{target!r} is not module:flow, such as jobs.orders:flow{_hint(name)}")
    module = _import(name)
    return _flow_of(module, attribute), _config_of(module)


def _hint(name: str) -> str:
    if not name.endswith(".py") and "/" not in name:
        return ""
    dotted = name.removesuffix(".py").strip("./").replace("/", ".")
    return f"; for the file {name} that is {dotted}:flow"


def _import(name: str) -> ModuleType:
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except Exception as error:
        if shadow := _shadow_of_connectors(error):
            raise InvalidDataflow(
                f"module {name!r} needs a connector, but the package {shadow} hides those of streamactors. "
                f"Put this line into it, so that both are found:\n{CURE}"
            ) from error
        if isinstance(error, ModuleNotFoundError) and _is_part(error.name, name):
            places = f"in {here} or on Python's path{_hint(name)}"
            raise InvalidDataflow(f"there is no module {error.name!r} {places}") from None
        raise InvalidDataflow(f"module {name!r} can't be imported") from error


def _is_part(missing: str | None, name: str) -> bool:
    return missing is not None and f"{name}.".startswith(f"{missing}.")


def _shadow_of_connectors(error: Exception) -> str | None:
    """The file of a regular package named `connectors` that is not ours, if that explains the error."""
    found = getattr(sys.modules.get("connectors"), "__file__", None)
    missing = isinstance(error, ImportError) and (error.name or "").split(".")[0] == "connectors"
    return found if missing else None


def _flow_of(module: ModuleType, attribute: str) -> Dataflow:
    found = _attribute(module, attribute)
    if callable(found) and not isinstance(found, Dataflow):
        found = _made(found, f"{module.__name__}:{attribute}")
    if not isinstance(found, Dataflow):
        raise InvalidDataflow(
            f"{module.__name__}:{attribute} is no Dataflow but {type(found).__name__}: name a Dataflow, or a function "
            "without arguments that returns one"
        )
    return found


def _made(factory: Any, name: str) -> Any:
    try:
        return factory()
    except Exception as error:
        raise InvalidDataflow(f"{name}() failed") from error


def _attribute(module: ModuleType, attribute: str) -> Any:
    try:
        return getattr(module, attribute)
    except AttributeError:
        flows = [name for name, value in vars(module).items() if isinstance(value, Dataflow)]
        there = f"it has the dataflows: {', '.join(flows)}" if flows else "it has no Dataflow at all"
        raise InvalidDataflow(f"module {module.__name__!r} ({module.__file__}) has no {attribute!r}; {there}") from None


def _config_of(module: ModuleType) -> Config | None:
    config = getattr(module, "config", None)
    return config if isinstance(config, Config) else None
