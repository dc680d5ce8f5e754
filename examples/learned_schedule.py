"""A forward process that is learned: log-SNR as a network of time, trained beside the score of handwritten digits.

Between equal ends the bound on -log p does not depend on the schedule; the variance of its estimate does. The picture
has that variance for a draw of one digit, one time and one noise, while the network learns: under the schedule as it
stands, under three fixed ones between the same ends, and the least that any schedule could have. All of them are
figures of the same network. Beside it are the curves.

Run: python examples/learned_schedule.py [--quick] [--out PICTURE]      (under two minutes on two cores)
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from scoresde import (
    VPSDE,
    CosineVPSDE,
    Dequantise,
    GaussianSDE,
    LearnedSchedule,
    ScoreModel,
    TabulatedSDE,
    continuous_elbo,
    denoising_score_matching,
    fit,
    plots,
)
from scoresde.data import digits
from scoresde.nn import MLP
from scoresde.noise import normal, stream

STYLES = {
    "linear log-SNR": ("#E69F00", "--"),
    "VPSDE": ("#CC79A7", "-."),
    "CosineVPSDE": ("#009E73", (0, (5, 1, 1, 1, 1, 1))),
    "learned": ("#0072B2", "-"),
    "the least of all": ("#444444", ":"),
}


def schedules(learned: LearnedSchedule) -> dict[str, GaussianSDE]:
    """Return the learned schedule and fixed ones between its ends."""
    low, high = learned.ends.tolist()
    fixed = {
        kind.__name__: kind(t_min=float(kind().time(high)), t_max=float(kind().time(low)))
        for kind in (VPSDE, CosineVPSDE)
    }
    straight = TabulatedSDE(*torch.tensor([[1e-5, 1.0], [high, low]], dtype=torch.float64))
    return {"linear log-SNR": straight, **fixed, "learned": learned}


@torch.no_grad()
def measure_errors(model: ScoreModel, x0: Tensor, places: Tensor) -> Tensor:
    """Return e = |z - z_hat|^2/D of data at some log-SNR, (P, B)."""
    z = normal(tuple(x0.shape), stream(0, "example"))
    times = model.sde.time(places).clamp(model.sde.t_min, model.sde.t_max)
    return torch.stack([denoising_score_matching(model, x0, weight="simple", t=t, noise=z) for t in times]).double()


def variances(model: ScoreModel, x0: Tensor) -> dict[str, float]:
    """Return the variance of (t_max - t_min) L of one draw under each schedule, in squared nats per coordinate.

    With r = -d log_snr/dt it is (t_max - t_min)/4 int r E[e^2] d log_snr less the square of int E[e] d log_snr/2.
    """
    low, high = model.sde.ends.tolist()
    places = torch.linspace(low, high, 49, dtype=torch.float64)
    errors = measure_errors(model, x0, places)
    mean = 0.5 * torch.trapezoid(errors.mean(1), places)
    second = errors.square().mean(1)
    found = {}
    for name, sde in schedules(model.sde).items():
        t = sde.time(places).clamp(sde.t_min, sde.t_max)
        rate = (sde.diffusion(t) / sde.sigma(t)).square()
        found[name] = float(0.25 * (sde.t_max - sde.t_min) * torch.trapezoid(rate * second, places) - mean**2)
    found["the least of all"] = float((0.5 * torch.trapezoid(second.sqrt(), places)) ** 2 - mean**2)
    return found


def draw(steps: list[int], rows: list[dict[str, float]], learned: LearnedSchedule, path: Path) -> None:
    """Draw the variances against the steps, and the schedules."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11.0, 4.4), layout="constrained")
    for name, (colour, line) in STYLES.items():
        left.plot(steps, [row[name] for row in rows], color=colour, linestyle=line, linewidth=2, label=name)
    left.set(yscale="log", xlabel="step of training", ylabel="variance of one draw [nats$^2$ per coordinate$^2$]")
    left.legend()
    u = torch.linspace(0, 1, 400, dtype=torch.float64)
    for name, sde in schedules(learned).items():
        colour, line = STYLES[name]
        t = sde.t_min + (sde.t_max - sde.t_min) * u
        right.plot(u, sde.log_snr(t), color=colour, linestyle=line, linewidth=2, label=name)
    right.set(xlabel=r"$(t - t_{\mathrm{min}})/(t_{\mathrm{max}} - t_{\mathrm{min}})$", ylabel="log-SNR [nats]")
    right.legend()
    print(f"picture: {plots.save(figure, path)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few seconds: the network has hardly learned")
    parser.add_argument("--out", type=Path, default=Path("runs/examples/learned_schedule.png"))
    options = parser.parse_args()
    steps = 20 if options.quick else 2000

    train, test = digits("train").images, digits("test").images
    spread = Dequantise(17)
    seen = spread.forward(test[: 20 if options.quick else 120], stream(1, "example"))
    model = ScoreModel(MLP((1, 8, 8), width=256, depth=3), LearnedSchedule(low=-9.0, high=12.0))
    taken: list[int] = []
    rows: list[dict[str, float]] = []

    def watch(current: ScoreModel, step: int) -> dict[str, float]:
        taken.append(step)
        rows.append(variances(current, seen))
        return {f"variance, {name}": value for name, value in rows[-1].items()}

    watch(model, 0)
    result = fit(
        model,
        train,
        transform=spread,
        steps=steps,
        batch_size=128,
        learning_rate=2e-3,
        ema_decay=0.99,
        save_every=steps // (4 if options.quick else 20),
        calibrate=False,
        watch=watch,
    )
    learned = result.model.sde
    print(f"{learned} after {steps} steps")
    for name, value in rows[-1].items():
        print(f"variance of one draw, {name}: {value:.3g}")
    for name, sde in schedules(learned).items():
        bound = continuous_elbo(result.model, sde, test[:100], samples=4 if options.quick else 16, seed=0)
        print(f"bound on -log2 p of held-out digits, {name}: {bound.bits_per_dim:.4f} bits a coordinate")
    draw(taken, rows, learned, options.out)


if __name__ == "__main__":
    main()
