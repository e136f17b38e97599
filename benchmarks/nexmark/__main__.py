"""`python -m benchmarks.nexmark`: see `run`."""

import sys

from benchmarks.nexmark.run import main

sys.exit(main())
