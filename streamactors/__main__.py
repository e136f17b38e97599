"""`python -m streamactors`."""

from streamactors.cli import main

main()
