"""See kerasseg.cli.prepare_data; `python tools/prepare_data.py --help`."""

import sys
from pathlib import Path

# Runs from a checkout that is not installed, too.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from kerasseg.cli.prepare_data import main

if __name__ == "__main__":
    sys.exit(main())
