"""What is public: every name is there, rooms load when they are asked for, and every object travels."""

from __future__ import annotations

import copy
import io
import math
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import ROOT
from linear_cases import SDES, exact
from torch import Tensor

import scoresde
from scoresde import (
    DDPM,
    EDMSDE,
    EMA,
    MALA,
    SDE,
    SMLD,
    VESDE,
    VPSDE,
    Affine,
    Compose,
    Cosine,
    CosineVPSDE,
    Dequantise,
    EmpiricalModel,
    EncoderDecoder,
    EnergyModel,
    GaussianDecoder,
    GaussianMixtureModel,
    GaussianModel,
    Haar,
    Langevin,
    Latent,
    LearnedSchedule,
    LevelsDecoder,
    LinearModel,
    Logit,
    MatrixSDE,
    Moments,
    ProbabilityFlow,
    RectifiedFlow,
    Sampler,
    SamplingModule,
    ScoreModel,
    Step,
    SubVPSDE,
    ZeroVelocity,
    bridge,
    build_table,
    fit,
    guidance,
    losses,
    map_prediction,
    sample,
    solvers,
    training,
    transforms,
    variational_bound,
)
from scoresde.nn import MLP, Autoencoder, UNet

ROOMS = tuple("bridge data grids guidance likelihood losses metrics nn plots solvers training transforms".split())  # noqa: SIM905
X = torch.linspace(-1.0, 1.0, 12).reshape(6, 2)
MODEL = ScoreModel(MLP(2, width=8, depth=1, classes=3), VPSDE(), moments=Moments.of(X))
GAUSSIAN = GaussianModel(sde=VPSDE(), mean=torch.zeros(2), covariance=torch.eye(2))
CHAIN = DDPM.linear(30)


class Relaxation(SDE):
    """An SDE of a user's own."""

    def drift(self, x: Tensor, t: Tensor | float) -> Tensor:
        return -x

    def diffusion(self, t: Tensor | float) -> Tensor:
        return torch.ones_like(torch.as_tensor(t))


def energy(x: Tensor, c_noise: Tensor) -> Tensor:
    return 0.5 * x.square().sum(1)


def minus_energy(x: Tensor, t: Tensor) -> Tensor:
    return -energy(x, t)


def clip(prediction: scoresde.Prediction) -> Tensor:
    return prediction.data.clamp(-1, 1)


def score(x: Tensor, t: Tensor) -> Tensor:
    return -x


def mirror(x: Tensor) -> Tensor:
    return -x


def norms(x: Tensor) -> Tensor:
    return x.square().sum(1)


def seen() -> Step:
    steps: list[Step] = []
    sample(MODEL, 2, steps=2, seed=0, on_step=steps.append, cond={"label": torch.tensor([0, 1])})
    return steps[0]


def density() -> scoresde.Densities:
    times = torch.tensor([0.1, 0.2], dtype=torch.float64)
    line = torch.linspace(-4, 4, 41, dtype=torch.float64)
    start = (-(line**2) / 2).exp() / math.sqrt(2 * math.pi)
    return scoresde.Densities((line,), times, torch.stack([start, start]), 3)


# Something of every public class; the walk below holds that none is missing.
OBJECTS: dict[str, Callable[[], object]] = {
    "DDPM": lambda: CHAIN,
    "SMLD": lambda: SMLD.from_sde(VESDE(), 9),
    "VPSDE": lambda: VPSDE(0.2, 15.0),
    "SubVPSDE": SubVPSDE,
    "VESDE": VESDE,
    "EDMSDE": EDMSDE,
    "CosineVPSDE": CosineVPSDE,
    "RectifiedFlow": RectifiedFlow,
    "TabulatedSDE": CHAIN.sde,
    "LinearSDE": lambda: SDES["rates"],
    "GroupedSDE": lambda: SDES["levels"],
    "MatrixSDE": MatrixSDE.langevin,
    "LinearModel": lambda: LinearModel(MLP(3, width=4, depth=1), SDES["rates"]),
    "LinearMixtureModel": lambda: exact("matrix"),
    "Cosine": Cosine,
    "Haar": Haar,
    "ZeroVelocity": ZeroVelocity,
    "losses.LinearLoss": losses.LinearLoss,
    "LearnedSchedule": lambda: LearnedSchedule(3, low=-8.0),
    "ReverseSDE": lambda: VPSDE().reverse(score),
    "SDE": Relaxation,
    "GaussianSDE": VPSDE,
    "Affine": lambda: Affine((1.0, 2.0), 3.0),
    "transforms.RandomFlip": lambda: transforms.RandomFlip((-1, -2)),
    "transforms.RandomCrop": lambda: transforms.RandomCrop((4, 4), padding=1),
    "RelativePlaces": lambda: scoresde.RelativePlaces(3, 2),
    "Compose": lambda: Compose((Affine(1.0, 2.0), Logit())),
    "Dequantise": lambda: Dequantise(16),
    "Logit": Logit,
    "Gaussian": lambda: VPSDE().prior(moments=Moments.of(X)),
    "Moments": lambda: Moments.of(X),
    "Latent": lambda: Latent(Autoencoder(1, width=4, multipliers=(1, 2)), Affine(0.5, 2.0)),
    "EncoderDecoder": lambda: EncoderDecoder(mirror, mirror),
    "LatentBound": lambda: scoresde.LatentBound(torch.ones(3), 1.0, 2.0, 3.0, 4),
    "ScoreModel": lambda: MODEL,
    "GaussianModel": lambda: GAUSSIAN,
    "GaussianMixtureModel": lambda: GaussianMixtureModel(sde=VPSDE(), weights=torch.ones(6), means=X, std=0.1),
    "EmpiricalModel": lambda: EmpiricalModel(sde=VPSDE(), data=X),
    "EnergyModel": lambda: EnergyModel(energy, VPSDE()),
    "SDEModel": lambda: scoresde.SDEModel(MLP(2, width=8, depth=1), Relaxation(), prior=VPSDE().prior()),
    "ConditionedSDE": lambda: scoresde.ConditionedSDE(Relaxation(), minus_energy),
    "a mapped model": lambda: map_prediction(MODEL, clip),
    "a callable": lambda: ScoreModel.from_callable(score, VPSDE()),
    "guided": lambda: scoresde.guided(MODEL, 2.0, interval=(0.1, 1.0), negative={"label": 0}),
    "a posterior": lambda: scoresde.posterior(MODEL, torch.tensor([True, False]), X[0, :1], noise_std=0.1, event=(2,)),
    "a tilted model": lambda: scoresde.tilted(MODEL, norms, at="data"),
    "Picard": lambda: scoresde.Picard("ddim", window=5),
    "Particles": lambda: scoresde.correct(scoresde.product([GAUSSIAN]), 4, steps=3),
    "PosteriorSamples": lambda: scoresde.sample_posterior(
        GAUSSIAN, torch.ones(1, 2), X[0, :1], 3, noise_std=0.1, steps=3
    ),
    "SplitGibbs": scoresde.SplitGibbs,
    "DAPS": scoresde.DAPS,
    "Replacement": scoresde.Replacement,
    "TwistedSMC": scoresde.TwistedSMC,
    "guidance.Blur": lambda: guidance.Blur.gaussian(0.5, 1),
    "guidance.Clamp": guidance.Clamp,
    "guidance.DDNM": guidance.DDNM,
    "guidance.DDRM": guidance.DDRM,
    "guidance.DPS": guidance.DPS,
    "guidance.DiffPIR": guidance.DiffPIR,
    "guidance.Downsample": lambda: guidance.Downsample(2),
    "guidance.DynamicThreshold": guidance.DynamicThreshold,
    "guidance.Fourier": lambda: guidance.Fourier(torch.tensor([True, False])),
    "guidance.Grey": lambda: guidance.Grey((0.5, 0.5)),
    "guidance.Linear": lambda: guidance.Linear(torch.neg),
    "guidance.MMPS": lambda: guidance.MMPS(3),
    "guidance.Mask": lambda: guidance.Mask(torch.tensor([True, False])),
    "guidance.Matrix": lambda: guidance.Matrix(torch.eye(2)),
    "guidance.Method": guidance.MMPS,
    "guidance.Nonlinear": lambda: guidance.Nonlinear(torch.exp),
    "guidance.Operator": guidance.Grey,
    "guidance.PiGDM": lambda: guidance.PiGDM("moments"),
    "guidance.TMPD": guidance.TMPD,
    "UNet": lambda: ScoreModel(UNet(1, width=8, multipliers=(1,)), VESDE(), predicts="edm"),
    "Prediction": torch.no_grad()(lambda: MODEL(X, 0.5)),
    "Step": seen,
    "SamplingModule": lambda: SamplingModule(MODEL, (2, 2), steps=3),
    "Stepper": lambda: scoresde.Stepper(build_table(VPSDE(), "ancestral", steps=3), seed=1),
    "SampleResult": lambda: sample(MODEL, 3, steps=3, seed=0, full_output=True),
    "Sampler": lambda: Sampler("mine", solvers.heun(), 7, kernels=(Langevin(),)),
    "Solver": lambda: solvers.dpmpp_2m(eta=0.5),
    "Tableau": lambda: build_table(VPSDE(), "flow_abm", steps=5),
    "ProbabilityFlow": lambda: ProbabilityFlow(rtol=1e-3),
    "Langevin": lambda: Langevin(snr=0.1, steps=2),
    "MALA": MALA,
    "TrainResult": lambda: fit(MODEL, X, steps=2, batch_size=4, progress=False),
    "EMA": lambda: EMA(MLP(2, width=8, depth=1)),
    "Bound": lambda: variational_bound(MODEL, CHAIN, X, indices=2),
    "LogLikelihood": lambda: scoresde.log_likelihood(MODEL, X, solver="heun", steps=4),
    "SBIPosterior": lambda: scoresde.SBIPosterior(GAUSSIAN, "context", encode=torch.neg),
    "Classification": lambda: scoresde.classify(MODEL, X, range(3), samples=2, draws=2),
    "Dequantisation": lambda: scoresde.Dequantisation(17),
    "GaussianDecoder": GaussianDecoder,
    "LevelsDecoder": lambda: LevelsDecoder(16),
    "Densities": density,
    "bridge.TorchSDE": bridge.TorchSDE,
    "bridge.ScipyODE": bridge.ScipyODE,
    "bridge.TorchDiffEq": bridge.TorchDiffEq,
    "grids.Grid": lambda: scoresde.grids.karras(7, rho=5.0),
    "losses.ChainLoss": lambda: losses.ChainLoss.hybrid(CHAIN, indices=losses.ImportanceIndices(30)),
    "losses.ImportanceIndices": lambda: losses.ImportanceIndices(4),
    "losses.HeldOutLoss": lambda: losses.held_out_loss(MODEL, X),
    "losses.SimulatedLoss": lambda: losses.SimulatedLoss("sliced", steps=9),
    "losses.TimeLaw": lambda: losses.TIMES["edm"],
    "training.Trainer": lambda: training.Trainer(ScoreModel(MLP(2, width=8, depth=1), VPSDE())),
    "solvers.Butcher": lambda: solvers.Butcher("m", ((), (0.5,)), (0.0, 1.0), 2),
    "solvers.AdditiveNoise": lambda: solvers.AdditiveNoise((0.0,), (), (1.0,), (), 1.0, 1.0),
    "solvers.Entry": lambda: solvers.list()[0],
    "data.LabelledImages": lambda: scoresde.data.digits("test"),
    "data.Table": lambda: scoresde.data.tabular("iris"),
    "data.Molecules": lambda: scoresde.data.molecules(2, sweeps=1),
    "metrics.Floor": lambda: scoresde.metrics.Floor(mean=1.0, std=0.1, size=3, other=4, repeats=2),
}
# Protocols, types of files' contents, and results that other tests make.
ELSEWHERE = {
    "FileTable",
    "FolderImages",
    "Transform",
    "Decoder",
    "Record",
    "ToyDensity",
    "Classifier",
    "Comparison",
    "TwoSampleTest",
}


def classes() -> set[str]:
    """Return every public class, by its shortest name, but for errors, networks and what ELSEWHERE lists."""
    found = set()
    for room in (None, *ROOMS):
        holder = scoresde if room is None else getattr(scoresde, room)
        for name in holder.__all__:
            one = getattr(holder, name)
            if not isinstance(one, type) or issubclass(one, Exception | torch.nn.Module) or name in ELSEWHERE:
                continue
            if room is None or name not in scoresde.__all__:
                found.add(name if room is None else f"{room}.{name}")
    return found


def test_the_walk_leaves_nothing_out() -> None:
    assert classes() <= set(OBJECTS)


def state(value: object, depth: int = 6) -> object:
    """Return what an object holds, in a form that can be compared: tensors as bytes, objects as their fields."""
    if isinstance(value, Tensor):
        return str(value.dtype), tuple(value.shape), repr(value.detach().flatten().tolist())
    if isinstance(value, torch.nn.Module):
        own = {k: v for k, v in vars(value).items() if not k.startswith("_")}
        return type(value), state(dict(value.state_dict()), depth - 1), value.training, state(own, depth - 1)
    if isinstance(value, dict):
        return {k: state(v, depth - 1) for k, v in value.items()} if depth else len(value)
    if isinstance(value, list | tuple):
        return [state(v, depth - 1) for v in value] if depth else len(value)
    if isinstance(value, str | int | float | bool | Path | type | None):
        return "nan" if value != value else value
    fields = getattr(value, "__dict__", None)
    return (type(value), state(fields, depth - 1)) if fields and depth else type(value)


@pytest.mark.parametrize("name", OBJECTS)
def test_an_object_travels(name: str) -> None:
    one = OBJECTS[name]()
    memory = io.BytesIO()
    torch.save(one, memory)
    memory.seek(0)
    for twin in (
        pickle.loads(pickle.dumps(one)),
        copy.deepcopy(one),
        torch.load(memory, weights_only=False),
    ):
        assert type(twin) is type(one)
        assert state(twin) == state(one)


# What is printed as a whole: data, a user's own function, and objects that nobody prints.
LONG = {"ReverseSDE", "EMA", "training.Trainer", "losses.ImportanceIndices"}
LONG |= {"data.LabelledImages", "data.Molecules", "data.Table"}


@pytest.mark.parametrize("name", sorted(set(OBJECTS) - LONG))
def test_an_object_says_what_it_is_in_few_lines(name: str) -> None:
    text = repr(OBJECTS[name]())
    assert 0 < len(text) < 700
    assert " at 0x" not in text


def test_a_model_and_a_solver_reach_a_spawned_process() -> None:
    code = """
import torch
import torch.multiprocessing as mp
from scoresde import DDPM, Langevin, ScoreModel, VPSDE, sample, solvers
from scoresde.nn import MLP

def work(rank, model, solver, chain, want):
    got = sample(model, (3, 2), solver=solver, steps=4, kernels=[Langevin()], seed=rank)
    assert torch.allclose(got, want[rank], atol=1e-5), rank
    assert len(chain) == 20

if __name__ == "__main__":
    model, solver = ScoreModel(MLP(2, width=8, depth=1), VPSDE()), solvers.heun()
    want = [sample(model, (3, 2), solver=solver, steps=4, kernels=[Langevin()], seed=k) for k in range(2)]
    mp.spawn(work, (model, solver, DDPM.from_sde(VPSDE(), 20), want), nprocs=2)
    print("both agree")
"""
    folder = ROOT / "tests" / "package"
    script = folder / "spawned.tmp.py"
    try:
        script.write_text(code, encoding="utf-8")
        done = subprocess.run([sys.executable, script], cwd=ROOT, capture_output=True, text=True, check=False)
    finally:
        script.unlink(missing_ok=True)
    assert done.stdout.endswith("both agree\n"), done.stderr


def test_every_room_is_an_attribute_and_the_core_loads_only_what_it_needs() -> None:
    code = f"""
import sys
import scoresde
late = [room for room in ("data", "metrics", "nn", "plots", "cli") if "scoresde." + room in sys.modules]
assert late == [], late
assert set({ROOMS!r}) <= set(dir(scoresde)) and "compare" in dir(scoresde)
for room in {ROOMS!r}:
    assert getattr(scoresde, room).__name__.rpartition(".")[2] == room
assert callable(scoresde.compare)
assert all(getattr(scoresde, name, None) is not None for name in scoresde.__all__)
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="module 'scoresde' has no attribute 'sampel'"):
        scoresde.sampel  # noqa: B018 the access is the test
