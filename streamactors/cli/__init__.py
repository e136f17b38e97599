"""The command line. Nothing else imports typer and rich."""

import sys

__all__ = ["main", "told_version"]


def main() -> None:
    """The `streamactors` command. Which version it is needs neither the commands nor what draws them."""
    if sys.argv[1:] == ["--version"]:
        print(told_version())
        return
    from streamactors.cli.commands import main as run

    run()


def told_version() -> str:
    from importlib.metadata import version

    return f"streamactors {version('streamactors')}"
