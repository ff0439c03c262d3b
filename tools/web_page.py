"""See kerasseg.cli.web_page; `python tools/web_page.py --help`."""

import sys
from pathlib import Path

# Runs from a checkout that is not installed, too.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from kerasseg.cli.web_page import main

if __name__ == "__main__":
    sys.exit(main())
