"""Settings as text, before they become a `Config`: where each was given, and what is shown of it.

A layer is one place that gives settings (a TOML file, the environment, flags), flat, by dotted name
(`checkpoints.interval`). Knows nothing of which settings there are.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any
from urllib.parse import urlsplit

from streamactors.errors import InvalidConfig

PREFIX = "STREAMACTORS_"
_ENV_REFERENCE = re.compile(r"\$\{env:([^}]*)\}")
_NO_SETTINGS = {"TOKEN"}
"""Of whoever steers the job over the network: it belongs to no Config, and is shown nowhere."""
# Kubernetes sets these in every pod beside a service that is called "streamactors".
_KUBERNETES = re.compile(r"SERVICE_(HOST|PORT(_\w+)?)|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?")


@dataclass(frozen=True, slots=True)
class Given:
    """One setting as one layer gives it; `shown` is its text without secrets."""

    value: object
    shown: str
    origin: str


Layer = dict[str, Given]


def layer_of_toml(path: str | PathLike[str], environ: Mapping[str, str]) -> Layer:
    """Raises InvalidConfig for a file that can't be read, and for a `${env:NAME}` that is not set."""
    import tomllib  # by most programs never needed

    try:
        with open(path, "rb") as file:
            tables = tomllib.load(file)
    except OSError as error:
        raise InvalidConfig(f"the configuration file {str(path)!r} can't be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidConfig(f"the configuration file {str(path)!r} is not TOML: {error}") from error
    return {name: _from_toml(name, value, str(path), environ) for name, value in _flat(tables)}


def layer_of_environ(environ: Mapping[str, str]) -> Layer:
    """`STREAMACTORS_CHECKPOINTS__INTERVAL` is the setting `checkpoints.interval`."""
    layer = {}
    for variable, value in environ.items():
        name = variable.removeprefix(PREFIX)
        if name != variable and name not in _NO_SETTINGS and not _KUBERNETES.fullmatch(name):
            layer[name.lower().replace("__", ".")] = Given(value, _shown(value), variable)
    return layer


def layer_of_flags(flags: Mapping[str, str]) -> Layer:
    names = {flag: flag.replace("-", "_") for flag in flags}
    return {names[flag]: Given(value, _shown(value), f"flag {flag}") for flag, value in flags.items()}


def refuse_unknown(layer: Layer, known: Iterable[str]) -> None:
    """Raises InvalidConfig naming the first setting that there is not, and the nearest that there is."""
    known = list(known)
    for name, given in layer.items():
        if name not in known:
            nearest = _nearest(name, known)
            hint = f"did you mean {nearest!r}?" if nearest else f"there are: {', '.join(known)}"
            raise InvalidConfig(f"unknown setting {name!r} (from {given.origin}); {hint}")


def redacted(uri: str) -> str:
    """A URI without what may be secret in it: user, password, and the values of its query."""
    try:
        parts = urlsplit(uri)
    except ValueError:
        return "***"
    if not parts.scheme or (not parts.netloc and not parts.query):
        return uri
    host = "***@" + parts.netloc.rpartition("@")[2] if "@" in parts.netloc else parts.netloc
    query = re.sub(r"=[^&;]*", "=***", parts.query)
    return parts._replace(netloc=host, query=query).geturl()


def _shown(text: str) -> str:
    return repr(redacted(text))


def _flat(tables: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, object]]:
    for key, value in tables.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _from_toml(name: str, value: object, path: str, environ: Mapping[str, str]) -> Given:
    if not isinstance(value, str):
        return Given(value, str(value), path)

    def substitute(reference: re.Match[str]) -> str:
        variable = reference[1]
        if variable not in environ:
            raise InvalidConfig(
                f"{name} in {path} refers to the environment variable {variable!r}, which is not set: "
                f"set it, or write the value into the file"
            )
        return environ[variable]

    # What is shown keeps the reference: the variable may well be a secret.
    return Given(_ENV_REFERENCE.sub(substitute, value), _shown(value), path)


def _nearest(name: str, known: list[str]) -> str | None:
    """The known name most like `name`, also when only its table is missing."""
    import difflib  # for errors alone

    by_leaf = [candidate for candidate in known if candidate.rpartition(".")[2] == name.rpartition(".")[2]]
    return next(iter(difflib.get_close_matches(name, known, 1) or by_leaf), None)
