"""Clouds of points: Lennard-Jones clusters, and molecules of six kinds and sizes with their elements.

Positions live where their mean is 0 (``RelativePlaces``), the network turns with the cloud (``EGNN``), and elements are
a code beside the places that is decoded by its largest entry. Molecules of 3 to 8 atoms stand in one batch with a mask;
samples are drawn size by size. A molecule counts as valid if its atoms are those of a kind in the data, and each has as
many neighbours, within 1.25 times the sum of covalent radii, as an atom of that element in that kind.

Run: python examples/molecules.py [--quick] [--points N] [--out PICTURE]      (two minutes of one core)
An animation of clusters that form goes beside the picture, as .gif.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

import torch
from scipy.stats import ks_2samp, wasserstein_distance

from scoresde import Affine, CosineVPSDE, Moments, RelativePlaces, ScoreModel, fit, sample
from scoresde.data import ELEMENTS, MOLECULES, bonded, lennard_jones, lennard_jones_energy, molecules
from scoresde.nn import EGNN
from scoresde.transforms import Compose

SOLVERS = {"dpmpp_2m": 25, "euler_maruyama": 200}
SCALE = 0.8  # of places, in sigma and in angstrom: about their standard deviation
CODE = 0.25  # of an element's code, as Hoogeboom et al. 2022 (arXiv:2203.17003) have it
COLOURS = {"H": "#BBBBBB", "C": "#222222", "N": "#0072B2", "O": "#D55E00"}


def train(net, transform, data, steps, cond=None):
    # Moments of one number serve every size, and no direction is told from another.
    ends = Moments.exact(torch.tensor(0.0), torch.tensor(1.0))
    model = ScoreModel(net, CosineVPSDE(), predicts="edm", sigma_data=1.0)
    return fit(
        model,
        data,
        cond=cond,
        transform=transform,
        moments=ends,
        steps=steps,
        batch_size=64,
        learning_rate=2e-3,
        decay="cosine",
        ema_decay=0.99,
        calibrate=False,
        seed=0,
    ).model


def read(x):
    """Return, of molecules (n, N, 3 + 4), the elements, and which atoms are bonded."""
    kinds = x[..., 3:].argmax(-1)
    return kinds, bonded(x[..., :3], kinds)


def formula(kinds, bonds):
    """Return what is compared: how often an element with so many neighbours is in a molecule."""
    return frozenset(Counter(zip(kinds.tolist(), bonds.sum(-1).tolist(), strict=True)).items())


def lengths(x, pair="CH"):
    """Return the lengths of the bonds between two elements."""
    kinds, bonds = read(x)
    first, second = (kinds == ELEMENTS.index(pair[0])), (kinds == ELEMENTS.index(pair[1]))
    return torch.cdist(x[..., :3], x[..., :3])[bonds & first[:, :, None] & second[:, None]]


def pair_distances(x):
    first, second = torch.triu_indices(x.shape[1], x.shape[1], 1)
    return (x[:, first] - x[:, second]).norm(dim=-1).flatten()


def clusters(points, quick):
    n = 256 if quick else 2048
    data = lennard_jones(n, points, sweeps=100 if quick else 1000)
    data = data[torch.randperm(n, generator=torch.Generator().manual_seed(0))]
    real = lennard_jones(n // 2, points, sweeps=100 if quick else 1000, seed=1)
    transform = Compose((RelativePlaces(3), Affine(0.0, SCALE)))
    net = EGNN(3, relative=True, width=32 if quick else 64, depth=3)
    model = train(net, transform, data, 10 if quick else 1500)
    count = 32 if quick else 512
    drawn = {
        f"{name}, {steps} steps": sample(model, (count, 3 * points - 3), solver=name, steps=steps, seed=0)
        for name, steps in ((name, min(steps, 8) if quick else steps) for name, steps in SOLVERS.items())
    }
    halves = real[: len(real) // 2], real[len(real) // 2 :]
    energies = {name: lennard_jones_energy(x, trap=0.5) for name, x in {"data": real, **drawn}.items()}
    print(f"clusters of {points}, median energy of the data {energies['data'].median():.2f}")
    for name, x in {"half of the data": halves[0], **drawn}.items():
        other = halves[1] if name == "half of the data" else real
        found = lennard_jones_energy(x, trap=0.5), lennard_jones_energy(other, trap=0.5)
        distances = wasserstein_distance(pair_distances(x), pair_distances(other))
        print(
            f"  {name}: energies, median {found[0].median():.2f}, Kolmogorov-Smirnov {ks_2samp(*found).statistic:.3f}; "
            f"distances of pairs, Wasserstein-1 {distances:.4f} sigma"
        )
    return model, energies, {name: pair_distances(x) for name, x in {"data": real, **drawn}.items()}


def small_molecules(quick):
    data, real = molecules(256 if quick else 6000), molecules(128 if quick else 2000, seed=1)
    scale = torch.tensor([1.0] * 3 + [CODE] * len(ELEMENTS))
    x = data.x * scale
    transform = Compose((RelativePlaces(3, len(ELEMENTS)), Affine(0.0, SCALE)))
    net = EGNN(3, features=len(ELEMENTS), relative=True, masked=True, width=32 if quick else 64, depth=3)
    model = train(net, transform, x, 10 if quick else 1800, {"mask": data.mask})

    sizes = torch.bincount(real.mask.sum(1).long())
    known = set()
    for elements, rest in MOLECULES.values():
        kinds = torch.tensor([ELEMENTS.index(e) for e in elements])
        known.add(formula(kinds, bonded(torch.tensor(rest), kinds)))

    def judge(groups):
        valid = [[formula(k, b) in known for k, b in zip(*read(group), strict=True)] for group in groups]
        shares = {group.shape[1]: sum(ones) / max(1, len(ones)) for group, ones in zip(groups, valid, strict=True)}
        return sum(map(sum, valid)) / max(1, sum(map(len, valid))), shares, torch.cat([lengths(x) for x in groups])

    own = [real.x[real.mask.sum(1) == size, :size] for size in range(len(sizes)) if sizes[size]]
    results = {"data": (*judge(own), own)}
    for name, steps in SOLVERS.items():
        steps = min(steps, 8) if quick else steps
        groups = [
            sample(model, (int(count) // 4, 7 * size - 3), solver=name, steps=steps, seed=size) / scale
            for size, count in enumerate(sizes.tolist())
            if count
        ]
        results[f"{name}, {steps} steps"] = (*judge(groups), groups)
    reference = results["data"][2]
    half = reference[torch.randperm(len(reference), generator=torch.Generator().manual_seed(0))].chunk(2)
    print(f"molecules, valid: {results['data'][0]:.1%} of the data")
    print(f"  half of the data: C-H lengths, Wasserstein-1 {wasserstein_distance(*half):.4f} A")
    for name, (valid, shares, found, _) in results.items():
        if name != "data":
            far = wasserstein_distance(found, reference) if len(found) else float("nan")
            print(f"  {name}: valid {valid:.1%}; C-H lengths, Wasserstein-1 {far:.4f} A")
            print("    valid by atoms: " + ", ".join(f"{size}: {share:.0%}" for size, share in shares.items()))
    return results


def draw_molecule(axes, x, at):
    """Draw one molecule, seen along its third axis of inertia: elements by letter and colour, bonds as lines."""
    kinds, bonds = read(x[None])
    kinds, bonds = kinds[0], bonds[0]
    _, _, axis = torch.linalg.svd(x[:, :3], full_matrices=False)
    flat = x[:, :3] @ axis[:2].T + torch.tensor(at)
    for i, j in bonds.triu().nonzero().tolist():
        axes.plot(*flat[[i, j]].T, color="#888888", linewidth=2, zorder=1)
    for place, kind in zip(flat, kinds.tolist(), strict=True):
        axes.scatter(*place, s=170 if kind else 90, color=COLOURS[ELEMENTS[kind]], edgecolor="#222222", zorder=2)
        ink = "black" if ELEMENTS[kind] == "H" else "white"
        axes.text(*place, ELEMENTS[kind], ha="center", va="center", fontsize=7, color=ink, zorder=3)


def draw(points, energies, distances, results, path):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.0, 7.2), layout="constrained")
    panels = figure.subplots(2, 2).flatten()
    styles = [("#0072B2", "-"), ("#D55E00", "--"), ("#009E73", ":")]
    low, high = (float(energies["data"].quantile(q)) for q in (0.001, 0.999))
    bond = {name: found for name, (_, _, found, _) in results.items()}
    for axes, values, reach in (
        (panels[0], energies, (low - 1, high + 4)),
        (panels[1], distances, (0.7, 4.0)),
        (panels[2], bond, (0.85, 1.35)),
    ):
        for (color, line), (name, found) in zip(styles, values.items(), strict=True):
            outside = float(((found < reach[0]) | (found > reach[1])).float().mean()) if len(found) else 0.0
            label = name if outside < 0.002 else f"{name} ({outside:.1%} outside)"
            weights = torch.full_like(found, 60 / (reach[1] - reach[0]) / max(1, len(found)))
            axes.hist(
                found, bins=60, range=reach, weights=weights, histtype="stepfilled" if name == "data" else "step",
                color=color, alpha=0.3 if name == "data" else 1.0, linestyle=line, linewidth=1.6, label=label,
            )  # fmt: skip
        axes.set(yticks=[], ylabel="density")
        axes.set_ylim(0, 1.4 * axes.get_ylim()[1])
        axes.legend(frameon=False, fontsize=8)
    panels[0].set(title=f"energy of clusters of {points}", xlabel="energy, in depths of the well")
    panels[1].set(title=f"distances in clusters of {points}", xlabel="distance of two points, in sigma")
    panels[2].set(title="C-H bonds of molecules", xlabel="length in angstrom")
    name = list(results)[1]
    for row, group in enumerate(results[name][3]):
        for column, x in enumerate(group[:5]):
            draw_molecule(panels[3], x, (4.6 * column, -3.2 * row))
    panels[3].set(title=f"molecules drawn by {name}", xticks=[], yticks=[], aspect="equal")
    panels[3].spines[:].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)


def animate(model, points, path, quick):
    """Write three clusters that form, as spheres of diameter 1.1 sigma: far ones are dark, and the view turns."""
    from PIL import Image, ImageDraw

    shape, steps, size, scale = (3, 3 * points - 3), 8 if quick else 60, 200, 36
    run = sample(model, shape, solver="ddim", steps=steps, seed=4, trajectory=True, full_output=True).trajectory
    states = [model.transform.inverse(y) for y in run]
    frames = []
    for k, x in enumerate(states + [states[-1]] * (len(states) // 2)):
        angle = torch.tensor(0.02 * k)
        turn = torch.tensor([[angle.cos(), 0.0, angle.sin()], [0.0, 1.0, 0.0], [-angle.sin(), 0.0, angle.cos()]])
        frame = Image.new("RGB", (6 * size, 2 * size), "white")
        pen = ImageDraw.Draw(frame)
        for number, cluster in enumerate(x @ turn):
            for across, up, depth in sorted(cluster.tolist(), key=lambda place: place[2]):
                shade = min(1.0, max(0.0, 0.5 + 0.25 * depth))
                color = (round(86 * shade), round(45 + 135 * shade), round(75 + 158 * shade))
                centre, radius = ((2 * number + 1) * size + 2 * scale * across, size - 2 * scale * up), 1.1 * scale
                pen.ellipse([c + sign * radius for sign in (-1, 1) for c in centre], color, "#222222", 4)
        frames.append(frame.resize((3 * size, size), Image.Resampling.LANCZOS).quantize(32))
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=70, loop=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few seconds: the networks have hardly learned")
    parser.add_argument("--points", type=int, default=7, help="of a Lennard-Jones cluster, 4 to 13")
    parser.add_argument("--out", type=Path, default=Path("runs/examples/molecules.png"))
    options = parser.parse_args()

    model, energies, distances = clusters(options.points, options.quick)
    results = small_molecules(options.quick)
    draw(options.points, energies, distances, results, options.out)
    animate(model, options.points, options.out.with_suffix(".gif"), options.quick)
    print(f"picture: {options.out}, animation: {options.out.with_suffix('.gif')}")


if __name__ == "__main__":
    main()
