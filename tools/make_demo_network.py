"""See kerasseg.cli.make_demo_network; `python tools/make_demo_network.py --help`."""

import sys
from pathlib import Path

# Runs from a checkout that is not installed, too.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from kerasseg.cli.make_demo_network import main

if __name__ == "__main__":
    sys.exit(main())
