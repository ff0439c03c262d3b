"""See kerasseg.cli.evaluate; `python evaluate.py --help`."""

import sys

from kerasseg.cli.evaluate import main

if __name__ == "__main__":
    sys.exit(main())
