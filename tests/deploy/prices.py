"""A flow's own module, which a node may lack: see `ray_handle`."""


def doubled(cents: int) -> int:
    return 2 * cents
