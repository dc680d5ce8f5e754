"""What other libraries make of one start state: every sampler of each, on every grid that it offers.

A configuration is a function (ask, z, calls) -> samples, or None where it has no run of so many calls. All start from
the same standard normal z at the top of ``VPSDE()``, and ask the same model: ``ask(x, nu)`` is the prediction of clean
data at a state of variance-preserving scale and noise level nu = sigma/alpha; it counts the calls.

Packages are imported as their users import them, but for two whose ``__init__`` needs torchvision, of which there is no
CPU build here: of k-diffusion and smalldiffusion the module with the samplers is loaded alone.
"""

from __future__ import annotations

import importlib
import math
import subprocess
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from scoresde import VPSDE
from scoresde.models.prediction import Predictor

WANTED = (
    "azula==0.11.1",
    "einops==0.8.1",
    "k-diffusion==0.1.1.post1",
    "flow_matching==1.0.10",
    "smalldiffusion==0.5.0",
)
FOLDER = Path("runs/race/peers")
SDE = VPSDE()
LEVELS = [float(torch.exp(-0.5 * SDE.log_snr(t))) for t in (SDE.t_max, SDE.t_min)]  # nu at the top and at the bottom


@dataclass
class Ask:
    """A model that counts its calls.

    Args:
        model: in its own coordinates, under VPSDE.
    """

    model: Predictor
    calls: int = field(default=0)

    def __call__(self, x: Tensor, nu: float | Tensor) -> Tensor:
        self.calls += 1
        level = min(max(float(torch.as_tensor(nu).reshape(-1)[0]), LEVELS[1]), LEVELS[0])
        point = SDE.at(SDE.time(torch.tensor(-2 * math.log(level), dtype=torch.float64)))
        return self.model.at(x.to(self.model.dtype or x.dtype), point).data.to(x)


Run = Callable[[Ask, Tensor, int], Tensor | None]


@dataclass(frozen=True)
class Configuration:
    """A sampler of a library on a grid.

    Args:
        library: its name.
        name: what it is.
        run: does it.
        usual: whether it is what the library's users get by default, or its documentation's first choice.
        noise: whether it draws noise.
    """

    library: str
    name: str
    run: Run
    usual: bool = False
    noise: bool = False

    def __str__(self) -> str:
        return f"{self.library} {self.name}"


def install() -> None:
    """Install what the project's environment lacks into a folder of its own, and put it on the path."""
    if not (FOLDER / "azula").is_dir():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(FOLDER), *WANTED]
        subprocess.run(command, check=True)
    sys.path.append(str(FOLDER.resolve()))


def load_alone(package: str, module: str, **stubs: object) -> types.ModuleType:
    """Import a module of a package without the package's own ``__init__``."""
    if package not in sys.modules:
        bare = types.ModuleType(package)
        bare.__path__ = [str((FOLDER / package).resolve())]
        sys.modules[package] = bare
    for name, value in stubs.items():
        stub = types.ModuleType(f"{package}.{name}")
        vars(stub).update(value)
        sys.modules[f"{package}.{name}"] = stub
        setattr(sys.modules[package], name, stub)
    return importlib.import_module(f"{package}.{module}")


def scaled(nu: float | Tensor) -> float:
    """Return sqrt(1 + nu^2), by which a state with alpha = 1 is larger than one of variance-preserving scale."""
    return math.sqrt(1 + float(nu) ** 2)


def list_all() -> dict[str, list[Configuration] | str]:
    """Return the configurations of every library, or why it has none."""
    install()
    found: dict[str, list[Configuration] | str] = {}
    makers = {
        "azula": from_azula,
        "diffusers": from_diffusers,
        "flow_matching": from_flow_matching,
        "k-diffusion": from_k_diffusion,
        "smalldiffusion": from_smalldiffusion,
        "torchdiffeq": from_torchdiffeq,
        "torchsde": from_torchsde,
    }
    for name, make in makers.items():
        try:
            found[name] = list(make())
        except ImportError as error:
            found[name] = f"cannot be imported: {error}"
    return found


def from_azula() -> Iterator[Configuration]:
    from azula import sample as samplers
    from azula.denoise import Denoiser, DiracPosterior
    from azula.noise import Schedule

    class Clock(Schedule):
        """The diffusion at a time that some function of a uniform one gives."""

        def __init__(self, levels: Callable[[Tensor], Tensor], start: float) -> None:
            super().__init__()
            self.levels, self.start = levels, start

        def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
            nu = self.levels(t.double())
            return (1 / (1 + nu**2).sqrt()).to(t), (nu / (1 + nu**2).sqrt()).to(t)

    class Asked(Denoiser):
        def __init__(self, ask: Ask, clock: Clock) -> None:
            super().__init__()
            self.ask, self.schedule = ask, clock

        def forward(self, x_t: Tensor, t: Tensor, **kwargs: object) -> object:
            alpha, sigma = self.schedule(t)
            return DiracPosterior(mean=self.ask(x_t, sigma / alpha))

    top, bottom = LEVELS
    u = [nu / (1 + nu) for nu in LEVELS]
    ends = {"to log_snr 14": bottom, "to log_snr 8.5": math.exp(-4.25), "to log_snr 5.5": math.exp(-2.75)}

    def clocks(end: float) -> dict[str, Callable[[Tensor], Tensor]]:
        low, high = math.log(end), math.log(top)
        last = end / (1 + end)

        def of_time(t: Tensor) -> Tensor:
            first = float(SDE.time(torch.tensor(-2 * low, dtype=torch.float64)))
            return torch.exp(-0.5 * SDE.log_snr(first + t * (1 - first)))

        def of_u(t: Tensor) -> Tensor:
            level = last + t * (u[0] - last)
            return level / (1 - level)

        return {
            "t": of_time,
            "t squared": lambda t: of_time(t**2),
            "log sigma": lambda t: torch.exp(low + t * (high - low)),
            "rectified": of_u,
            "rectified squared": lambda t: of_u(t**2),
        }

    kinds: list[tuple[str, type, dict[str, int], int]] = [
        ("DDIM", samplers.DDIMSampler, {}, 1),
        ("Heun", samplers.HeunSampler, {}, 2),
        *((f"{k}{n}", getattr(samplers, f"{k}Sampler"), {"order": n}, 1) for k in ("zAB", "vAB") for n in (2, 3)),
        *((f"{k}{n}", getattr(samplers, f"{k}Sampler"), {"order": n}, 1) for k in ("zEAB", "xEAB") for n in (2, 3)),
        ("REAB2", samplers.REABSampler, {"order": 2}, 1),
    ]

    def make(kind: type, options: dict[str, int], cost: int, levels: Callable[[Tensor], Tensor]) -> Run:
        def run(ask: Ask, z: Tensor, calls: int) -> Tensor | None:
            steps, rest = divmod(calls - 1, cost)
            if rest or steps < 1:
                return None
            clock = Clock(levels, top)
            denoiser = Asked(ask, clock)
            sampler = kind(denoiser, steps=steps, silent=True, dtype=torch.float64, start=1.0, stop=0.0, **options)
            x = sampler(z)
            # The last call gives clean data, as the library's tutorials do for few steps.
            return ask(x, levels(torch.zeros((), dtype=torch.float64)))

        return run

    for end, level in ends.items():
        for clock, levels in clocks(level).items():
            for name, kind, options, cost in kinds:
                usual = name == "DDIM" and clock == "t" and level == bottom
                yield Configuration("azula", f"{name}, {clock}, {end}", make(kind, options, cost, levels), usual)
    for name, kind in (("DDPM", samplers.DDPMSampler), ("Ito", samplers.ItoSampler)):
        levels = clocks(bottom)["t"]
        yield Configuration("azula", f"{name}, t", make(kind, {}, 1, levels), noise=True)


def from_diffusers() -> Iterator[Configuration]:
    import diffusers

    diffusers.utils.logging.set_verbosity_error()
    grid = torch.arange(0, 1001, dtype=torch.float64) / 1000
    log_alpha = SDE.at(grid.clamp_min(1e-12)).alpha.log()
    betas = (1 - torch.exp(2 * log_alpha.diff())).clamp(0, 0.999).tolist()  # so that step i is at t = (i + 1)/1000
    shared = {"trained_betas": betas, "num_train_timesteps": 1000}

    def make(kind: type, options: dict[str, object], cost: int) -> Run:
        def run(ask: Ask, z: Tensor, calls: int) -> Tensor | None:
            steps = calls if cost == 1 else (calls + 1) // 2
            if calls != (steps if cost == 1 else 2 * steps - 1):
                return None
            scheduler = kind(**shared, prediction_type="epsilon", **options)
            scheduler.set_timesteps(steps)
            x = z * scheduler.init_noise_sigma
            first = ask.calls
            for t in scheduler.timesteps:
                given = scheduler.scale_model_input(x, t)
                nu = _level_of(scheduler, t)
                # Schedulers without a scaling of their own keep the variance-preserving state.
                noise = (given * scaled(nu) - ask(given, nu)) / nu
                x = scheduler.step(noise, t, x).prev_sample
            return x if ask.calls - first == calls else None

        return run

    spaced = [{"timestep_spacing": kind} for kind in ("linspace", "trailing", "leading")]
    sigmas = [{f"use_{kind}_sigmas": True} for kind in ("karras", "exponential", "beta")]
    ended = {"final_sigmas_type": "zero"}
    plans: list[tuple[str, type, list[dict[str, object]], list[dict[str, object]], int, bool]] = [
        ("DDIM", diffusers.DDIMScheduler, [{"clip_sample": False, "set_alpha_to_one": True}], spaced, 1, True),
        ("DEIS", diffusers.DEISMultistepScheduler, [{"solver_order": n} for n in (2, 3)], [*spaced, *sigmas], 1, False),
        (
            "DPM++",
            diffusers.DPMSolverMultistepScheduler,
            [{"solver_order": n, **ended} for n in (2, 3)] + [{"solver_order": 2, "euler_at_final": True, **ended}],
            [*spaced, *sigmas, {"use_lu_lambdas": True}],
            1,
            False,
        ),
        (
            "UniPC",
            diffusers.UniPCMultistepScheduler,
            [{"solver_order": n, "solver_type": kind, **ended} for n in (2, 3) for kind in ("bh1", "bh2")],
            [*spaced, *sigmas],
            1,
            False,
        ),
        ("Euler", diffusers.EulerDiscreteScheduler, [{}], [*spaced, *sigmas], 1, False),
        ("Heun", diffusers.HeunDiscreteScheduler, [{}], [*spaced, *sigmas], 2, False),
        ("LMS", diffusers.LMSDiscreteScheduler, [{}], [*spaced, *sigmas], 1, False),
        ("KDPM2", diffusers.KDPM2DiscreteScheduler, [{}], [*spaced, *sigmas], 2, False),
    ]
    for name, kind, choices, levels, cost, usual in plans:
        for choice in choices:
            for level in levels:
                options = {**choice, **level}
                shown = ", ".join(f"{key}={value}" for key, value in options.items() if key not in ended)
                first = usual and level == spaced[0]
                yield Configuration("diffusers", f"{name}({shown})", make(kind, options, cost), first)
    yield Configuration("diffusers", "DDPM", make(diffusers.DDPMScheduler, {"clip_sample": False}, 1), noise=True)
    yield Configuration(
        "diffusers",
        "SDE-DPM++ 2M(use_karras_sigmas)",
        make(
            diffusers.DPMSolverMultistepScheduler,
            {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True, **ended},
            1,
        ),
        noise=True,
    )


def _level_of(scheduler: object, t: Tensor) -> float:
    """Return sigma/alpha at which a scheduler asks at its timestep."""
    if getattr(scheduler, "sigmas", None) is None or "DDIM" in type(scheduler).__name__:
        kept = float(scheduler.alphas_cumprod[int(t)])
        return math.sqrt((1 - kept) / kept)
    if scheduler.step_index is None:
        scheduler._init_step_index(t)
    index = scheduler.step_index
    if not getattr(scheduler, "state_in_first_order", True) and hasattr(scheduler, "sigmas_interpol"):
        return float(scheduler.sigmas_interpol[index])
    return float(scheduler.sigmas[index])


def from_k_diffusion() -> Iterator[Configuration]:
    def append_dims(x: Tensor, count: int) -> Tensor:
        return x[(..., *[None] * (count - x.ndim))]

    k = load_alone("k_diffusion", "sampling", utils={"append_dims": append_dims})
    top, bottom = LEVELS
    ends = {"to log_snr 14": bottom, "to log_snr 8.5": math.exp(-4.25), "to log_snr 5.5": math.exp(-2.75)}

    def grids(low: float) -> dict[str, Callable[[int], Tensor]]:
        return {
            "karras": lambda n: k.get_sigmas_karras(n, low, top),
            "karras 3": lambda n: k.get_sigmas_karras(n, low, top, rho=3.0),
            "exponential": lambda n: k.get_sigmas_exponential(n, low, top),
            "polyexponential 0.7": lambda n: k.get_sigmas_polyexponential(n, low, top, rho=0.7),
            "polyexponential 1.5": lambda n: k.get_sigmas_polyexponential(n, low, top, rho=1.5),
        }

    kinds: list[tuple[str, Callable[..., Tensor], dict[str, int], bool, bool]] = [
        ("euler", k.sample_euler, {}, False, False),
        ("heun", k.sample_heun, {}, True, False),
        ("dpm_2", k.sample_dpm_2, {}, True, False),
        *((f"lms {n}", k.sample_lms, {"order": n}, False, False) for n in (2, 3, 4)),
        ("dpmpp_2m", k.sample_dpmpp_2m, {}, False, False),
    ]
    noisy = [
        ("euler_ancestral", k.sample_euler_ancestral, {}, False, True),
        ("dpmpp_2m_sde", k.sample_dpmpp_2m_sde, {}, False, True),
        ("dpmpp_3m_sde", k.sample_dpmpp_3m_sde, {}, False, True),
    ]

    def make(act: Callable[..., Tensor], options: dict[str, int], twice: bool, grid: Callable[[int], Tensor]) -> Run:
        def run(ask: Ask, z: Tensor, calls: int) -> Tensor | None:
            if twice and calls % 2 == 0:
                return None
            sigmas = grid((calls + 1) // 2 if twice else calls).to(z)
            if len(sigmas) < 3:
                return None

            def model(x: Tensor, sigma: Tensor, **_: object) -> Tensor:
                nu = float(sigma.reshape(-1)[0])
                return ask(x / scaled(nu), nu)

            return act(model, z * scaled(sigmas[0]), sigmas, disable=True, **options)

        return run

    for end, low in ends.items():
        for grid, levels in grids(low).items():
            for name, act, options, twice, _ in kinds:
                usual = name == "dpmpp_2m" and grid == "karras" and low == bottom
                yield Configuration("k-diffusion", f"{name}, {grid}, {end}", make(act, options, twice, levels), usual)
    for name, act, options, twice, _ in noisy:
        levels = grids(bottom)["karras"]
        yield Configuration("k-diffusion", f"{name}, karras", make(act, options, twice, levels), noise=True)


def _rectified(ask: Ask) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the velocity of (1 - u) x_0 + u z in u, at a state of that scale."""

    def velocity(u: Tensor, x: Tensor) -> Tensor:
        level = max(float(u), LEVELS[1] / (1 + LEVELS[1]))  # as far as the model goes
        nu = level / (1 - level)
        data = ask(x / math.hypot(1 - level, level), nu)
        return (x - (1 - level) * data) / level - data

    return velocity


def from_flow_matching() -> Iterator[Configuration]:
    from flow_matching.solver import ODESolver

    top = LEVELS[0] / (1 + LEVELS[0])
    grids: dict[str, Callable[[int], Tensor]] = {
        "uniform": lambda n: torch.linspace(1 - top, 1.0, n + 1, dtype=torch.float64),
        "squared": lambda n: 1 - top * (1 - torch.linspace(0, 1, n + 1, dtype=torch.float64)) ** 2,
        "power 1.5": lambda n: 1 - top * (1 - torch.linspace(0, 1, n + 1, dtype=torch.float64)) ** 1.5,
    }

    def make(method: str, cost: int, grid: Callable[[int], Tensor]) -> Run:
        def run(ask: Ask, z: Tensor, calls: int) -> Tensor | None:
            steps, rest = divmod(calls, cost)
            if rest or not steps:
                return None
            velocity = _rectified(ask)

            def model(x: Tensor, t: Tensor, **_: object) -> Tensor:
                return -velocity(1 - t, x)

            times = grid(steps)
            start = z * math.hypot(1 - top, top)
            out = ODESolver(velocity_model=model).sample(start, step_size=None, method=method, time_grid=times)
            return out if ask.calls % calls == 0 else None

        return run

    for method, cost in (("euler", 1), ("midpoint", 2), ("heun2", 2), ("heun3", 3), ("rk4", 4)):
        for grid, times in grids.items():
            usual = method == "midpoint" and grid == "uniform"
            yield Configuration("flow_matching", f"{method}, {grid}", make(method, cost, times), usual)


def from_torchdiffeq() -> Iterator[Configuration]:
    from torchdiffeq import odeint

    def make(method: str, cost: int, clock: str) -> Run:
        def run(ask: Ask, z: Tensor, calls: int) -> Tensor | None:
            steps, rest = divmod(calls - 1, cost)
            if rest or steps < 1:
                return None

            def by_time(t: Tensor, x: Tensor) -> Tensor:
                point = SDE.at(t.clamp(SDE.t_min, SDE.t_max))
                alpha, sigma = float(point.alpha), float(point.sigma)
                data = ask(x, sigma / alpha)
                noise = (x - alpha * data) / sigma
                beta = float(SDE.beta(t))
                return -0.5 * beta * (x - noise / sigma)

            def by_log(s: Tensor, y: Tensor) -> Tensor:
                nu = math.exp(float(s))
                return y - ask(y / scaled(nu), nu)  # dy/d(log nu) = nu * noise

            if clock == "t":
                times = torch.linspace(SDE.t_max, SDE.t_min, steps + 1, dtype=torch.float64)
                out, level = odeint(by_time, z, times, method=method)[-1], LEVELS[1]
            else:
                times = torch.linspace(math.log(LEVELS[0]), math.log(LEVELS[1]), steps + 1, dtype=torch.float64)
                out = odeint(by_log, z * scaled(LEVELS[0]), times, method=method)[-1]
                level = LEVELS[1]
                out = out / scaled(level)
            return ask(out, level)

        return run

    for method, cost in (("euler", 1), ("midpoint", 2), ("heun3", 3), ("rk4", 4)):
        for clock in ("t", "log sigma"):
            usual = method == "rk4" and clock == "t"
            yield Configuration("torchdiffeq", f"{method}, {clock}", make(method, cost, clock), usual)


def from_torchsde() -> Iterator[Configuration]:
    import torchsde

    class Backward(torch.nn.Module):
        noise_type, sde_type = "diagonal", "ito"

        def __init__(self, ask: Ask, shape: torch.Size) -> None:
            super().__init__()
            self.ask, self.shape = ask, shape

        def f(self, s: Tensor, x: Tensor) -> Tensor:
            t = (SDE.t_max - s.double()).clamp(SDE.t_min, SDE.t_max)
            point = SDE.at(t)
            alpha, sigma = float(point.alpha), float(point.sigma)
            data = self.ask(x.reshape(self.shape), sigma / alpha).flatten(1)
            score = -(x - alpha * data) / sigma**2
            beta = float(SDE.beta(t))
            return beta * (0.5 * x + score)

        def g(self, s: Tensor, x: Tensor) -> Tensor:
            return float(SDE.beta((SDE.t_max - s.double()).clamp(SDE.t_min, SDE.t_max))) ** 0.5 * torch.ones_like(x)

    def run(ask: Ask, z: Tensor, calls: int) -> Tensor | None:
        if calls < 3:  # it asks at both ends of its steps, and we once more
            return None
        times = torch.tensor([0.0, SDE.t_max - SDE.t_min])
        step = float(times[1]) / (calls - 2) * (1 + 1e-3)
        out = torchsde.sdeint(Backward(ask, z.shape), z.flatten(1), times, method="euler", dt=step)[-1]
        return ask(out.reshape(z.shape), LEVELS[1])

    yield Configuration("torchsde", "euler, t", run, usual=True, noise=True)


def from_smalldiffusion() -> Iterator[Configuration]:
    module = load_alone("smalldiffusion", "diffusion")
    top, bottom = LEVELS

    class Asked(torch.nn.Module):
        def __init__(self, ask: Ask, shape: tuple[int, ...]) -> None:
            super().__init__()
            self.ask, self.shape = ask, shape

        def rand_input(self, batch: int) -> Tensor:
            return torch.randn((batch, *self.shape))

        def predict_eps_cfg(self, x: Tensor, sigma: Tensor, cond: object, scale: float) -> Tensor:
            nu = float(sigma)
            return (x - self.ask(x / scaled(nu), nu)) / nu

    log = module.ScheduleLogLinear(N=1000, sigma_min=bottom, sigma_max=top)
    ddpm = module.Schedule(torch.exp(-0.5 * SDE.log_snr(torch.linspace(SDE.t_min, 1.0, 1000, dtype=torch.float64))))
    grids = {"log-linear": log, "ddpm": ddpm}

    def make(schedule: object, gam: float, mu: float) -> Run:
        def run(ask: Ask, z: Tensor, calls: int) -> Tensor | None:
            sigmas = schedule.sample_sigmas(calls).double()
            sigmas[-1] = 0.0  # the last step gives clean data
            asked = Asked(ask, tuple(z.shape[1:]))
            accelerator = types.SimpleNamespace(device=z.device)
            *_, x = module.samples(
                asked, sigmas, gam=gam, mu=mu, batchsize=len(z), xt=z * scaled(sigmas[0]), accelerator=accelerator
            )
            return x

        return run

    for name, schedule in grids.items():
        for gam in (1.0, 1.5, 2.0):
            usual = name == "log-linear" and gam == 2.0
            yield Configuration("smalldiffusion", f"gam={gam:g}, {name}", make(schedule, gam, 0.0), usual)
        yield Configuration("smalldiffusion", f"mu=0.5, {name}", make(schedule, 1.0, 0.5), noise=True)


warnings.filterwarnings("ignore", module="diffusers|torchdiffeq|torchsde|azula")
