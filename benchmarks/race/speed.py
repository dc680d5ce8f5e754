"""Parts 2 to 5 of the race: the cost of a step, adaptive flows at equal error, a training step, start-up."""

from __future__ import annotations

import importlib.metadata
import json
import math
import re
import statistics
import subprocess
import sys
import time
import types
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import peers
import torch
from mixtures import ring
from scipy.integrate import solve_ivp
from torch import Tensor

from scoresde import ProbabilityFlow, ScoreModel, sample
from scoresde.noise import normal, stream

SHAPES = ((1, 3, 32, 32), (64, 3, 32, 32), (4096, 2))
FEW, MANY = 40, 140
Figures = dict[str, object]


def measure_all(*, quick: bool) -> dict[str, list[Figures]]:
    """Return the figures of every part."""
    rounds = 3 if quick else 15
    return {
        "overhead": measure_overhead(rounds),
        "adaptive": measure_adaptive(2 if quick else 7),
        "training": measure_training(rounds),
        "start-up": measure_startup(2 if quick else 5),
    }


def _slope(call: Callable[[int], object]) -> float:
    """Return processor seconds a step, without set-up."""
    took = []
    for steps in (FEW, MANY):
        started = time.process_time()
        call(steps)
        took.append(time.process_time() - started)
    return (took[1] - took[0]) / (MANY - FEW)


def list_steppers() -> dict[str, Callable[[Tensor, int], object]]:
    """Return runs of so many steps of each library, its own schedule and one multiplication as what it asks."""
    import diffusers
    from azula import sample as samplers
    from azula.denoise import Denoiser, DiracPosterior
    from azula.noise import VPSchedule
    from flow_matching.solver import ODESolver
    from torchdiffeq import odeint

    k = peers.load_alone("k_diffusion", "sampling")
    small = peers.load_alone("smalldiffusion", "diffusion")

    class Half(Denoiser):
        def __init__(self) -> None:
            super().__init__()
            self.schedule = VPSchedule()

        def forward(self, x_t: Tensor, t: Tensor, **_: object) -> object:
            return DiracPosterior(mean=x_t * 0.5)

    class Small(torch.nn.Module):
        def rand_input(self, batch: int) -> Tensor:
            return torch.zeros(())

        def predict_eps_cfg(self, x: Tensor, sigma: Tensor, cond: object, scale: float) -> Tensor:
            return x * 0.5

    def by_azula(kind: type) -> Callable[[Tensor, int], object]:
        return lambda z, n: kind(Half(), steps=n, silent=True, stop=1e-3)(z)

    def by_diffusers(kind: type, **options: object) -> Callable[[Tensor, int], object]:
        def run(z: Tensor, n: int) -> Tensor:
            scheduler = kind(**options)
            scheduler.set_timesteps(n)
            x = z
            for t in scheduler.timesteps:
                x = scheduler.step(scheduler.scale_model_input(x, t) * 0.5, t, x).prev_sample
            return x

        return run

    def by_k(act: Callable[..., Tensor]) -> Callable[[Tensor, int], object]:
        return lambda z, n: act(lambda x, sigma: x * 0.5, z, k.get_sigmas_karras(n, 0.01, 80.0), disable=True)

    log = small.ScheduleLogLinear(N=1000, sigma_min=0.01, sigma_max=80)
    accelerator = types.SimpleNamespace(device=torch.device("cpu"))
    return {
        "azula DDIM": by_azula(samplers.DDIMSampler),
        "azula vAB2": by_azula(samplers.vABSampler),
        "diffusers DDIM": by_diffusers(diffusers.DDIMScheduler, clip_sample=False),
        "diffusers DPM++ 2M": by_diffusers(diffusers.DPMSolverMultistepScheduler),
        "diffusers UniPC": by_diffusers(diffusers.UniPCMultistepScheduler),
        "k-diffusion euler": by_k(k.sample_euler),
        "k-diffusion dpmpp_2m": by_k(k.sample_dpmpp_2m),
        "smalldiffusion DDIM": lambda z, n: deque(
            small.samples(Small(), log.sample_sigmas(n), xt=z, batchsize=len(z), accelerator=accelerator), maxlen=1
        ),
        "flow_matching euler": lambda z, n: ODESolver(velocity_model=lambda x, t: x * 0.5).sample(
            z, step_size=None, method="euler", time_grid=torch.linspace(0, 1, n + 1)
        ),
        "torchdiffeq euler": lambda z, n: odeint(
            lambda t, x: x * 0.5, z, torch.linspace(0, 1, n + 1), method="euler", options={"step_size": 1 / n}
        ),
    }


def measure_overhead(rounds: int) -> list[Figures]:
    """Return the cost of a step over that of a loop by hand, for each shape; all take turns."""
    model = ScoreModel.from_callable(lambda x, t: x * 0.5, peers.SDE, predicts="data")
    rows: list[Figures] = []
    for shape in SHAPES:
        z = normal(shape, stream(1))

        def by_hand(steps: int, z: Tensor = z) -> Tensor:
            x, a, b = z, 0.9, 0.1
            for _ in range(steps):
                x = a * x + b * (x * 0.5)
            return x

        ways: dict[str, Callable[[int], object]] = {
            "scoresde ddim": lambda n, z=z: sample(model, x_init=z, solver="ddim", steps=n),
            "scoresde flow_abm": lambda n, z=z: sample(model, x_init=z, solver="flow_abm", steps=n),
        }
        ways |= {name: lambda n, step=step, z=z: step(z, n) for name, step in list_steppers().items()}
        found: dict[str, list[float]] = {name: [] for name in ways}
        base: list[float] = []
        with torch.no_grad():
            for k in range(rounds + 1):
                hand = _slope(by_hand)
                base.append(hand)
                for name, way in ways.items():
                    cost = _slope(way)
                    if k:
                        found[name].append(cost / hand)
        rows += [
            {"shape": list(shape), "way": name, "hand loops": statistics.median(values)}
            for name, values in found.items()
        ]
        rows.append({"shape": list(shape), "way": "by hand, microseconds", "hand loops": 1e6 * statistics.median(base)})
    return rows


def measure_adaptive(rounds: int) -> list[Figures]:
    """Return seconds, calls a sample and error of adaptive flows on the ring of eight, 256 samples."""
    from torchdiffeq import odeint

    model, z = ring(), normal((256, 2), stream(3), dtype=torch.float64)
    exact = sample(model, x_init=z, solver=ProbabilityFlow(rtol=1e-9, atol=1e-9), dtype=torch.float64)
    top, bottom = (nu / (1 + nu) for nu in peers.LEVELS)
    start = z * math.hypot(1 - top, top)

    def ours(tolerance: float) -> tuple[Tensor, float]:
        out = sample(
            model,
            x_init=z,
            solver=ProbabilityFlow(rtol=tolerance, atol=tolerance),
            dtype=torch.float64,
            full_output=True,
        )
        return out.x, float(out.nfe.double().mean())

    def by_torchdiffeq(tolerance: float) -> tuple[Tensor, float]:
        ask = peers.Ask(model)
        times = torch.tensor([top, bottom], dtype=torch.float64)
        out = odeint(peers._rectified(ask), start, times, rtol=tolerance, atol=tolerance, method="dopri5")[-1]
        return ask(out / math.hypot(1 - bottom, bottom), peers.LEVELS[1]), ask.calls

    def by_scipy(tolerance: float) -> tuple[Tensor, float]:
        ask = peers.Ask(model)
        velocity = peers._rectified(ask)

        def slope(u: float, y: np.ndarray) -> np.ndarray:
            return velocity(torch.tensor(u), torch.from_numpy(y).reshape(z.shape)).flatten().numpy()

        out = solve_ivp(slope, (top, bottom), start.flatten().numpy(), rtol=tolerance, atol=tolerance)
        last = torch.from_numpy(out.y[:, -1]).reshape(z.shape)
        return ask(last / math.hypot(1 - bottom, bottom), peers.LEVELS[1]), ask.calls

    ways = {"scoresde ProbabilityFlow": ours, "torchdiffeq dopri5": by_torchdiffeq, "scipy RK45": by_scipy}
    rows: list[Figures] = []
    with torch.no_grad():
        for tolerance in (1e-3, 1e-5):
            seconds: dict[str, list[float]] = {name: [] for name in ways}
            said: dict[str, Figures] = {}
            for k in range(rounds + 1):
                for name, way in ways.items():
                    started = time.process_time()
                    x, calls = way(tolerance)
                    if k:
                        seconds[name].append(time.process_time() - started)
                    error = (x - exact).square().mean().sqrt()
                    said[name] = {"tolerance": tolerance, "way": name, "calls": calls, "rms": float(error)}
            rows += [{**said[name], "seconds": statistics.median(values)} for name, values in seconds.items()]
    return rows


def measure_training(rounds: int) -> list[Figures]:
    """Return a training step of an MLP of 133 000 parameters on (512, 2) over one by hand; all take turns."""
    import training_step
    from azula.denoise import KarrasDenoiser
    from azula.noise import VPSchedule

    small = peers.load_alone("smalldiffusion", "diffusion")
    make, shape, _ = training_step.CASES["mlp"]
    x = normal(shape, stream(0))

    class Backbone(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = make()

        def forward(self, x: Tensor, t: Tensor, **_: object) -> Tensor:
            return self.net(x, t.flatten().expand(len(x)))

    def by_azula() -> Callable[[], object]:
        denoiser = KarrasDenoiser(Backbone(), VPSchedule())
        optimizer = torch.optim.Adam(denoiser.parameters(), lr=1e-4)

        def step() -> None:
            loss = denoiser.loss(x, torch.rand(len(x))).mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    def by_smalldiffusion() -> Callable[[], object]:
        net, schedule = make(), small.ScheduleLogLinear(N=1000, sigma_min=0.01, sigma_max=35)
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4)

        def step() -> None:
            optimizer.zero_grad()
            x0, sigma, eps, _ = small.generate_train_sample(x, schedule)
            scale = (1 + sigma**2).sqrt()
            loss = torch.nn.functional.mse_loss(net((x0 + sigma * eps) / scale, sigma.log().flatten()), eps)
            loss.backward()
            optimizer.step()

        return step

    steps = {
        "by hand, fused Adam and an average": training_step.by_hand(make(), x),
        "scoresde Trainer": training_step.ours(make(), x),
        "azula": by_azula(),
        "smalldiffusion": by_smalldiffusion(),
    }
    costs: dict[str, list[float]] = {name: [] for name in steps}
    for k in range(rounds + 1):
        for name, step in steps.items():
            started = time.process_time()
            for _ in range(32):
                step()
            if k:
                costs[name].append((time.process_time() - started) / 32)
    hand = costs["by hand, fused Adam and an average"]
    return [
        {
            "way": name,
            "ms": 1e3 * statistics.median(values),
            "ratio": statistics.median(a / b for a, b in zip(values, hand, strict=True)),
        }
        for name, values in costs.items()
    ]


MODULES = {
    "scoresde": "scoresde",
    "diffusers": "diffusers",
    "azula": "azula",
    "flow_matching": "flow_matching.solver",
    "torchdiffeq": "torchdiffeq",
    "torchsde": "torchsde",
}
TIMED = """
import sys, time, json
sys.path.append({path!r})
import torch
start = time.perf_counter()
import {module}
print(json.dumps(time.perf_counter() - start))
"""


def measure_startup(rounds: int) -> list[Figures]:
    """Return seconds of the import beyond torch's, the size on disk, and how many packages each asks for."""
    rows: list[Figures] = []
    for package, module in MODULES.items():
        code = TIMED.format(path=str(peers.FOLDER.resolve()), module=module)
        took = [
            float(json.loads(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout))
            for _ in range(rounds)
        ]
        found = importlib.metadata.distribution(package)
        needs = [one for one in found.requires or () if "extra ==" not in one]
        names = sorted({re.split(r"[ ;<>=!~\[(]", one)[0] for one in needs})
        folder = Path("scoresde") if package == "scoresde" else Path(str(found.locate_file(package.replace("-", "_"))))
        size = sum(file.stat().st_size for file in folder.rglob("*.py"))
        rows.append({"way": package, "seconds": min(took), "KiB of code": size // 1024, "asks for": names})
    return rows


def to_markdown(measured: Mapping[str, Sequence[Figures]]) -> list[str]:
    """Return a table for each part."""
    titles = {
        "overhead": "A step over the loop by hand, one multiplication as the model",
        "adaptive": "Adaptive flows, ring of eight, 256 samples",
        "training": "A training step, MLP on (512, 2)",
        "start-up": "Start-up: seconds of the import beyond torch's",
    }
    lines: list[str] = []
    for part, rows in measured.items():
        names = list(rows[0])
        lines += [f"## {titles[part]}", "", f"| {' | '.join(names)} |", "|" + "---|" * len(names)]
        lines += [f"| {' | '.join(_show(row[name]) for name in names)} |" for row in rows] + [""]
    return lines


def _show(value: object) -> str:
    return (
        f"{value:.3g}"
        if isinstance(value, float)
        else ", ".join(map(str, value))
        if isinstance(value, list)
        else str(value)
    )
