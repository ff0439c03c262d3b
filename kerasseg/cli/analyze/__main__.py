"""`python -m kerasseg.cli.analyze`."""

import sys

from kerasseg.cli.analyze import main

if __name__ == "__main__":
    sys.exit(main())
