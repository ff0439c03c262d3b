"""See kerasseg.cli.train; `python train.py --help`."""

import sys

from kerasseg.cli.train import main

if __name__ == "__main__":
    sys.exit(main())
