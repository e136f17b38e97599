"""Versions of what state is stored in. A newer one is refused by its number, whatever else it holds; never taken for
damage."""

from typing import Any, TypeVar

import msgspec

from streamactors.errors import IncompatibleState

LayoutT = TypeVar("LayoutT", bound=msgspec.Struct)


def decode_layout(data: bytes, type: type[LayoutT], known: int) -> LayoutT:
    """`type` is an array whose first item is its version. Raises IncompatibleState for another than `known`, and
    MsgspecError for what is no such array."""
    try:
        layout = msgspec.msgpack.decode(data, type=type)
    except msgspec.MsgspecError:
        check_version(_version_in(data, known), known)
        raise
    check_version(getattr(layout, "version", known), known)
    return layout


def _version_in(data: bytes, otherwise: int) -> Any:
    found = msgspec.msgpack.decode(data)
    return found[0] if isinstance(found, list) and found and isinstance(found[0], int) else otherwise


def check_version(found: Any, known: Any) -> None:
    """Raises IncompatibleState."""
    if found != known:
        raise IncompatibleState(
            f"stored in format {found}, this version reads {known}: use the version of streamactors that wrote it, or "
            "a newer one"
        )
