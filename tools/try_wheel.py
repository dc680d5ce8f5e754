"""Build the wheel and the source archive, look at them, install the wheel by itself, and use it there.

Run: python tools/try_wheel.py        (about two minutes, most of it for installing torch)

Both are built twice, from this tree and from the unpacked archive, in other folders with other times of the files:
they must be the same to the byte. ``twine check --strict`` reads their descriptions as an index does, and
``check-wheel-contents`` the wheel's files. The environment of the wheel holds the package and what it needs, and
nothing else: what needs an extra must say which.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Module -> the package that has it.
NEEDED = {"hatchling": "hatchling", "twine": "twine", "check_wheel_contents": "check-wheel-contents"}
# The time that a build writes into its files where the caller names none: 2026-11-28, 00:00 UTC.
EPOCH = "1795824000"

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
    kept.setdefault("SOURCE_DATE_EPOCH", EPOCH)
    done = subprocess.run(command, cwd=cwd, env=kept, capture_output=True, text=True, check=False)
    if done.returncode != code:
        sys.exit(f"{' '.join(map(str, command))} ended with {done.returncode}, not {code}:\n{done.stdout}{done.stderr}")
    return done


def find_missing(modules: Iterable[str] = NEEDED) -> str:
    """Return a line that says what is not installed here and how to install it; "" where nothing is missing."""
    missing = [NEEDED.get(name, name) for name in modules if importlib.util.find_spec(name) is None]
    cure = f"{sys.executable} -m pip install -c constraints.txt {' '.join(missing)}"
    return f"try_wheel.py needs {', '.join(missing)}: {cure}" if missing else ""


def build(source: Path, out: Path) -> tuple[Path, Path]:
    """Build the wheel and the source archive of a tree into a folder; return both."""
    run(sys.executable, "-m", "hatchling", "build", "-d", out, cwd=source)
    (wheel,), (archive,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return wheel, archive


def build_twice(place: Path) -> tuple[Path, Path]:
    """Build from this tree and from the archive of that; stop where the bytes differ, else return wheel and archive."""
    wheel, archive = build(ROOT, place / "built")
    with tarfile.open(archive) as files:
        files.extractall(place / "unpacked", filter="data")
    (source,) = (place / "unpacked").iterdir()
    for file in source.rglob("*.py"):
        file.touch()
    for first, second in zip((wheel, archive), build(source, place / "again"), strict=True):
        if first.name != second.name or first.read_bytes() != second.read_bytes():
            sys.exit(f"{first.name} is not the same when built from its own archive: compare {first} with {second}")
    return wheel, archive


def main() -> None:
    """Build, install, use; the exit status is 1 at the first thing that is wrong."""
    if missing := find_missing():
        sys.exit(missing)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        wheel, archive = build_twice(place)
        sizes = ", ".join(f"{file.name}, {file.stat().st_size / 1e3:.0f} kB" for file in (wheel, archive))
        print(f"built twice to the same bytes: {sizes}, {time.perf_counter() - started:.0f} s", flush=True)
        run(sys.executable, "-m", "twine", "--no-color", "check", "--strict", wheel, archive, cwd=place)
        run(sys.executable, "-m", "check_wheel_contents", wheel, cwd=place)
        print("twine check --strict and check-wheel-contents find nothing", flush=True)
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
