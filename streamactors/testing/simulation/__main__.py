"""`python -m streamactors.testing.simulation`; see `command`."""

import sys

from streamactors.testing.simulation.command import fix_hashes, main

if __name__ == "__main__":
    fix_hashes()
    sys.exit(main())
