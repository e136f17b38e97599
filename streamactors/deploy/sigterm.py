"""SIGTERM in a process that a library has put a handler of its own into, below that of Python."""

import signal


def take_back_sigterm() -> None:
    """Ray's handler would end the process three seconds after a SIGTERM, whatever is still to be done, such as a last
    checkpoint. In the main thread; elsewhere there is nothing to take back."""
    handler = signal.getsignal(signal.SIGTERM)
    if handler is None:
        return
    try:
        signal.signal(signal.SIGTERM, handler)
    except ValueError:
        return  # not the main thread: neither has Ray put one there
    if callable(handler):
        signal.siginterrupt(signal.SIGTERM, False)  # as it is with a loop's
