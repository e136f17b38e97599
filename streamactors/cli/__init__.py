"""The command line. Nothing else imports typer and rich."""

from streamactors.cli.commands import main

__all__ = ["main"]
