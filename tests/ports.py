"""Ports on which nobody listens, and which nobody takes by chance."""

import random
import socket
from typing import Final

# Below what systems give to outgoing connections, of which other tests make many.
PORTS: Final = range(12_000, 20_000)


def free_port() -> int:
    """On loopback."""
    port = random.SystemRandom().choice(PORTS)
    while not is_free(port):
        port = random.SystemRandom().choice(PORTS)
    return port


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
