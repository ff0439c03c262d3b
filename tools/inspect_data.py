"""See kerasseg.cli.inspect_data; `python tools/inspect_data.py --help`."""

import sys
from pathlib import Path

# Runs from a checkout that is not installed, too.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from kerasseg.cli.inspect_data import main

if __name__ == "__main__":
    sys.exit(main())
