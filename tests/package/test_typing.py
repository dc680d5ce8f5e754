"""A user's own file passes mypy and pyright, and its mistakes are found by both."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT

RIGHT = """
from torch import Tensor, zeros

from scoresde import (
    DDPM, CosineVPSDE, EMA, Langevin, Moments, ProbabilityFlow, SampleResult, Sampler, ScoreModel, Solver, Tableau,
    TrainResult, VPSDE, bridge, build_table, compare, decode, encode, fit, grids, losses, map_prediction, sample,
    solvers,
)

from scoresde.data import swiss_roll
from scoresde.metrics import Comparison, sliced_wasserstein
from scoresde.nn import MLP

data: Tensor = swiss_roll(100)
model = ScoreModel(MLP(2), VPSDE(), predicts="v", moments=Moments.of(data))
trained: TrainResult = fit(model, data, steps=2, weight="min_snr", times="log_snr", decay="linear")
x: Tensor = sample(model, (4, 2))
y: Tensor = sample(model, 4, solver="dpmpp_2m:20", final="mean", on_nonfinite="freeze")
r: SampleResult = sample(model, (4, 2), solver=solvers.heun(), kernels=[Langevin()], full_output=True)
p: Tensor = sample(lambda x, t: -x, (4, 2), sde=CosineVPSDE(), solver=ProbabilityFlow())
q: Tensor = sample(model, (4, 2), solver=bridge.TorchSDE(dt=0.01))
z: Tensor = encode(model, x)
back: Tensor = decode(model, z, solver="heun", steps=10)
whole: SampleResult = decode(model, z, full_output=True)
table: Tableau = build_table(VPSDE(), "flow_abm", steps=5, times=grids.karras())
chain: Tableau = DDPM.linear(100).ancestral(variance="large")
solver: Solver = solvers.multistep(order=3, variable="log_snr", prediction="data")
clipped = map_prediction(model, lambda prediction: prediction.data.clamp(-1, 1))
s: Tensor = sample(clipped, (4, 2))
rows: list[Comparison] = compare(
    model, [Sampler("mine", solver)], {"distance": lambda a: sliced_wasserstein(a, data)}
)[0]
average: EMA = EMA(MLP(2), 0.99)
loss: Tensor = losses.ChainLoss.simple(DDPM.linear(10))(model, data)
"""

# What a line says wrongly, and what it would have to say for every checker to be silent.
WRONG = {
    "a prediction": 'ScoreModel(MLP(2), VPSDE(), predicts="eps")',
    "a conditioning": 'ScoreModel(MLP(2), VPSDE(), condition_on="log-snr")',
    "the result": "n: int = sample(model, (4, 2))",
    "a tensor of a result": "t: Tensor = sample(model, (4, 2), full_output=True)",
    "a code": "t: Tensor = encode(model, x, full_output=True)",
    "a keyword of sample": "sample(model, (4, 2), num_steps=3)",
    "the end": 'sample(model, (4, 2), final="denoised")',
    "what to do": 'sample(model, (4, 2), on_nonfinite="ignore")',
    "a weight": 'fit(model, x, steps=2, weight="min_snrr")',
    "a decay": 'fit(model, x, steps=2, decay="cosin")',
    "a variable": 'solvers.multistep(variable="lambda")',
    "a table's name": 'build_table(VPSDE(), "flow_abn")',
}
HEAD = """
from torch import Tensor, zeros
from scoresde import ScoreModel, VPSDE, build_table, encode, fit, sample, solvers
from scoresde.nn import MLP

model = ScoreModel(MLP(2), VPSDE())
x = zeros(3, 2)
"""


def check(checker: str, file: Path) -> tuple[int, set[int]]:
    """Return a checker's exit code and the lines that it finds wrong."""
    if checker == "mypy":
        command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", ROOT / ".mypy_cache", file.name]
    else:
        command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, file.name]
    # The checker that came with the package: nothing is looked for on the network.
    environment = {**os.environ, "PYRIGHT_PYTHON_USE_BUNDLED_PYRIGHT": "1", "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}
    done = subprocess.run(command, cwd=file.parent, env=environment, capture_output=True, text=True, check=False)
    pattern = rf"{file.name}:(\d+):(?:\d+)?.*\berror\b"
    return done.returncode, {int(line) for line in re.findall(pattern, done.stdout)} or set()


@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_a_users_file_is_sound_and_mistakes_are_found(checker: str, tmp_path: Path) -> None:
    right, wrong = tmp_path / "right.py", tmp_path / "wrong.py"
    right.write_text(RIGHT, encoding="utf-8")
    assert check(checker, right) == (0, set())
    wrong.write_text(HEAD + "\n".join(WRONG.values()) + "\n", encoding="utf-8")
    first = len(HEAD.splitlines()) + 1
    code, lines = check(checker, wrong)
    assert code == 1
    missed = [name for k, name in enumerate(WRONG) if first + k not in lines]
    assert missed == []
