"""The explorer's own code, without a browser: links, files, drawn points, the chain, densities and measures."""

from __future__ import annotations

import base64
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from explorer_helpers import EXPLORER, compute, needs_node

from scoresde import DDPM
from scoresde.cli.presets import SDES
from scoresde.noise import normal, stream

pytestmark = needs_node

MIXTURE: dict[str, Any] = {
    "dim": 2,
    "weights": [0.2, 0.5, 0.3],
    "means": [[-1.0, 0.3], [0.9, 0.8], [0.2, -1.1]],
    "stds": [0.1, 0.4, 0.25],
}
STATE = {
    "target": "drawn",
    "drawn": [0.5, -1.25, 2, 0.07],
    "brush": 0.3,
    "sde": "rectified",
    "solver": "sa_solver",
    "grid": "rectified 1.25",
    "steps": 17,
    "eta": 0.35,
    "particles": 350,
    "seed": 12,
    "beside": True,
    "density": False,
    "lines": False,
    "bent": 2,
    "bend": -0.15,
    "edits": {"3.1": -0.123456789012345, "0.100": 1e-7},
    "time": 0.123456789012345,
}


def test_a_link_carries_every_field_there_and_back() -> None:
    first, link, back = compute(
        ("return scoresde.FIRST;", None),
        ("return scoresde.toHash(args);", STATE),
        ("return scoresde.fromHash('#' + scoresde.toHash(args));", STATE),
    )
    assert set(first) == set(STATE)
    assert all(first[key] != STATE[key] for key in STATE)
    assert back == {"state": STATE, "complaints": []}
    assert not set(link) & set("\"'<> #{}")


@pytest.mark.parametrize(
    ("link", "said"),
    [
        ("steps=2.5", "steps must be a whole number from 1 to 100, not “2.5”; 10 is taken in its place"),
        ("steps=0", "steps must be a whole number from 1 to 100"),
        ("particles=1e9", "particles must be a whole number from 1 to 4000"),
        ("bend=0.6", "bend must be a number from -0.5 to 0.5"),
        ("time=NaN", "time must be a number from 0 to 1"),
        ("solver=%22euler", "solver must be one of flow_abm, ancestral"),
        ("sde=vp", "sde must be one of vp, cosine"),
        ("solver=%22ddim%22&eta=1.5", "eta must be a number from 0 to 1 for ddim; it is left out"),
        ("drawn=[1,2,3]", "drawn must be at most 200 points"),
        ("drawn=[1,7]", "x and y from -5 to 5, not “[1,7]”; it is left out"),
        ("edits=[1]", "edits must be row.place with weights from -1000 to 1000"),
        ("edits={%220.1%22:1e4}", "edits must be row.place"),
        ("beside=1", "beside must be true or false, not “1”; false is taken in its place"),
        ("nothing=1", "“nothing” is nothing that the explorer knows; it was left out"),
        ("seed=%E0%A4", "seed must be a whole number"),
        ("seed", "seed must be a whole number from 0 to 1000000000, not nothing"),
    ],
)
def test_a_wrong_part_of_a_link_is_said_in_a_line_and_the_rest_is_taken(link: str, said: str) -> None:
    [found] = compute(("return scoresde.fromHash(args);", f"#{link}&grid=%22karras%22"))
    first = {"grid": "karras"} | ({"solver": "ddim"} if "ddim" in link else {})
    [plain] = compute(("return scoresde.FIRST;", None))
    assert found["state"] == plain | first
    [line] = found["complaints"]
    assert line.startswith("the link's ")
    assert said in line
    assert len(line) < 260


def test_the_limits_themselves_are_taken() -> None:
    for limits in (
        {"steps": 1, "particles": 1, "bend": -0.5, "time": 0, "drawn": [-5, -5], "edits": {"0.0": -1000}},
        {"steps": 100, "particles": 4000, "bend": 0.5, "time": 1, "drawn": [5, 5], "edits": {"0.0": 1000}},
    ):
        [found] = compute(("return scoresde.fromHash('#' + scoresde.toHash(args));", STATE | limits))
        assert found == {"state": STATE | limits, "complaints": []}


@pytest.mark.parametrize("name", ["vp", "cosine"])
def test_the_chain_is_the_librarys(name: str) -> None:
    """DDPM at the knots i/n of the diffusion: the states' weights and the draws', for each row."""
    steps, sde = 9, SDES[name].build()
    ours = DDPM.from_sde(sde, steps).ancestral()
    [theirs] = compute(
        ("return scoresde.chain(scoresde.DIFFUSIONS[args.sde], args.steps);", {"sde": name, "steps": steps})
    )
    assert len(theirs["rows"]) == len(ours.rows) == steps
    for mine, other in zip(ours.rows, theirs["rows"], strict=True):
        assert [mine.at.alpha, mine.at.sigma] == pytest.approx([other["at"]["alpha"], other["at"]["sigma"]], rel=1e-9)
        assert list(mine.state) == pytest.approx(other["state"], rel=1e-9, abs=1e-12)
        assert list(mine.noise or [0.0]) == pytest.approx(other["noise"] or [0.0], rel=1e-9)


def test_chain_sde_and_flow_start_in_one_state_and_the_first_two_draw_alike() -> None:
    body = """const state = { ...scoresde.FIRST, beside: true, steps: 6 };
        const model = new scoresde.ExactModel(scoresde.TARGETS.ring.mixture);
        const subject = { model, exact: model, shape: null };
        const x = scoresde.startState(subject, state, 50, state.seed);
        const found = [];
        for (const one of scoresde.samplersOf(state)) {
            const source = scoresde.normal(9);
            const draws = [];
            const { states } = await scoresde.run(one.table(6), model, x, (into) => {
                source(into);
                draws.push([...into.slice(0, 3)]);
            });
            found.push({ start: [...states[0]], draws });
        }
        return found;"""
    [(chain, sde, flow)] = compute((body, None))
    assert chain["start"] == sde["start"] == flow["start"]
    assert chain["draws"] == sde["draws"]
    assert len(chain["draws"]) == 5
    assert flow["draws"] == []


def log_density(x: torch.Tensor, alpha: float, sigma: float, means: torch.Tensor) -> torch.Tensor:
    weights, stds = (torch.tensor(MIXTURE[key], dtype=torch.float64) for key in ("weights", "stds"))
    scale = ((alpha * stds) ** 2 + sigma**2).sqrt()[:, None]
    each = torch.distributions.Normal(alpha * means, scale).log_prob(x[:, None, :]).sum(-1)
    return torch.logsumexp(weights.log() + each, -1)


def test_densities_are_exact_at_points_on_a_grid_and_of_each_coordinate() -> None:
    x = normal((5, 2), stream(1, "x"), dtype=torch.float64)
    alpha, sigma, means = 0.6, 0.35, torch.tensor(MIXTURE["means"], dtype=torch.float64)
    args = {"mixture": MIXTURE, "x": x.flatten().tolist(), "at": {"t": 0, "alpha": alpha, "sigma": sigma}}
    at, on, first, second = compute(
        *(
            (f"const model = new scoresde.ExactModel(args.mixture), x = Float64Array.from(args.x); {body}", args)
            for body in (
                "return [...model.logDensity(x, args.at)];",
                "return [...model.logDensityOn(x.slice(0, 3), x.slice(3, 7), args.at)];",
                "return [...model.marginal(0).logDensity(x, args.at)];",
                "return [...model.marginal(1).logDensity(x, args.at)];",
            )
        )
    )
    assert at == pytest.approx(log_density(x, alpha, sigma, means).tolist(), rel=1e-10)
    flat = x.flatten()
    grid = torch.stack([torch.stack([a, b]) for b in flat[3:7] for a in flat[:3]])
    assert on == pytest.approx(log_density(grid, alpha, sigma, means).tolist(), rel=1e-10)
    for axis, found in enumerate((first, second)):
        expected = log_density(flat[:, None], alpha, sigma, means[:, axis : axis + 1])
        assert found == pytest.approx(expected.tolist(), rel=1e-10)


def test_the_start_state_has_the_mean_and_the_spread_of_the_noised_data() -> None:
    body = """const model = new scoresde.ExactModel(args);
        const subject = { model, exact: model, shape: null };
        return [...scoresde.startState(subject, { ...scoresde.FIRST, sde: "cosine" }, 200000, 3)];"""
    [found] = compute((body, MIXTURE))
    x = np.array(found).reshape(-1, 2)
    weights, means, stds = (np.array(MIXTURE[key]) for key in ("weights", "means", "stds"))
    end = SDES["cosine"].build().at(torch.tensor(0.9946, dtype=torch.float64))
    alpha, sigma = float(end.alpha), float(end.sigma)
    mean = weights @ means
    variance = weights @ (stds[:, None] ** 2 + (means - mean) ** 2)
    assert x.mean(0) == pytest.approx(alpha * mean, abs=0.012)  # five standard errors
    assert x.std(0) == pytest.approx(np.sqrt(alpha**2 * variance + sigma**2), abs=0.008)


def test_measures_of_error() -> None:
    a, b = (normal((40, 2), stream(k, "sets"), dtype=torch.float64).numpy() for k in (1, 2))
    points = [[n, 3.0 * n**-2.5] for n in (1, 2, 4, 8, 16, 32)]
    args = {"a": a.flatten().tolist(), "b": b.flatten().tolist(), "points": points}
    load = "const [a, b] = [Float64Array.from(args.a), Float64Array.from(args.b)];"
    rms, sliced, line, slope, floor = compute(
        (load + "return scoresde.rms(a, b);", args),
        (load + "return scoresde.sliced(a, b, 2);", args),
        (load + "return scoresde.sliced(a, b, 1);", args),
        ("return scoresde.slope(args.points, 0);", args),
        ("return scoresde.slope(args.points, 1);", args),
    )
    assert rms == pytest.approx(math.sqrt(((a - b) ** 2).mean()))
    total = 0.0
    for k in range(24):
        along = [math.cos(math.pi * k / 24), math.sin(math.pi * k / 24)]
        total += ((np.sort(a @ along) - np.sort(b @ along)) ** 2).mean() / 24
    assert sliced == pytest.approx(math.sqrt(total))
    assert line == pytest.approx(math.sqrt(((np.sort(a.ravel()) - np.sort(b.ravel())) ** 2).mean()))
    assert slope == pytest.approx(2.5)
    assert floor is None  # too few points above twice the floor


def test_log_density_along_a_course_is_less_where_the_particles_are_too_far_out() -> None:
    body = """const model = new scoresde.ExactModel(args);
        const at = [{ t: 1, alpha: 0.6, sigma: 0.8 }, { t: 0, alpha: 1, sigma: 0 }];
        const right = model.sample(400, 5);
        const course = (x) => ({ states: [x, x], at, nfe: 1 });
        const last = async (x) => (await scoresde.logDensities(model, course(x))).at(-1);
        return [await last(right), await last(right.map((v) => 2 * v))];"""
    [(same, far)] = compute((body, MIXTURE))
    assert same == [1, pytest.approx(0, abs=1e-12)]
    assert far[1] < -1


def test_exact_samples_on_the_way_are_noised_as_the_course_is() -> None:
    """Particles that are alpha x_0 + sigma z have no excess, but that of 400 with one noise over 400 with another."""
    body = """const model = new scoresde.ExactModel(args);
        const z = new Float64Array(800);
        scoresde.normal(9)(z);
        const x = model.sample(400, 8).map((c, i) => 0.6 * c + 0.8 * z[i]);
        const at = [{ t: 1, alpha: 0.6, sigma: 0.8 }, { t: 1, alpha: 0.6, sigma: 0.8 }];
        return (await scoresde.logDensities(model, { states: [x, x], at, nfe: 1 }))[0][1];"""
    assert abs(compute((body, MIXTURE))[0]) < 0.3  # four standard errors of a difference of two means of 400


def test_histograms_and_places_between_rows() -> None:
    x = (3 * normal((300, 2), stream(4, "bins"), dtype=torch.float64)).numpy()
    course = {
        "states": [[1.0, -2.0], [0.5, 0.25]],
        "at": [{"t": 1, "alpha": 0.6, "sigma": 0.8}, {"t": 0.2, "alpha": 3.0, "sigma": 0.2}],
    }
    binned, start, middle, end, knot, place, point = compute(
        ("return [...scoresde.binned(Float64Array.from(args), 1, 2)];", x.flatten().tolist()),
        *(
            (
                "const states = args.states.map((x) => Float64Array.from(x));"
                f"return [...scoresde.stateAt({{ ...args, states }}, {w})];",
                course,
            )
            for w in (0, 0.5, 1)
        ),
        ("return scoresde.knotAt(args, 0.5);", course),
        ("return scoresde.placeOf(1.35, -1.35, 300, 200);", None),
        ("return scoresde.pointAt(...scoresde.placeOf(1.2, -0.7, 300, 200), 300, 200);", None),
    )
    counts, _ = np.histogram(x[:, 1], bins=60, range=(-2.7, 2.7))
    assert binned == pytest.approx((counts / (300 * 5.4 / 60)).tolist())
    scale = 1 / math.hypot(3.0, 0.2)
    assert start == pytest.approx([1.0, -2.0])
    assert end == pytest.approx([0.5 * scale, 0.25 * scale])
    assert middle == pytest.approx([0.5 * (1 + 0.5 * scale), 0.5 * (-2 + 0.25 * scale)])
    assert knot == pytest.approx({"t": 0.6, "alpha": 1.8, "sigma": 0.4})
    assert place == pytest.approx([50 + 0.75 * 172, 28 + 0.75 * 172])
    assert point == pytest.approx([1.2, -0.7])


def test_drawn_points_are_rounded_apart_and_few() -> None:
    body = """const said = [];
        const state = { ...scoresde.FIRST, drawn: [0, 0], brush: 0.1 };
        const add = (x, y) => scoresde.addPoint(state, [x, y], (text) => said.push(text));
        const added = [add(0.06, 0.06), add(0.099, 0), add(0.1, 0), add(1.23456, -9)];
        const few = state.drawn;
        state.drawn = Array.from({ length: 400 }, (_, i) => 10 + i);
        return [added, few, add(2, 2), state.drawn.length, said];"""
    [(added, drawn, more, length, said)] = compute((body, None))
    assert added == [False, True, False, True]  # 0.099 is rounded to 0.1 first, as far as the brush is wide
    assert drawn == [0, 0, 0.1, 0, 1.23, -2.7]
    assert (more, length) == (False, 400)
    assert said == ["there is room for 200 Gaussians; undo some, or take a greater width"]


def test_a_bent_or_edited_table_has_those_weights_and_no_others() -> None:
    table = {"rows": [{"state": [1.0, 2.0, 3.0], "noise": [4.0]}, {"state": [5.0, 6.0], "noise": []}]}
    bent, edited = compute(
        ("return scoresde.edited(args, 1, 0.5, {}).rows;", table),
        ("return scoresde.edited(args, 1, 0, { '0.2': -7, '0.100': 0, '1.0': 8 }).rows;", table),
    )
    assert bent == [{"state": [1, 3, 3], "noise": [4]}, {"state": [5, 9], "noise": []}]
    assert edited == [{"state": [1, 2, -7], "noise": [0]}, {"state": [8, 6], "noise": []}]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "nothing is no number"),
        ("1,5", "“1,5” is no number"),
        ("1001", "-1000 to 1000"),
        ("1e400", "-1000 to 1000"),
    ],
)
def test_a_weight_that_is_none_is_said(text: str, said: str) -> None:
    body = "try { scoresde.readWeight(args); return ''; } catch (error) { return error.message; }"
    [found] = compute((body, text))
    assert said in found
    assert "stays as it was" in found
    assert compute(("return scoresde.readWeight(args);", " -1e-3 ")) == [-0.001]


def encoded(*values: float) -> str:
    return base64.b64encode(np.array(values, "<f4").tobytes()).decode()


def test_a_network_from_a_file_is_checked() -> None:
    good = json.loads(Path(EXPLORER / "network.json").read_text(encoding="utf-8"))
    weights = good["weights"]

    def with_weights(name: str, change: dict[str, Any]) -> dict[str, Any]:
        return good | {"weights": weights | {name: weights[name] | change}}

    cases: list[tuple[object, str]] = [
        ("[1, 2", "it holds no JSON"),
        ("3", "no JSON object"),
        (good | {"predicts": "clouds"}, '"predicts"'),
        (good | {"sigma_data": 0}, '"sigma_data"'),
        (good | {"dim": 3}, '"dim"'),
        (good | {"width": 2.5}, '"width"'),
        (good | {"depth": 0}, '"depth"'),
        (good | {"weights": None}, '"weights"'),
        (good | {"depth": 3}, "modulation.weight are not of shape (256, 32)"),
        (good | {"weights": {k: v for k, v in weights.items() if k != "skip.bias"}}, "skip.bias are missing"),
        (with_weights("skip.bias", {"values": encoded(1.0, 2.0)}), "skip.bias are not of shape (1)"),
        (with_weights("skip.bias", {"values": "?"}), "skip.bias are not of shape (1)"),
        (with_weights("skip.bias", {"shape": [1, 1]}), "skip.bias are not of shape (1)"),
        (with_weights("skip.bias", {"values": encoded(math.inf)}), "skip.bias are not all finite"),
        (good | {"points": "?"}, '"points"'),
    ]
    body = """return args.map((text) => {
        try { return scoresde.readNetwork("mine.json", text).sde; } catch (error) { return error.message; }
    });"""
    texts = [case if isinstance(case, str) else json.dumps(case) for case, _ in cases]
    fine = [json.dumps(good), json.dumps(good | {"sde": "ve"}), json.dumps(good | {"sde": "another"})]
    [found] = compute((body, [*fine, *texts]))
    assert found[:3] == [None, "ve", None]
    for line, (_, said) in zip(found[3:], cases, strict=True):
        assert line.startswith("mine.json is no network for the explorer, ")
        assert said in line
        assert line.endswith("write one with scoresde explore --checkpoint FOLDER --out network.json")
