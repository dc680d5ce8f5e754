"""The core under torch's contexts, in threads and in other processes: the values outside, up to rounding.

Curves, tables and random numbers live on the CPU by design, whatever the default device; "meta" as the default shows
every tensor that is made without saying where, since nothing can be read from it.
"""

from __future__ import annotations

import ast
import multiprocessing
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from helpers import ROOT
from torch import Tensor, nn

from scoresde import (
    DDPM,
    EDMSDE,
    SMLD,
    VESDE,
    VPSDE,
    Affine,
    CosineVPSDE,
    GaussianMixtureModel,
    GaussianModel,
    Langevin,
    Moments,
    RectifiedFlow,
    ScoreModel,
    SubVPSDE,
    build_table,
    continuous_elbo,
    decode,
    encode,
    interpolate,
    log_likelihood,
    metrics,
    sample,
    variational_bound,
)
from scoresde.noise import normal, stream

X = normal((8, 2), stream(0))


class Line(nn.Module):
    """A network with a parameter, whose sums autocast leaves alone."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.3))

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return self.weight * x + 0.01 * c_noise.reshape(-1, 1).to(x)


MODEL = ScoreModel(Line(), VPSDE(), moments=Moments.of(X), transform=Affine(0.5, 2.0))
GAUSSIAN = GaussianModel(sde=VPSDE(), mean=torch.zeros(2), covariance=torch.tensor([[1.0, 0.3], [0.3, 0.5]]))
MIXTURE = GaussianMixtureModel(sde=VPSDE(), weights=torch.ones(2), means=X[:2], std=0.3)
SDES = (VPSDE, SubVPSDE, VESDE, EDMSDE, CosineVPSDE, RectifiedFlow)
SOLVERS = ("flow_abm", "dpmpp_2m", "ancestral", "heun", "unipc", "sra1", "edm", "euler_maruyama", "deis", "ddim")


def flatten(point: object) -> list[Tensor]:
    return [getattr(point, name) for name in ("t", "alpha", "sigma", "log_snr")]


def curves() -> list[Tensor]:
    out = []
    for kind in SDES:
        sde = kind()
        t = sde.t_min + (sde.t_max - sde.t_min) * 0.4
        out += [*flatten(sde.at(t)), sde.time(sde.log_snr(t)), sde.prior().variance]
        out += [torch.tensor([sde.log_snr(t), sde.prior_std(t), sde.diffusion(t)], device="cpu")]
    return out


def chains() -> list[Tensor]:
    made = (DDPM.linear(30), DDPM.cosine(20), DDPM.sigmoid(20), DDPM.from_sde(VPSDE(), 20), SMLD.geometric(9))
    tables = [table.points.alpha for chain in made for table in (chain.ancestral(), chain.ancestral(steps=5))]
    return [*tables, *(part for chain in made for part in flatten(chain.points)), made[0].log_alphas]


def tables() -> list[Tensor]:
    made = [build_table(sde(), name, steps=5) for sde in (VPSDE, VESDE) for name in SOLVERS]
    every = [w for table in made for row in table.rows for w in (row.at.t, *row.state, *(row.anchor or ()), *row.noise)]
    law = [number for table in made for number in table.law(0.3, 0.5)]
    return [torch.tensor(numbers, dtype=torch.float64, device="cpu") for numbers in (every, law)]


def samples() -> list[Tensor]:
    drawn = [sample(model, 4, solver=name, steps=4, seed=1) for model in (GAUSSIAN, MODEL) for name in SOLVERS]
    flow = sample(MIXTURE, 4, solver="probability_flow", seed=1)
    corrected = sample(MIXTURE, 4, solver="dpmpp_2m", steps=4, seed=1, kernels=[Langevin()])
    return [*drawn, flow, corrected, *(sample(GAUSSIAN, 4, steps=n, seed=1) for n in (3, 7, 20))]


def latents() -> list[Tensor]:
    z = encode(GAUSSIAN, X)
    between = interpolate(GAUSSIAN, X[:1], X[1:2], n=3, solver="heun", steps=4)
    return [z, decode(GAUSSIAN, z), encode(MODEL, X, solver="heun", steps=5), between]


def bounds() -> list[Tensor]:
    return [continuous_elbo(model, VPSDE(), X, samples=3).per_sample for model in (GAUSSIAN, MODEL)]


def chain_bounds() -> list[Tensor]:
    chain = DDPM.from_sde(VPSDE(), 20)
    return [variational_bound(model, chain, X, indices=n).per_sample for model in (GAUSSIAN, MODEL) for n in (3, None)]


def likelihoods() -> list[Tensor]:
    whole = log_likelihood(GAUSSIAN, X[:3]).values
    return [whole, log_likelihood(MODEL, X[:3], solver="heun", steps=4, probes=1).values]


def distances() -> list[Tensor]:
    y = X + 0.5
    return [
        torch.tensor(
            [
                metrics.energy_distance(X, y),
                metrics.sliced_wasserstein(X, y),
                metrics.mmd(X, y),
                metrics.frechet_distance(X, y),
                metrics.two_sample_test(X, y, permutations=19).p_value,
                metrics.floor(metrics.energy_distance, X, 4, repeats=3).mean,
            ],
            dtype=torch.float64,
            device="cpu",
        ),
        metrics.marginal_distances(X, y),
    ]


CORE: dict[str, Callable[[], list[Tensor]]] = {
    f.__name__: f for f in (curves, chains, tables, samples, latents, bounds, chain_bounds, likelihoods, distances)
}


def same(got: list[Tensor], wanted: list[Tensor]) -> None:
    assert len(got) == len(wanted)
    for one, other in zip(got, wanted, strict=True):
        assert (one.dtype, one.device, one.shape) == (other.dtype, other.device, other.shape)
        rough = {torch.float32: 1e-5, torch.float64: 1e-9}.get(one.dtype, 0.0)
        torch.testing.assert_close(one, other, rtol=rough, atol=rough * float(other.abs().max()), equal_nan=True)


@contextmanager
def default_device() -> Iterator[None]:
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def default_dtype() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


CONTEXTS = {
    "default device": default_device,
    "default type": default_dtype,
    "inference mode": torch.inference_mode,
    "no gradient": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "deterministic": deterministic,
}


@pytest.fixture(scope="module")
def outside() -> dict[str, list[Tensor]]:
    return {name: use() for name, use in CORE.items()}


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("name", CORE)
def test_the_values_are_those_outside(name: str, context: str, outside: dict[str, list[Tensor]]) -> None:
    if (name, context) == ("likelihoods", "inference mode"):
        pytest.skip("a likelihood differentiates; test_contexts.py holds what it says")
    build_table.__globals__["_build_once"].cache_clear()
    with CONTEXTS[context]():
        got = CORE[name]()
    same([one.clone() for one in got], outside[name])


def test_four_threads_at_once(outside: dict[str, list[Tensor]]) -> None:
    """Each of them runs everything; what they share are models, tables and caches."""
    got: dict[int, dict[str, list[Tensor]]] = {}
    build_table.__globals__["_build_once"].cache_clear()

    def work(k: int) -> None:
        names = [*CORE][k:] + [*CORE][:k]
        got[k] = {name: CORE[name]() for name in names}

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    for k in range(4):
        for name, wanted in outside.items():
            same(got[k][name], wanted)


def answer(queue: multiprocessing.SimpleQueue) -> None:
    torch.set_num_threads(1)
    queue.put({name: [one.numpy() for one in CORE[name]()] for name in ("curves", "tables", "samples", "bounds")})


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_another_process(method: str, outside: dict[str, list[Tensor]]) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    context = multiprocessing.get_context(method)
    queue = context.SimpleQueue()
    process = context.Process(target=answer, args=(queue,))
    process.start()
    there = queue.get()
    process.join(timeout=60)
    assert process.exitcode == 0
    for name, parts in there.items():
        same([torch.from_numpy(part) for part in parts], outside[name])


# --- who makes a tensor says where

FACTORIES = {
    *("zeros", "ones", "full", "empty", "arange", "linspace", "logspace", "eye", "tensor", "as_tensor"),
    *("scalar_tensor", "tril_indices", "triu_indices", "rand", "randn", "randint", "randperm"),
}
# What is made there belongs to its module, which torch moves: networks are made where the default device says.
NETWORKS = ("nn/",)


def unplaced(file: Path) -> list[str]:
    """Return the calls of torch's factories in a file that do not say the device."""
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        of_torch = isinstance(node.func.value, ast.Name) and node.func.value.id == "torch"
        if of_torch and node.func.attr in FACTORIES and not any(word.arg == "device" for word in node.keywords):
            found.append(f"{file.name}:{node.lineno}: {ast.unparse(node)[:80]}")
    return found


def test_every_tensor_that_is_made_says_its_device() -> None:
    package = ROOT / "scoresde"
    found = []
    for file in sorted(package.rglob("*.py")):
        if not file.relative_to(package).as_posix().startswith(NETWORKS):
            found += unplaced(file)
    assert found == []


def test_the_walk_sees_one(tmp_path: Path) -> None:
    file = tmp_path / "one.py"
    file.write_text("import torch\nx = torch.zeros(3)\ny = torch.zeros(3, device='cpu')\nz = x.new_zeros(3)\n")
    assert unplaced(file) == ["one.py:2: torch.zeros(3)"]
