"""`python -m pyvmm`: the command line."""

import sys

from pyvmm.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
