"""``python -m scoresde`` is the command ``scoresde``."""

from __future__ import annotations

import sys

from scoresde.cli import main

if __name__ == "__main__":
    sys.exit(main())
