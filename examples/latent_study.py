"""A deterministic autoencoder and three laws of its codes: a Gaussian, a mixture of Gaussians, a diffusion.

Digits of 8 x 8 and colour patches of 16 x 16 are encoded to a few numbers. A plain autoencoder has no law of codes; to
sample from it one is fitted: a Gaussian, a mixture of Gaussians whose number is chosen by codes that were held out, and
a diffusion, which is stopped by the same codes. Judged are the codes' density at codes of test data, and the samples,
decoded. Then an attribute is asked for, the digit, or how bright and how rich in contrast a patch is: of the mixture by
the share of the attribute in each of its components, and by a mixture for each value; of the diffusion by its
condition. The picture shows where in the space of codes one value lies, and what is found there.

Run: python examples/latent_study.py [--quick] [--out PICTURE]      (two minutes on two cores)
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn

from scoresde import VPSDE, EncoderDecoder, Latent, ScoreModel, fit, guided, log_likelihood, plots, sample
from scoresde.data import digits, photographs
from scoresde.metrics import frechet_distance, sliced_wasserstein
from scoresde.metrics.digits import DigitJudge
from scoresde.nn import MLP
from scoresde.noise import integers, normal, stream, uniform
from scoresde.training import fit_autoencoder

COLUMNS = 8


@dataclass(frozen=True)
class Effort:
    """Steps of the autoencoder and of the diffusion, numbers of Gaussians to try, patches, seeds, densities."""

    steps: tuple[int, int] = (1200, 800)
    counts: tuple[int, ...] = (1, 4, 16, 48)
    patches: int = 3000
    seeds: int = 2
    densities: int = 100


class Plain(EncoderDecoder):
    """A fully connected autoencoder of events, trained on their squared error."""

    def __init__(self, event: tuple[int, ...], codes: int, width: int = 256) -> None:
        size = math.prod(event)
        super().__init__(
            nn.Sequential(nn.Flatten(), nn.Linear(size, width), nn.SiLU(), nn.Linear(width, codes)),
            nn.Sequential(nn.Linear(codes, width), nn.SiLU(), nn.Linear(width, size), nn.Unflatten(1, event)),
        )
        for k, layer in enumerate(part for part in self.modules() if isinstance(part, nn.Linear)):
            layer.weight.data = normal(tuple(layer.weight.shape), stream(k, "plain")) / layer.in_features**0.5
            nn.init.zeros_(layer.bias)

    def losses(self, x: Tensor, generator: torch.Generator) -> Tensor:
        return (self.decode(self.posterior(x)[0]) - x).square().flatten(1).sum(1)


@dataclass(frozen=True)
class Subject:
    """What is studied: data with an attribute, how an image shows it, and the features of the Frechet distance."""

    name: str
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    values: tuple[str, ...]
    codes: int
    features: Callable[[Tensor], Tensor]
    see: Callable[[Tensor], Tensor]
    shown: int  # the value whose place is drawn


def study_digits() -> Subject:
    judge, train = DigitJudge.train(), digits()

    def see(x: Tensor) -> Tensor:
        return torch.from_numpy(judge.classifier.predict(x.flatten(1).double().numpy()))

    sets = (train.images, train.labels), (judge.test.images, judge.test.labels)
    return Subject("digits", *sets, tuple("0123456789"), 8, judge.features, see, 3)


def study_patches(count: int) -> Subject:
    train, test = photographs(16, count).images, photographs(16, count // 4, seed=1).images
    grey = train.mean(1).flatten(1)
    middle = grey.mean(1).median(), grey.std(1).median()

    def see(x: Tensor) -> Tensor:
        grey = x.mean(1).flatten(1)
        return (grey.mean(1) > middle[0]).long() * 2 + (grey.std(1) > middle[1]).long()

    def features(x: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(x, 4).flatten(1)

    values = "dark, even", "dark, textured", "bright, even", "bright, textured"
    return Subject("patches", (train, see(train)), (test, see(test)), values, 16, features, see, 1)


def fit_mixture(codes: Tensor, held_out: Tensor, counts: tuple[int, ...]) -> GaussianMixture:
    """Return the mixture of as many Gaussians as give held-out codes the highest density."""
    fitted = [
        GaussianMixture(k, reg_covar=1e-4, random_state=0).fit(codes.double().numpy())
        for k in counts
        if 20 * k <= len(codes)
    ]
    return max(fitted, key=lambda mixture: mixture.score(held_out.double().numpy()))


def draw_mixture(mixture: GaussianMixture, n: int, seed: int, weights: np.ndarray | None = None) -> Tensor:
    """Draw codes of a mixture, of its own weights or of others."""
    total = torch.from_numpy(mixture.weights_ if weights is None else weights).cumsum(0)
    generator = stream(seed, "mixture")
    k = torch.searchsorted(total / total[-1], uniform((n,), generator, dtype=torch.float64)).clamp_max(len(total) - 1)
    roots = torch.linalg.cholesky(torch.from_numpy(mixture.covariances_))[k]
    z = normal((n, roots.shape[-1]), generator, dtype=torch.float64)
    return (torch.from_numpy(mixture.means_)[k] + (roots @ z[..., None])[..., 0]).float()


def study(subject: Subject, effort: Effort) -> dict[str, object]:
    """Fit everything, print the figures, and return what is drawn."""
    (x, label), (others, wanted) = subject.train, subject.test
    autoencoder = Plain(tuple(x.shape[1:]), subject.codes)
    fit_autoencoder(autoencoder, x, steps=effort.steps[0], batch_size=128)
    latent = Latent.standardise(autoencoder, x)
    y, there = latent.encode(x), latent.encode(others)

    held = torch.zeros(len(y), dtype=torch.bool)
    held[::5] = True
    gaussian = fit_mixture(y, y[held], (1,))
    mixture = fit_mixture(y[~held], y[held], effort.counts)
    each = [
        fit_mixture(y[~held & (label == v)], y[held & (label == v)], effort.counts) for v in range(len(subject.values))
    ]
    model = fit(
        ScoreModel(MLP(subject.codes, width=256, depth=3, classes=len(subject.values)), VPSDE(), predicts="v"),
        y[~held],
        cond={"label": label[~held]},
        label_dropout=0.2,
        held_out=y[held],
        held_out_cond={"label": label[held]},
        steps=effort.steps[1],
        save_every=max(1, effort.steps[1] // 20),
        patience=5,
        batch_size=128,
        learning_rate=2e-3,
        ema_decay=0.995,
        calibrate=False,
    ).model

    none = {"label": torch.tensor(-1)}
    print(f"{subject.name}: {y.shape[1]} numbers a code; a mixture of {mixture.n_components} Gaussians")
    some = there[: effort.densities]
    density = log_likelihood(model, some, cond=none, seed=0)
    nats = {
        "Gaussian": gaussian.score(some.double().numpy()),
        "mixture": mixture.score(some.double().numpy()),
    }
    for name, value in {**nats, "diffusion": float(density.values.mean())}.items():
        print(f"{subject.name}, log density of test codes, {name}: {value:.2f} nats")

    n = len(others)
    laws: dict[str, Callable[[int], Tensor]] = {
        "real codes": lambda seed: there,
        "Gaussian": lambda seed: draw_mixture(gaussian, n, seed),
        "mixture": lambda seed: draw_mixture(mixture, n, seed),
        "diffusion": lambda seed: sample(model, n, cond=none, steps=25, seed=seed),
    }
    rows = {}
    for name, law in laws.items():
        drawn = [latent.inverse(law(seed)) for seed in range(effort.seeds)]
        rows[name] = drawn[0][integers(n, (COLUMNS,), stream(1, "shown"))]
        report(
            subject, name, "Frechet", [frechet_distance(subject.features(d), subject.features(others)) for d in drawn]
        )
        report(subject, name, "sliced W2", [sliced_wasserstein(d, others) for d in drawn])
    spare = x[integers(len(x), (n,), stream(0, "spare"))]
    floor = frechet_distance(subject.features(spare), subject.features(others)), sliced_wasserstein(spare, others)
    print(f"{subject.name}, as many training images: Frechet {floor[0]:.3f}, sliced W2 {floor[1]:.3f}")

    shares = np.stack(
        [mixture.predict_proba(y[label == v].double().numpy()).sum(0) for v in range(len(subject.values))]
    )
    told = wanted if len(wanted) < 1000 else wanted[:1000]

    def by_value(draw: Callable[[int, int], Tensor]) -> Tensor:
        """Return codes for the values ``told``, each drawn by (value, count)."""
        out = torch.empty(len(told), y.shape[1])
        for v in range(len(subject.values)):
            out[told == v] = draw(v, int((told == v).sum()))
        return out

    stronger = guided(model, 2.0)
    asked: dict[str, Callable[[int], Tensor]] = {
        "real codes": lambda seed: there[: len(told)],
        "mixture, by components": lambda s: by_value(lambda v, n: draw_mixture(mixture, n, 10 * s + v, shares[v])),
        "mixture for each value": lambda s: by_value(lambda v, n: draw_mixture(each[v], n, 10 * s + v)),
        "diffusion": lambda seed: sample(model, len(told), cond={"label": told}, steps=25, seed=seed),
        "diffusion, guided": lambda seed: sample(stronger, len(told), cond={"label": told}, steps=25, seed=seed),
    }
    found = {}
    for name, law in asked.items():
        codes = [law(seed) for seed in range(effort.seeds)]
        drawn, found[name] = [latent.inverse(z) for z in codes], codes[0][told == subject.shown]
        report(subject, f"{name}, asked for", "shown", [float((subject.see(d) == told).double().mean()) for d in drawn])
        report(subject, f"{name}, asked for", "sliced W2", [within(d, others, told, wanted) for d in drawn])
        rows[f"{name}: {subject.values[subject.shown]}"] = drawn[0][told == subject.shown][:COLUMNS]
    return {"codes": y, "found": found, "rows": rows}


def within(drawn: Tensor, others: Tensor, told: Tensor, wanted: Tensor) -> float:
    """Return the mean over the values of the distance to test images of that value."""
    values = told.unique()
    return float(sum(sliced_wasserstein(drawn[told == v], others[wanted == v]) for v in values) / len(values))


def report(subject: Subject, name: str, what: str, values: list[float]) -> None:
    found = torch.tensor(values, dtype=torch.float64)
    spread = f" +- {found.std():.3f}" if len(found) > 1 and float(found.std()) > 5e-4 else ""
    print(f"{subject.name}, {name}: {what} {found.mean():.3f}{spread}")


def draw(studies: list[tuple[Subject, dict[str, object]]], path: Path) -> None:
    """Draw where one value of the attribute lies, on the two main axes of the codes, and samples."""
    shown = "real codes", "mixture, by components", "diffusion"
    figure, panels = plt.subplots(
        len(studies), 4, figsize=(15.0, 3.9 * len(studies)), layout="constrained", width_ratios=(1, 1, 1, 1.5)
    )
    for axes, (subject, found) in zip(panels, studies, strict=True):
        codes = found["codes"]
        axis = torch.linalg.svd(codes - codes.mean(0), full_matrices=False)[2][:2].T
        for panel, name in zip(axes, shown, strict=False):
            panel.scatter(*(codes[:1500] @ axis).T, s=3, color="#BBBBBB", linewidths=0, label="training codes")
            at = found["found"][name][:200] @ axis
            panel.scatter(*at.T, s=14, color="#D55E00", marker="x", linewidths=0.9, label=subject.values[subject.shown])
            panel.set(title=f"{subject.name}: {name}", xlabel="first axis of the codes", ylabel="second axis")
        axes[0].legend(loc="best", framealpha=0.8)
        rows = found["rows"]
        mosaic = torch.cat([torch.cat(list(row), -1) for row in rows.values()], -2).clamp(-1, 1).add(1).div(2)
        axes[3].imshow(mosaic.permute(1, 2, 0).squeeze(-1), cmap="gray", vmin=0, vmax=1)
        side = next(iter(rows.values())).shape[-1]
        for k in range(1, max(COLUMNS, len(rows))):
            if k < COLUMNS:
                axes[3].axvline(side * k - 0.5, color="white", linewidth=1.4)
            if k < len(rows):
                axes[3].axhline(side * k - 0.5, color="white", linewidth=1.4)
        axes[3].set_yticks([side * (k + 0.5) - 0.5 for k in range(len(rows))], list(rows))
        axes[3].yaxis.tick_right()
        axes[3].set_xticks([])
        axes[3].set_title(f"{subject.name}, decoded")
    print(f"picture: {plots.save(figure, path)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few seconds: the networks have hardly learned")
    parser.add_argument("--out", type=Path, default=Path("runs/examples/latent_study.png"))
    options = parser.parse_args()
    effort = Effort((10, 10), (1, 2), 400, 1, 10) if options.quick else Effort()
    subjects = study_digits(), study_patches(effort.patches)
    draw([(one, study(one, effort)) for one in subjects], options.out)


if __name__ == "__main__":
    main()
