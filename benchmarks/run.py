"""Run every benchmark, one after the other; results go to benchmarks/results/.

Run: python benchmarks/run.py [--quick]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
BENCHMARKS = ("sampling_step.py", "training_step.py", "adaptive.py")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    options = parser.parse_args()
    for name in BENCHMARKS:
        print(f"\n== {name}", flush=True)
        rounds = ["--rounds", "5"] if options.quick else []
        subprocess.run([sys.executable, FOLDER / name, *rounds], check=True)


if __name__ == "__main__":
    main()
