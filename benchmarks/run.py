"""Run every benchmark, one after the other; ``--record`` writes their figures to benchmarks/results/.

Run: python benchmarks/run.py [--quick] [--record]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
# What a quick run of each is.
BENCHMARKS = {
    "sampling_step.py": ("--rounds", "5"),
    "training_step.py": ("--rounds", "5"),
    "training_memory.py": ("--megabytes", "96"),
    "adaptive.py": ("--rounds", "5"),
    "exact_models.py": ("--rounds", "5"),
    "likelihood.py": ("--samples", "20", "--part", "exact"),
    "jacobian_products.py": ("--rounds", "1"),
    "training_pairs.py": ("--steps", "100", "--target", "line"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, or steps")
    parser.add_argument("--record", action="store_true", help="write the figures; nothing is written without")
    options = parser.parse_args()
    for name, quick in BENCHMARKS.items():
        print(f"\n== {name}", flush=True)
        passed = [*(quick if options.quick else ()), *["--record"] * options.record]
        subprocess.run([sys.executable, FOLDER / name, *passed], check=True)


if __name__ == "__main__":
    main()
