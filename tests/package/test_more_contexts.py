"""Latents, newer networks, training, posteriors and steppers under torch's contexts: the values outside.

``test_default_device.py`` does the same for the core. Autocast may round what networks compute and nothing else.
"""

from __future__ import annotations

import ast
import copy
import multiprocessing
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from helpers import ROOT
from test_default_device import CONTEXTS, same
from torch import Tensor

from scoresde import (
    DAPS,
    DDPM,
    VPSDE,
    ConfigError,
    GaussianModel,
    Latent,
    Moments,
    SamplingModule,
    ScoreModel,
    SplitGibbs,
    Stepper,
    TwistedSMC,
    build_table,
    correct,
    data,
    fit,
    guidance,
    held_out_loss,
    latent_elbo,
    losses,
    nn,
    posterior,
    product,
    sample,
    sample_posterior,
    training,
    transforms,
    tune,
)
from scoresde.noise import normal, stream

X, IMAGES, CLOUDS = normal((8, 2), stream(0)), normal((4, 1, 8, 8), stream(1)), normal((4, 3, 2), stream(2))
SERIES = normal((4, 1, 8), stream(3))
SEEN, RAY = torch.tensor([True, False]), torch.ones(1, 2)
CODER = nn.Autoencoder(1, dims=1, width=4, multipliers=(1, 1))
CODES = Moments.of(normal((4, 4, 4), stream(4)))
LATENT = ScoreModel(nn.MLP((4, 4), width=4, depth=1), VPSDE(), moments=CODES, transform=Latent(CODER))
GAUSSIAN = GaussianModel(sde=VPSDE(), mean=torch.zeros(2), covariance=torch.tensor([[1.0, 0.3], [0.3, 0.5]]))


def stir(net: torch.nn.Module) -> torch.nn.Module:
    """Move a network's weights from its first ones, of which some are 0."""
    with torch.no_grad():
        for k, p in enumerate(net.parameters()):
            p.add_(0.05 * normal(p.shape, stream(9, k)))
    return net


NETWORKS = {
    "DiT": ScoreModel(stir(nn.DiT(1, width=8, depth=1, heads=1)), VPSDE(), moments=Moments.of(IMAGES)),
    "MagnitudeUNet": ScoreModel(stir(nn.MagnitudeUNet(1, width=4)), VPSDE(), moments=Moments.of(IMAGES)),
    "UNet": ScoreModel(stir(nn.UNet(1, width=8, multipliers=(1, 2))), VPSDE(), moments=Moments.of(IMAGES)),
    "EGNN": ScoreModel(stir(nn.EGNN(2, width=4, depth=1)), VPSDE(), moments=Moments.of(CLOUDS)),
}
MLP = ScoreModel(stir(nn.MLP(2, width=4, depth=1)), VPSDE())


class Rows(torch.utils.data.Dataset[Tensor]):
    """A data set whose items are rows."""

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> Tensor:
        return X[index]


def train(rows: object = X, **options: object) -> list[Tensor]:
    done = fit(copy.deepcopy(MLP), rows, steps=3, batch_size=4, calibrate=False, progress=False, **options)
    assert done.losses.dtype == torch.float32
    return [done.losses, *(p.detach() for p in done.model.net.parameters())]


def networks() -> list[Tensor]:
    return [sample(model, 2, solver=name, steps=2, seed=0) for model in NETWORKS.values() for name in ("heun", "sra1")]


def latents() -> list[Tensor]:
    drawn = sample(LATENT, 2, solver="heun", steps=2, seed=0)
    codes = [LATENT.transform.encode(SERIES, seed=0), Latent.standardise(CODER, SERIES).encode(SERIES)]
    return [drawn, *codes, latent_elbo(LATENT, SERIES, seed=0).per_sample]


def fits() -> list[Tensor]:
    several = train(sigma_rel=(0.05, 0.1), accumulate=2, held_out=X, save_every=2)
    return [*train(), *train(uncertainty=True), *several, *train(augment=lambda x, generator: x + 0.0)]


def chain_fits() -> list[Tensor]:
    indices = losses.ImportanceIndices(30)
    both = (losses.ChainLoss.simple(DDPM.linear(30)), losses.ChainLoss.bound(DDPM.linear(30), indices=indices))
    return [one for loss in both for one in train(objective=loss)]


def sets() -> list[Tensor]:
    return train(Rows())


def coders() -> list[Tensor]:
    coder = copy.deepcopy(CODER)
    found = training.fit_autoencoder(coder, SERIES, steps=2, batch_size=2, progress=False)
    return [found, *(p.detach() for p in coder.parameters())]


def held_out() -> list[Tensor]:
    return [torch.tensor(held_out_loss(MLP, X).mean, dtype=torch.float64, device="cpu")]


def posteriors() -> list[Tensor]:
    guided = [posterior(GAUSSIAN, SEEN, X[0, :1], noise_std=0.3, event=(2,), method=name) for name in ("dps", "ddrm")]
    drawn = [sample(model, 4, solver="ddim", steps=3, seed=0) for model in guided]
    asked = [
        sample_posterior(GAUSSIAN, RAY, X[0, :1], noise_std=0.3, n=4, steps=3, method=m, seed=0).x for m in METHODS
    ]
    return [*drawn, *asked, correct(product([GAUSSIAN, GAUSSIAN]), 4, steps=3, seed=0).x]


METHODS = (SplitGibbs(), DAPS(), TwistedSMC())


def measured() -> list[Tensor]:
    return [guidance.Blur.gaussian(1.0)(IMAGES), guidance.Matrix(RAY)(X), guidance.Downsample(2)(IMAGES)]


def augmented() -> list[Tensor]:
    crop = transforms.RandomCrop((4, 4), padding=1)
    return [transforms.RandomFlip()(IMAGES, stream(0)), crop(IMAGES, stream(0))]


def made() -> list[Tensor]:
    toys = ("checkerboard", "eight_gaussians", "moons", "pinwheel", "swiss_roll", "two_spirals", "time_series")
    return [getattr(data, name)(4) for name in toys]


def steppers() -> list[Tensor]:
    stepper = Stepper(build_table(VPSDE(), "ancestral", steps=3), predicts="data", seed=1)
    x = stepper.start(X)
    for _ in stepper:
        x = stepper(x, 0.5 * x)
    return [x, SamplingModule(GAUSSIAN, (8, 2), steps=2)(X)]


def searches() -> list[Tensor]:
    found = tune(GAUSSIAN, 2, start="flow_abm", samples=4, iterations=1, keep=False).table.law()
    return [torch.tensor(found, dtype=torch.float64, device="cpu")]


USES: dict[str, Callable[[], list[Tensor]]] = {
    f.__name__: f
    for f in (
        networks,
        latents,
        fits,
        chain_fits,
        sets,
        coders,
        held_out,
        posteriors,
        measured,
        augmented,
        steppers,
        made,
    )
}
# Networks compute in bf16 there, as they are asked to.
LEARNED = {"networks", "latents", "fits", "chain_fits", "sets", "coders", "held_out"}
# What differentiates says so in inference mode.
DIFFERENTIATE = {"fits", "chain_fits", "sets", "coders", "posteriors"}


@contextmanager
def half() -> Iterator[None]:
    torch.set_default_dtype(torch.float16)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


EVERY = {**CONTEXTS, "half as the default type": half}


@pytest.fixture(scope="module")
def outside() -> dict[str, list[Tensor]]:
    return {name: use() for name, use in USES.items()}


@pytest.mark.parametrize("context", EVERY)
@pytest.mark.parametrize("name", USES)
def test_the_values_are_those_outside(name: str, context: str, outside: dict[str, list[Tensor]]) -> None:
    if (context == "autocast" and name in LEARNED) or (context == "inference mode" and name in DIFFERENTIATE):
        pytest.skip("it computes in another type, or not at all, and is asked to")
    with EVERY[context]():
        got = USES[name]()
    same([one.clone() for one in got], outside[name])


@pytest.mark.parametrize("context", ["default device", "half as the default type"])
def test_a_table_is_found_as_outside(context: str) -> None:
    expected = searches()
    with EVERY[context]():
        got = searches()
    same(got, expected)


def test_training_a_coder_in_inference_mode_is_refused_before_a_weight_changes() -> None:
    coder = copy.deepcopy(CODER)
    with torch.inference_mode(), pytest.raises(ConfigError, match="inference"):
        training.fit_autoencoder(coder, SERIES, steps=1, batch_size=2, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(coder.parameters(), CODER.parameters(), strict=True))


def test_four_threads_at_once(outside: dict[str, list[Tensor]]) -> None:
    """Each trains a copy and asks the models that they share."""
    names = [name for name in USES if name != "sets"]
    got: dict[int, dict[str, list[Tensor]]] = {}
    failed: list[BaseException] = []

    def work(k: int) -> None:
        try:
            turn = names[3 * k :] + names[: 3 * k]
            got[k] = {name: USES[name]() for name in turn}
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert failed == []
    for found in got.values():
        for name, parts in found.items():
            same(parts, outside[name])


def answer(queue: multiprocessing.SimpleQueue) -> None:
    torch.set_num_threads(1)
    queue.put({name: [one.numpy() for one in USES[name]()] for name in ("latents", "fits", "steppers", "networks")})


def test_another_process(outside: dict[str, list[Tensor]]) -> None:
    """Forked; ``test_default_device.py`` spawns one, too."""
    if "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("no fork here")
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    process = context.Process(target=answer, args=(queue,))
    process.start()
    there = queue.get()
    process.join(timeout=60)
    assert process.exitcode == 0
    for name, parts in there.items():
        same([torch.from_numpy(part) for part in parts], outside[name])


TRANSFORMS: dict[str, Callable[[Callable[[Tensor], Tensor], Tensor], object]] = {
    "jacrev": lambda f, z: torch.func.jacrev(f)(z),
    "grad": lambda f, z: torch.func.grad(lambda one: f(one).sum())(z),
    "jvp": lambda f, z: torch.func.jvp(f, (z,), (torch.ones_like(z),)),
    "vmap": lambda f, z: torch.func.vmap(f)(torch.stack([z, z])),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, of its forward mode
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_a_transform_of_functions_is_named_and_leaves_nothing_behind(transform: str) -> None:
    """Tensors that are made under one must not be kept: what comes after would compute with them."""
    build_table.__globals__["_build_once"].cache_clear()
    model = GaussianModel(sde=VPSDE(), mean=torch.zeros(2), covariance=torch.eye(2))

    def run(z: Tensor) -> Tensor:
        return sample(model, x_init=z, solver="heun", steps=3, differentiable=True)

    with pytest.raises(ConfigError, match=r"torch.func hides .* SamplingModule\(model, shape\)"):
        TRANSFORMS[transform](run, X)
    TRANSFORMS[transform](lambda z: SamplingModule(model, (8, 2), solver="heun", steps=3)(z), X)
    # A centred Gaussian's run is linear, and each coordinate has the factor of the table's affine map.
    factor = float(build_table(VPSDE(), "heun", steps=3).affine_map()[1])
    torch.testing.assert_close(run(X), factor * X, rtol=1e-5, atol=1e-5)


def test_the_jacobian_of_a_module_is_the_tables_factor() -> None:
    model = GaussianModel(sde=VPSDE(), mean=torch.zeros(2), covariance=torch.eye(2)).double()
    module = SamplingModule(model, (8, 2), solver="heun", steps=3, dtype=torch.float64)
    table = build_table(VPSDE(), "heun", steps=3)
    factor = float(table.affine_map()[1]) * (table.start.alpha**2 + table.start.sigma**2) ** 0.5
    jacobian = torch.func.jacrev(module)(X.double()).reshape(16, 16)
    torch.testing.assert_close(jacobian, factor * torch.eye(16, dtype=torch.float64), rtol=1e-9, atol=1e-12)


# --- who makes numbers says of which type

FACTORIES = {*("zeros", "ones", "full", "empty", "eye", "linspace", "logspace", "scalar_tensor", "tensor", "rand")}


def untyped(source: str) -> list[str]:
    """Return the calls of torch's factories that leave the type to torch's default."""
    return [
        f"{node.lineno}: {ast.unparse(node)[:80]}"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and (node.func.value.id, node.func.attr in FACTORIES) == ("torch", True)
        and not any(word.arg == "dtype" for word in node.keywords)
    ]


def test_every_tensor_that_is_made_says_its_type() -> None:
    """Networks alone are made in the default type, as torch's own are."""
    package = ROOT / "scoresde"
    found = {}
    for file in sorted(package.rglob("*.py")):
        name = file.relative_to(package).as_posix()
        if not name.startswith("nn/") and (calls := untyped(file.read_text(encoding="utf-8"))):
            found[name] = calls
    assert found == {}
    assert untyped("import torch\nx = torch.zeros(3)\ny = torch.zeros(3, dtype=x.dtype)") == ["2: torch.zeros(3)"]
