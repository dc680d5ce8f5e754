"""Digits after ten minutes of training: the demo's recipe, and changes of it that cost the same time.

Every recipe trains the demo's network (that of ``scoresde train --data digits --conditional``) on 1293 of the training
digits for equally many steps, by default 14 000: 9.1 minutes at the demo's 39 ms on two free cores. What a step of each
takes is measured beside, in turns. The other 144 choose: of a recipe that keeps power-function averages, the width
whose bound is best. Then each is judged once by the 360 test digits: bits per dimension of the levels (an upper bound,
given the class), and the squared Frechet distance of ``--samples`` drawings to them in the features of the digits'
judge. The floor is what all training digits measure. Standard errors are those of the choice of test digits (a
jackknife over 24 groups; of differences too, in which most of it cancels), not of the choice of a training's seed;
beside them the spread over three draws of the noise.

Run: python benchmarks/digits_ten_minutes.py [--only RECIPE ...] [--steps 14000] [--samples 5000] [--pilot] [--quick]
     [--record]
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from record import add_record, write_record
from torch import Tensor

from scoresde import VPSDE, Dequantisation, LevelsDecoder, Moments, ScoreModel, continuous_elbo, fit, sample
from scoresde.data import LabelledImages, digits
from scoresde.metrics import frechet_distance
from scoresde.metrics.digits import DigitJudge
from scoresde.nn import UNet
from scoresde.noise import integers, permutation, stream
from scoresde.training import rebuild_average

STEPS, BATCH, RATE = 14_000, 64, 2e-3
KEPT, WIDTHS = (0.05, 0.1), (0.02, 0.05, 0.1, 0.15)
GROUPS, SEEDS = 24, (0, 1, 2)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What differs from the demo's.

    Args:
        dropout: of the network.
        shifted: share of the digits that are moved by a pixel; the network is told by how much, and 0 in use.
        averages: keep power-function averages and choose their width, in the place of the demo's exponential one.
    """

    dropout: float = 0.0
    shifted: float = 0.0
    averages: bool = False

    def told(self, labels: Tensor) -> dict[str, Tensor]:
        """Return the conditions under which digits of these classes are drawn and judged."""
        return {"label": labels, **({"context": torch.zeros(len(labels), 2)} if self.shifted else {})}


RECIPES: Mapping[str, Recipe] = {
    "demo": Recipe(),
    "dropout 0.1": Recipe(dropout=0.1, averages=True),
    "dropout 0.2": Recipe(dropout=0.2, averages=True),
    "shifts": Recipe(shifted=0.5, averages=True),
    "dropout 0.1, shifts": Recipe(dropout=0.1, shifted=0.5, averages=True),
}


class Shifted:
    """Batches of digits of which a share is moved by a pixel, with the class and the move as conditions."""

    def __init__(self, data: LabelledImages, share: float) -> None:
        self.data, self.share = data, share
        self.epoch = 0

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        self.epoch += 1
        generator = stream(0, "shifts", self.epoch)
        order = permutation(len(self.data.images), generator)
        for index in order[: len(order) // BATCH * BATCH].split(BATCH):
            move = integers(3, (BATCH, 2), generator) - 1
            move[torch.arange(BATCH) >= round(self.share * BATCH)] = 0
            yield {"x": shift(self.data.images[index], move), "label": self.data.labels[index], "context": move.float()}


def shift(images: Tensor, move: Tensor) -> Tensor:
    """Move images (B, 1, 8, 8) by whole pixels (B, 2), down and to the right; what comes in is background."""
    wide = torch.nn.functional.pad(images, (1, 1, 1, 1), value=-1.0)
    at = 1 - move[:, :, None] + torch.arange(images.shape[-1])  # (B, 2, 8)
    return wide[torch.arange(len(images))[:, None, None], 0, at[:, 0, :, None], at[:, 1, None, :]][:, None]


def make_model(recipe: Recipe) -> ScoreModel:
    features = 2 if recipe.shifted else None
    net = UNet(1, width=16, classes=10, dropout=recipe.dropout, context_features=features)
    return ScoreModel(net, VPSDE(), predicts="noise")


def train(recipe: Recipe, data: LabelledImages, steps: int, folder: Path | None) -> ScoreModel:
    """Train and return the model with the demo's average, or with the first of those that the folder then keeps."""
    average = {"sigma_rel": KEPT} if recipe.averages else {"ema_decay": 0.995}
    common = {"steps": steps, "learning_rate": RATE, "seed": 0, "calibrate": False, "progress": False, **average}
    kept = {} if folder is None else {"folder": folder, "save_every": max(1, steps // 20)}
    model = make_model(recipe)
    hidden = {"label": 0.1}
    if recipe.shifted:
        moments = Moments.of(data.images)
        return fit(model, Shifted(data, recipe.shifted), moments=moments, cond_dropout=hidden, **common, **kept).model
    told = recipe.told(data.labels)
    return fit(model, data.images, cond=told, cond_dropout=hidden, batch_size=BATCH, **common, **kept).model


def bits(recipe: Recipe, model: ScoreModel, data: LabelledImages, draws: int) -> Tensor:
    """Return an upper bound of each digit's bits per dimension, (N,), of its levels given its class."""
    # From where half a bin is two standard deviations of the noise.
    start = model.sde.starting_at(Dequantisation(data.levels).choose_time(model.sde, None, data.images))
    told, decoder = recipe.told(data.labels), LevelsDecoder(data.levels)
    found = continuous_elbo(model, start, data.images, decoder=decoder, samples=draws, cond=told)
    return found.per_sample / (data.images[0].numel() * math.log(2))


def draw(recipe: Recipe, model: ScoreModel, count: int, seed: int) -> Tensor:
    """Return digits, the classes in turn, by the default solver's 20 evaluations."""
    told = recipe.told(torch.arange(count) % 10)
    return sample(model, (count, 1, 8, 8), steps=20, seed=seed, cond=told)


def jackknife(statistic: Callable[[Tensor], Tensor], count: int) -> tuple[Tensor, Tensor]:
    """Return a statistic of all of ``count`` rows, and its standard error over groups of them.

    Args:
        statistic: which rows (n,) -> values (K,).
        count: of rows.
    """
    order = permutation(count, stream(0, "groups"))
    rest = torch.stack([statistic(order[torch.arange(count) % GROUPS != k]) for k in range(GROUPS)])
    return statistic(order), ((GROUPS - 1) / GROUPS * (rest - rest.mean(0)).square().sum(0)).sqrt()


def part(data: LabelledImages, chosen: Tensor) -> LabelledImages:
    return replace(data, images=data.images[chosen], labels=data.labels[chosen])


def train_judge(data: LabelledImages, valid: LabelledImages) -> DigitJudge:
    """Return the judge of ``DigitJudge.train`` with less to learn from."""
    from sklearn.neural_network import MLPClassifier

    classifier = MLPClassifier(hidden_layer_sizes=(128,), alpha=1e-2, max_iter=400, random_state=0)
    classifier.fit(data.images.flatten(1).double().numpy(), data.labels.numpy())
    return DigitJudge(classifier, valid)


def choose(
    recipe: Recipe, model: ScoreModel, folder: Path, valid: LabelledImages, draws: int
) -> tuple[str, ScoreModel]:
    """Return the average whose bound is lowest on the digits that choose."""
    if not recipe.averages:
        return "exponential, 0.995", model
    found = {f"sigma_rel {width:g}": rebuild_average(folder, width) for width in WIDTHS}
    means = {name: float(bits(recipe, one, valid, draws).mean()) for name, one in found.items()}
    print("  on the digits that choose: " + ", ".join(f"{name} {value:.4f}" for name, value in means.items()))
    best = min(means, key=lambda name: means[name])
    return best, found[best]


def time_steps(recipes: Mapping[str, Recipe], data: LabelledImages, steps: int) -> dict[str, float]:
    """Return the median seconds of a step of each recipe, measured in turns, since the machine may be shared."""
    took: dict[str, list[float]] = {name: [] for name in recipes}
    for _ in range(5):
        for name, recipe in recipes.items():
            started = time.perf_counter()
            train(recipe, data, steps, None)
            took[name].append((time.perf_counter() - started) / steps)
    return {name: sorted(times)[len(times) // 2] for name, times in took.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(RECIPES), metavar="RECIPE", help="some of the recipes")
    parser.add_argument("--steps", type=int, default=STEPS, help="of each training")
    parser.add_argument("--samples", type=int, default=5000, help="for the Frechet distance")
    parser.add_argument(
        "--pilot", action="store_true", help="judge by the digits that choose, and a judge that has not seen them"
    )
    parser.add_argument("--quick", action="store_true", help="models that have hardly learned, few samples")
    parser.add_argument("--out", type=Path, default=Path("runs/digits_ten_minutes"), help="new folder for the models")
    add_record(parser, "digits_ten_minutes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    steps, samples, draws = (20, 100, 2) if options.quick else (options.steps, options.samples, 64)
    recipes = {name: recipe for name, recipe in RECIPES.items() if options.only is None or name in options.only}
    whole, test = digits("train"), digits("test")
    chosen = torch.arange(len(whole.images)) % 10 == 0
    data, valid = part(whole, ~chosen), part(whole, chosen)
    if options.pilot:
        whole, test = data, valid
    judge = train_judge(data, valid) if options.pilot else DigitJudge.train()
    real, known = judge.features(test.images), judge.features(whole.images)

    costs = time_steps(recipes, data, 5 if options.quick else 50)
    print("milliseconds a step: " + ", ".join(f"{name} {1000 * cost:.1f}" for name, cost in costs.items()), flush=True)
    values: list[Tensor] = []
    drawn: list[list[Tensor]] = []
    rows: dict[str, dict[str, object]] = {}
    for name, recipe in recipes.items():
        folder = options.out / name.replace(",", "").replace(" ", "_")
        started = time.perf_counter()
        trained = train(recipe, data, steps, folder)
        print(f"{name}: {steps} steps in {time.perf_counter() - started:.0f} seconds", flush=True)
        average, model = choose(recipe, trained, folder, valid, draws)
        values.append(bits(recipe, model, test, draws))
        drawn.append([judge.features(draw(recipe, model, samples, seed)) for seed in SEEDS])
        rows[name] = {"average": average, "milliseconds_a_step": 1000 * costs[name]}

    def distances(index: Tensor) -> Tensor:
        return torch.tensor([frechet_distance(made[0], real[index]) for made in drawn], dtype=torch.float64)

    def means(index: Tensor) -> Tensor:
        return torch.stack([value[index].double().mean() for value in values])

    print(f"\n{'':20}{'ms/step':>8}{'bits/dim':>17}{'- first':>18}{'Frechet':>16}{'- first':>18}{'noise':>7}  average")
    floor, wide = jackknife(lambda index: torch.tensor([frechet_distance(known, real[index])]), len(real))
    print(f"{f'{len(known)} real digits':20}{'':43}{say(floor, wide, 2):>16}")
    all_of = {
        "bits_per_dim": jackknife(means, len(real)),
        "bits_less_first": jackknife(lambda index: means(index) - means(index)[0], len(real)),
        "frechet": jackknife(distances, len(real)),
        "frechet_less_first": jackknife(lambda index: distances(index) - distances(index)[0], len(real)),
    }
    for k, (name, row) in enumerate(rows.items()):
        seeds = torch.tensor([frechet_distance(made, real) for made in drawn[k]])
        row |= {what: {"value": float(v[k]), "error": float(e[k])} for what, (v, e) in all_of.items()}
        row["frechet_of_seeds"] = seeds.tolist()
        texts = [say(v[k], e[k], 3 if "bits" in what else 2) for what, (v, e) in all_of.items()]
        columns = "".join(f"{text:>{size}}" for text, size in zip(texts, (17, 18, 16, 18), strict=True))
        print(f"{name:20}{row['milliseconds_a_step']:8.1f}{columns}{float(seeds.std()):7.3f}  {row['average']}")
    about = {"steps": steps, "samples": samples, "floor": {"value": float(floor), "error": float(wide)}}
    write_record(options.record, json.dumps({**about, "recipes": rows}, indent=1))


def say(value: Tensor, error: Tensor, places: int) -> str:
    return f"{float(value):.{places}f} ± {float(error):.{places}f}"


if __name__ == "__main__":
    main()
