"""Run every benchmark, one after the other; ``--record`` writes their figures to benchmarks/results/.

Run: python benchmarks/run.py [--quick] [--record]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
BENCHMARKS = ("sampling_step.py", "training_step.py", "adaptive.py", "exact_models.py")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--record", action="store_true", help="write the figures; nothing is written without")
    options = parser.parse_args()
    for name in BENCHMARKS:
        print(f"\n== {name}", flush=True)
        passed = ["--rounds", "5"] * options.quick + ["--record"] * options.record
        subprocess.run([sys.executable, FOLDER / name, *passed], check=True)


if __name__ == "__main__":
    main()
