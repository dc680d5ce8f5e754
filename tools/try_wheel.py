"""Build the wheel, install it without extras in an environment of its own, and use it there.

Run: python tools/try_wheel.py        (about a minute and a half, most of it for installing torch)

The environment holds the package and what it needs, and nothing else: what needs an extra must say which.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

USE = """
import sys
from importlib import resources
import torch
import scoresde
from scoresde import ScoreModel, VPSDE, Moments, fit, sample
from scoresde.nn import MLP

there = {"matplotlib", "sklearn", "PIL", "tyro", "rich", "torchsde", "torchdiffeq", "polars", "pytest"}
found = []
for name in sorted(there):
    try:
        __import__(name)
        found.append(name)
    except ImportError:
        pass
assert not found, f"the environment is not clean: {found}"
generator = torch.Generator().manual_seed(0)
data = 3 + 0.5 * torch.randn(200, 2, generator=generator)
result = fit(ScoreModel(MLP(2), VPSDE()), data, steps=20, batch_size=64, progress=False)
x = sample(result.model, 50, steps=10, seed=0)
assert x.shape == (50, 2) and bool(torch.isfinite(x).all())
result.model.save("saved")
assert torch.equal(sample(ScoreModel.load("saved"), 50, steps=10, seed=0), x)
try:
    scoresde.bridge.TorchSDE()
except scoresde.ConfigError as error:
    assert "torchsde" in str(error), error
else:
    raise AssertionError("TorchSDE was made without torchsde")
try:
    scoresde.plots.image_grid(torch.zeros(4, 1, 8, 8))
except scoresde.ConfigError as error:
    assert "plots" in str(error), error
else:
    raise AssertionError("a figure was made without matplotlib")
try:
    scoresde.data.digits()
except scoresde.ConfigError as error:
    assert "data" in str(error), error
else:
    raise AssertionError("digits were read without scikit-learn")
assert resources.files("scoresde.cli").joinpath("explorer.html").is_file()
print("used", scoresde.__file__)
"""


def run(*command: str | Path, cwd: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a command away from the repository and from this environment; stop with its output if it ends otherwise."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV", "PYTEST"))}
    done = subprocess.run(command, cwd=cwd, env=kept, capture_output=True, text=True, check=False)
    if done.returncode != code:
        sys.exit(f"{' '.join(map(str, command))} ended with {done.returncode}, not {code}:\n{done.stdout}{done.stderr}")
    return done


def main() -> None:
    """Build, install, use; the exit status is 1 at the first thing that is wrong."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        build = ("-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--disable-pip-version-check")
        run(sys.executable, *build, "-w", place, ROOT, cwd=place)
        (wheel,) = place.glob("*.whl")
        print(
            f"built {wheel.name}, {wheel.stat().st_size / 1e3:.0f} kB, {time.perf_counter() - started:.0f} s",
            flush=True,
        )
        run(sys.executable, "-m", "venv", place / "clean", cwd=place)
        python = place / "clean" / "bin" / "python"
        pins = ROOT / "constraints.txt"
        run(python, "-m", "pip", "install", "--disable-pip-version-check", "-c", pins, wheel, cwd=place)
        print(f"installed, {time.perf_counter() - started:.0f} s", flush=True)
        print(run(python, "-W", "error", "-c", USE, cwd=place).stdout.strip())
        scoresde = place / "clean" / "bin" / "scoresde"
        said = run(scoresde, "train", "--help", cwd=place, code=2).stderr
        last = run(scoresde, "--help", cwd=place).stdout.splitlines()[-1]
        for line in (said.removesuffix("\n"), last):
            if "\n" in line or "tyro" not in line or "[cli]" not in line:
                sys.exit(f"the command line without its extra says:\n{line}")
            print(line)
    print(f"the wheel works by itself, {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
