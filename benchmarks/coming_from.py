"""The tasks of docs/coming-from in both libraries, on one model from one start: how far apart the results are.

Each task is run with the other library's own code and with ours, on the same exact mixture or the same network, with
the same numbers for noise. The difference is the largest of any coordinate; each task states what it may be at most.
A library that is not installed is named and left out. ``--install`` fetches those that no other part of the project
needs, without their dependencies, into ``runs/coming_from/peers``. Of k-diffusion the modules without torchvision are
loaded alone, where the package itself cannot be imported.

Run: python benchmarks/coming_from.py [--peers NAME ...] [--install] [--record]      (half a minute, one core)
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import json
import math
import platform
import subprocess
import sys
import tempfile
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from record import add_record, write_record
from torch import Tensor

from scoresde import (
    DDPM,
    EDMSDE,
    VESDE,
    VPSDE,
    GaussianMixtureModel,
    GaussianSDE,
    Moments,
    RectifiedFlow,
    SBIPosterior,
    ScoreModel,
    adapt,
    denoising_score_matching,
    from_diffusers,
    grids,
    sample,
    solvers,
    to_diffusers,
)
from scoresde.data import moons
from scoresde.noise import normal, seeded_torch, stream

WANTED = ("azula==0.11.1", "einops==0.8.2", "k-diffusion==0.1.1.post1", "torchcfm==1.0.7", "POT==0.9.7.post1")
FOLDER = Path("runs/coming_from/peers")
CPU = torch.device("cpu")
START = normal((64, 2), stream(0, "start"), dtype=torch.float64)
WEIGHTS = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
MEANS = torch.tensor([[-1.2, 0.3], [0.8, 0.9], [0.1, -1.1]], dtype=torch.float64)


@dataclass(frozen=True)
class Result:
    """What a task gave: the largest difference between the two, and what it may be."""

    peer: str
    task: str
    apart: float
    at_most: float

    @property
    def held(self) -> bool:
        return self.apart <= self.at_most


def mixture(sde: GaussianSDE) -> GaussianMixtureModel:
    """Three modes in the plane, of which the score is exact under any diffusion."""
    return GaussianMixtureModel(sde=sde, weights=WEIGHTS, means=MEANS, std=0.3)


def apart(one: Tensor, two: Tensor) -> float:
    return float((one.detach() - two.detach()).abs().max())


def drawn(count: int, like: Tensor, seed: int = 0) -> list[Tensor]:
    """What code that calls torch.randn_like draws after the global generator was set to a seed."""
    with seeded_torch(CPU, seed):
        return [torch.randn_like(like) for _ in range(count)]


class Net(torch.nn.Module):
    """A small network with random weights, told one number beside x."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(3, 32), torch.nn.SiLU(), torch.nn.Linear(32, 2))
        draw = stream(0, "weights")
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(0.4 * normal(tuple(parameter.shape), draw))

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        return self.layers(torch.cat([x, told.to(x).expand(len(x))[:, None]], 1))


def from_score_sde() -> Iterator[Result]:
    """Nothing of score_sde is run: its formulas, as its paper has them, against ours."""
    chain, x0, t = DDPM.linear(1000), MEANS.float(), torch.tensor([0.1, 0.5, 0.9])
    betas = torch.linspace(0.1 / 1000, 20 / 1000, 1000, dtype=torch.float64)
    yield Result("score_sde", "discrete betas of N = 1000", apart(betas, chain.betas), 1e-15)
    song = DDPM.from_sde(VPSDE(0.1, 20.0), 1000, rule="song").betas
    yield Result("score_sde", "the same from the SDE", apart(betas, song), 1e-15)
    sde, z = VPSDE(), normal((3, 2), stream(0, "z"))
    net = Net()
    model = adapt(lambda x, s: net(x, 999 * s), time="time", predicts="noise")
    mean, std = sde.marginal(x0, t)
    std = std[:, None]
    with torch.no_grad():
        score = -net(mean + std * z, 999 * t) / std
        mine = denoising_score_matching(model, x0, weight="simple", t=t, noise=z)
        theirs = (score * std + z).square().mean(1)
        yield Result("score_sde", "continuous loss, relative", apart(theirs / mine, torch.ones(3)), 1e-5)
        theirs = 0.5 * (score + z / std).square().sum(1) * sde.diffusion(t).square()
        mine = 2 * denoising_score_matching(model, x0, weight="likelihood", t=t, noise=z)
        yield Result("score_sde", "likelihood loss, relative", apart(theirs / mine, torch.ones(3)), 1e-5)


def from_diffusers_tasks() -> Iterator[Result]:
    import diffusers

    diffusers.utils.logging.set_verbosity_error()
    chain = DDPM.linear(1000)
    model = mixture(chain.sde())

    def loop(scheduler: object, steps: int, seed: int | None = None) -> tuple[Tensor, Tensor]:
        """Run their loop on the exact noise prediction, with their tables in float64; return x and the times asked."""
        for name in ("alphas_cumprod", "betas", "alphas"):
            setattr(scheduler, name, getattr(chain, name) if name != "alphas" else 1 - chain.betas)
        for name in ("alpha_t", "sigma_t", "lambda_t"):
            if hasattr(scheduler, name):
                kept = chain.alphas_cumprod
                ratio = (kept / (1 - kept)).log()
                forms = {"alpha_t": kept.sqrt(), "sigma_t": (1 - kept).sqrt(), "lambda_t": 0.5 * ratio}
                setattr(scheduler, name, forms[name])
        scheduler.set_timesteps(steps)
        if getattr(scheduler, "sigmas", None) is not None:
            scheduler.sigmas = scheduler.sigmas.double()
        options = {} if seed is None else {"generator": torch.Generator().manual_seed(seed)}
        x = START
        for i in scheduler.timesteps:
            x = scheduler.step(model(x, (float(i) + 1) / 1000).noise, i, x, **options).prev_sample
        return x, (scheduler.timesteps.double() + 1) / 1000

    plans = [
        ("DDIM, 20 steps", diffusers.DDIMScheduler(clip_sample=False), solvers.ddim(), 20),
        (
            "DPM-Solver++ 2M, 20 steps",
            diffusers.DPMSolverMultistepScheduler(lower_order_final=True, final_sigmas_type="zero"),
            solvers.dpmpp_2m(),
            20,
        ),
        (
            "UniPC of order 2, 20 steps",
            diffusers.UniPCMultistepScheduler(solver_order=2, final_sigmas_type="zero"),
            solvers.unipc(order=2),
            20,
        ),
    ]
    for name, scheduler, solver, steps in plans:
        theirs, times = loop(scheduler, steps)
        yield Result("diffusers", name, apart(theirs, sample(model, x_init=START, solver=solver, times=times)), 1e-5)
    theirs, times = loop(diffusers.DDPMScheduler(clip_sample=False), 50, seed=0)
    generator = torch.Generator().manual_seed(0)
    tape = [torch.randn(START.shape, generator=generator, dtype=torch.float64) for _ in range(50)]
    mine = sample(model, x_init=START, solver=solvers.ancestral(), times=times, noise=tape)
    yield Result("diffusers", "DDPM, 50 steps, its draws", apart(theirs, mine), 1e-5)

    flow, exact = diffusers.FlowMatchEulerDiscreteScheduler(), mixture(RectifiedFlow())
    flow.set_timesteps(20)
    x = START
    for i, sigma in zip(flow.timesteps, flow.sigmas, strict=False):
        x = flow.step(exact(x, float(sigma)).velocity, i, x).prev_sample
    mine = sample(exact, x_init=START, solver=solvers.euler(), times=flow.sigmas.double(), final="sample")
    yield Result("diffusers", "FlowMatchEuler, 20 steps", apart(x, mine), 1e-5)

    with seeded_torch(CPU, 0):
        unet = diffusers.UNet2DModel(
            sample_size=8,
            in_channels=1,
            out_channels=1,
            block_out_channels=(32, 32),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        ).eval()
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    with tempfile.TemporaryDirectory() as folder:
        diffusers.DDIMPipeline(unet, scheduler).save_pretrained(folder)
        loaded = from_diffusers(folder)
    x = normal((2, 1, 8, 8), stream(0, "images"))
    with torch.no_grad():
        yield Result("diffusers", "a saved U-Net's answer", apart(unet(x, 499).sample, loaded(x, 0.5).noise), 1e-5)
        unet, loaded, x = unet.double(), loaded.double(), x.double()
        ours = to_diffusers("dpmpp_2m", betas=scheduler.betas)
        ours.set_timesteps(8)
        theirs = x
        for i in ours.timesteps:
            theirs = ours.step(unet(theirs, i).sample, i, theirs).prev_sample
    mine = sample(loaded, x_init=x, solver="dpmpp_2m", steps=8)
    yield Result("diffusers", "our solver as their scheduler", apart(theirs, mine), 1e-4)


class AzulaVP(GaussianSDE):
    """azula's VPSchedule: alpha = alpha_min^(t^2), sigma^2 = 1 - alpha^2 + sigma_min^2."""

    def __init__(self, alpha_min: float = 1e-3, sigma_min: float = 1e-3) -> None:
        super().__init__()
        object.__setattr__(self, "alpha_min", alpha_min)
        object.__setattr__(self, "sigma_min", sigma_min)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(math.log(self.alpha_min) * t**2)

    def sigma(self, t: Tensor) -> Tensor:
        return (self.sigma_min**2 - torch.expm1(2 * math.log(self.alpha_min) * t**2)).sqrt()


def from_azula() -> Iterator[Result]:
    from azula import denoise, noise
    from azula import sample as samplers

    t = torch.linspace(1e-3, 1, 50, dtype=torch.float64)
    sde = AzulaVP()
    for name, theirs, ours in (
        ("VPSchedule", noise.VPSchedule(), sde),
        ("VESchedule", noise.VESchedule(0.01, 50.0), VESDE(sigma_min=0.01, sigma_max=50.0)),
    ):
        gaps = [apart(a, b) for a, b in zip(theirs(t), (ours.alpha(t), ours.sigma(t)), strict=True)]
        yield Result("azula", f"{name}, alpha and sigma", max(gaps), 1e-12)

    model = mixture(sde)

    class Exact(denoise.Denoiser):
        def __init__(self) -> None:
            super().__init__()
            self.schedule = noise.VPSchedule()

        def forward(self, x_t: Tensor, t: Tensor, **kwargs: object) -> denoise.Posterior:
            return denoise.DiracPosterior(mean=model(x_t, t).data)

    end, steps = 0.02, 20
    options = {"steps": steps, "silent": True, "dtype": torch.float64, "start": 1.0, "stop": end}
    times = torch.linspace(1.0, end, steps + 1, dtype=torch.float64)
    plans = [
        ("DDIMSampler", {}, solvers.ddim()),
        ("EulerSampler", {}, solvers.euler(variable="nu")),
        ("HeunSampler", {}, solvers.heun(variable="nu")),
        ("zABSampler", {"order": 3}, solvers.lms(order=3)),
        ("vABSampler", {"order": 3}, solvers.flow_ab(order=3)),
        ("zEABSampler", {"order": 2}, solvers.exponential_ab(order=2, prediction="noise")),
        ("xEABSampler", {"order": 2}, solvers.exponential_ab(order=2)),
    ]
    for name, own, solver in plans:
        theirs = getattr(samplers, name)(Exact(), **own, **options)(START)
        mine = sample(model, x_init=START, solver=solver, times=times, final="sample")
        yield Result("azula", f"{name}, {steps} steps", apart(theirs, mine), 1e-10)
    with seeded_torch(CPU, 0):
        theirs = samplers.DDPMSampler(Exact(), **options)(START)
    mine = sample(
        model, x_init=START, solver=solvers.ancestral(), times=times, final="sample", noise=drawn(steps, START)
    )
    yield Result("azula", f"DDPMSampler, {steps} steps, its draws", apart(theirs, mine), 1e-10)

    net = Net()
    karras = denoise.KarrasDenoiser(net, noise.VPSchedule())
    ours = ScoreModel(lambda x, c: net(x, -c / 2), sde, predicts="edm", sigma_data=1.0)
    x, at = START.float(), torch.full((64,), 0.4)
    with torch.no_grad():
        yield Result("azula", "KarrasDenoiser's mean", apart(karras(x, at).mean, ours(x, at).data), 1e-5)
        with seeded_torch(CPU, 0):
            theirs = karras.loss(x, at)
        mine = denoising_score_matching(ours, x, weight="v", t=at, noise=drawn(1, x)[0]).mean()
        yield Result("azula", "KarrasDenoiser's loss", apart(theirs, mine), 1e-4)


def load_k_diffusion(module: str) -> types.ModuleType:
    """Import a module of k-diffusion, alone where the package itself needs what is not installed."""
    try:
        return importlib.import_module(f"k_diffusion.{module}")
    except ImportError:
        found = importlib.util.find_spec("k_diffusion")
        if found is None or found.submodule_search_locations is None:
            raise
        package, utils = types.ModuleType("k_diffusion"), types.ModuleType("k_diffusion.utils")
        package.__path__ = list(found.submodule_search_locations)
        utils.append_dims = lambda x, count: x[(..., *[None] * (count - x.ndim))]
        package.utils = utils
        sys.modules |= {"k_diffusion": package, "k_diffusion.utils": utils}
        return importlib.import_module(f"k_diffusion.{module}")


def from_k_diffusion() -> Iterator[Result]:
    k, external = load_k_diffusion("sampling"), load_k_diffusion("external")
    sde = EDMSDE(sigma_min=0.002, sigma_max=80.5)  # their float32 grid ends a little above 80
    model = mixture(sde)

    def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
        return model(x, sigma).data

    sigmas, x = k.get_sigmas_karras(20, 0.02, 80.0).double(), 80 * START
    mine = grids.karras()(EDMSDE(sigma_min=0.02, sigma_max=80.0), 19)
    yield Result("k-diffusion", "get_sigmas_karras, relative", float((sigmas[:-1] / mine - 1).abs().max()), 1e-5)
    plans = [
        ("sample_euler", {}, solvers.euler(variable="nu")),
        ("sample_heun", {}, solvers.heun(variable="nu")),
        ("sample_dpm_2", {}, solvers.dpm_solver_2()),
        ("sample_dpmpp_2m", {}, solvers.dpmpp_2m()),
        ("sample_euler_ancestral", {"eta": 0.7}, solvers.euler_ancestral(0.7)),
        ("sample_dpmpp_2s_ancestral", {}, solvers.dpmpp_2s_ancestral()),
        ("sample_dpmpp_2m_sde", {}, solvers.dpmpp_2m_sde()),
        ("sample_dpmpp_2m_sde, eta = 0.49", {"eta": 0.49}, solvers.dpmpp_2m_sde(eta=0.7)),
        ("sample_dpmpp_3m_sde", {}, solvers.dpmpp_3m_sde()),
    ]
    tape = [normal((64, 2), stream(0, "tape", i), dtype=torch.float64) for i in range(20)]
    for name, own, solver in plans:
        random = "ancestral" in name or "sde" in name
        left = iter(tape)
        if random:
            own = {**own, "noise_sampler": lambda *_, left=left: next(left)}
        theirs = getattr(k, name.partition(",")[0])(denoiser, x, sigmas, disable=True, **own)
        out = sample(model, x_init=x, solver=solver, times=sigmas, noise=tape if random else None, final="sample")
        yield Result("k-diffusion", f"{name}, 20 steps" if "," not in name else name, apart(theirs, out), 1e-10)
    # Their last step into sigma = 0 is of full order, ours of the first.
    theirs = k.sample_lms(denoiser, x, sigmas[:-1], disable=True)
    mine = sample(model, x_init=x, solver=solvers.lms(), times=sigmas[:-1], final="sample")
    yield Result("k-diffusion", "sample_lms, 19 steps to sigma = 0.02", apart(theirs, mine), 1e-10)

    net, chain = Net(), DDPM.linear(1000)
    wrapped = external.DiscreteEpsDDPMDenoiser(net, chain.alphas_cumprod.float(), quantize=False)
    ours = adapt(net, time="index", betas=chain.betas).with_sde(sde)
    with torch.no_grad():
        at = wrapped.sigmas[[200, 500, 800]]
        y = normal((3, 2), stream(0, "y"))
        gap = apart(wrapped(y, at), ours(y, at.double()).data)
    yield Result("k-diffusion", "DiscreteEpsDDPMDenoiser's answer", gap, 1e-5)


class Shortened(GaussianSDE):
    """The path of TargetConditionalFlowMatcher(sigma) in our time: alpha = 1 - t, sigma = t + s (1 - t)."""

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t + 0.05 * (1 - t)


def from_torchcfm() -> Iterator[Result]:
    import torchcfm
    from torchdiffeq import odeint

    data, z, net = moons(64, seed=0).double(), START, Net().double()
    for name, matcher, sde in (
        ("ConditionalFlowMatcher", torchcfm.ConditionalFlowMatcher(sigma=0.0), RectifiedFlow()),
        ("TargetConditionalFlowMatcher", torchcfm.TargetConditionalFlowMatcher(sigma=0.05), Shortened()),
    ):
        with seeded_torch(CPU, 0):
            t, x_t, u_t, eps = matcher.sample_location_and_conditional_flow(z, data, return_noise=True)
        noise = z if sde == RectifiedFlow() else eps
        mean, std = sde.marginal(data, 1 - t)
        yield Result("torchcfm", f"{name}: x_t", apart(x_t, mean + std[:, None] * noise), 1e-12)
        rate = sde.alpha_rate(1 - t)[:, None] * data + sde.sigma_rate(1 - t)[:, None] * noise
        yield Result("torchcfm", f"{name}: u_t is minus our velocity", apart(u_t, -rate), 1e-10)
        model = ScoreModel.from_callable(lambda x, s: -net(x, 1 - s), sde, predicts="velocity")
        with torch.no_grad():
            theirs = (net(x_t, t) - u_t).square().mean()
            mine = denoising_score_matching(model, data, weight="velocity", t=1 - t, noise=noise).mean()
        yield Result("torchcfm", f"{name}: loss", apart(theirs, mine), 1e-8)

    model = adapt(net, time="flow_matching")
    times = torch.linspace(0, 1, 21, dtype=torch.float64)
    for method, solver in (("euler", solvers.euler()), ("midpoint", solvers.midpoint())):
        with torch.no_grad():
            theirs = odeint(lambda t, x: net(x, t), z, times, method=method)[-1]
        mine = sample(model, x_init=z, solver=solver, times=1 - times, final="sample")
        yield Result("torchcfm", f"odeint({method}), 20 steps", apart(theirs, mine), 1e-10)


def from_sbi() -> Iterator[Result]:
    from sbi.diagnostics import run_sbc
    from sbi.inference import FMPE, NPSE

    draw = stream(0, "simulator")
    theta = normal((1000, 2), draw)
    x = theta + 0.5 * normal((1000, 2), draw)
    prior = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
    seen, points = torch.tensor([[1.0, -0.5]]), normal((50, 2), stream(0, "points"))
    with seeded_torch(CPU, 0):
        npse = NPSE(prior, sde_type="vp", show_progress_bars=False).append_simulations(theta, x)
        estimator = npse.train(max_num_epochs=5)
        posterior = npse.build_posterior(estimator, sample_with="ode").set_default_x(seen)
        theirs = posterior.log_prob(points).detach()
    mean, std = estimator.mean_0.detach(), estimator.std_0.detach()
    moments = Moments.exact(mean.expand(2).double(), std.expand(2).double().square())
    sde = VPSDE(beta_min=estimator.beta_min, beta_max=estimator.beta_max, t_min=estimator.t_min)

    def score(state: Tensor, t: Tensor, *, context: Tensor) -> Tensor:
        return estimator.score(state.float(), context, t.float())

    model = ScoreModel.from_callable(score, sde, predicts="score", moments=moments)
    ours = SBIPosterior(model, "context", steps=30)
    mine = ours.log_prob(points, seen)
    yield Result("sbi", "log_prob of NPSE's network, nats", apart(theirs, mine), 1e-3)
    ranks, _ = run_sbc(theta[:60], x[:60], ours, num_posterior_samples=50, show_progress_bar=False)
    middle = ranks.float().mean(0) / 50
    yield Result("sbi", "run_sbc on ours: mean rank/50 from 1/2", apart(middle, torch.full_like(middle, 0.5)), 0.2)

    with seeded_torch(CPU, 0):
        fmpe = FMPE(prior, show_progress_bars=False).append_simulations(theta, x)
        estimator = fmpe.train(max_num_epochs=5)
        posterior = fmpe.build_posterior(estimator).set_default_x(seen)
        theirs = posterior.log_prob(points).detach()

    def velocity(state: Tensor, t: Tensor, *, context: Tensor) -> Tensor:
        return estimator.ode_fn(state.float(), context, t.float())

    model = ScoreModel.from_callable(velocity, RectifiedFlow(), predicts="velocity", moments=moments)
    mine = SBIPosterior(model, "context", steps=30).log_prob(points, seen)
    yield Result("sbi", "log_prob of FMPE's network, nats", apart(theirs, mine), 1e-3)


TASKS: dict[str, tuple[str | None, Callable[[], Iterator[Result]]]] = {
    "score_sde": (None, from_score_sde),
    "diffusers": ("diffusers", from_diffusers_tasks),
    "azula": ("azula", from_azula),
    "k-diffusion": ("k_diffusion", from_k_diffusion),
    "torchcfm": ("torchcfm", from_torchcfm),
    "sbi": ("sbi", from_sbi),
}


def run(names: Sequence[str]) -> tuple[list[Result], dict[str, str]]:
    """Return the results of every library that is here, and its version or why it has none."""
    results: list[Result] = []
    about: dict[str, str] = {}
    for name in names:
        package, tasks = TASKS[name]
        if package is None:
            about[name] = "not run: its formulas alone"
        elif importlib.util.find_spec(package) is None:
            about[name] = "not installed"
            continue
        else:
            about[name] = importlib.metadata.version(package)
        try:
            results += list(tasks())
        except ImportError as error:
            about[name] = f"cannot be imported: {error}"
    return results, about


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", nargs="*", choices=tuple(TASKS), default=list(TASKS))
    parser.add_argument("--install", action="store_true", help=f"install what is missing into {FOLDER}")
    add_record(parser, "coming_from")
    options = parser.parse_args()
    if options.install and not FOLDER.is_dir():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(FOLDER), *WANTED]
        subprocess.run(command, check=True)
    sys.path.append(str(FOLDER.resolve()))
    warnings.filterwarnings("ignore", module="sbi|diffusers|zuko|torchdiffeq|torchsde")
    torch.set_num_threads(1)
    results, about = run(options.peers)
    for name, state in about.items():
        print(f"{name}: {state}")
    print(f"\n{'library':12} {'task':55} {'largest difference':>18} {'at most':>8}")
    for result in results:
        state = "" if result.held else "  MORE"
        print(f"{result.peer:12} {result.task:55} {result.apart:18.1e} {result.at_most:8.0e}{state}")
    machine = f"{platform.machine()}, one thread, Python {platform.python_version()}, torch {torch.__version__}"
    text = json.dumps({"machine": machine, "about": about, "results": [asdict(one) for one in results]}, indent=1)
    write_record(options.record, text)
    return int(not all(result.held for result in results))


if __name__ == "__main__":
    sys.exit(main())
