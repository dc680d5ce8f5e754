"""The row format: hand-made tables through the real executor, the exact law, JSON, text."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import MEAN, SDES, VARIANCE, coefficients, gaussian, slope

from scoresde import VPSDE, ConfigError, DomainError, GaussianSDE, Tableau, build_table, solvers
from scoresde.solvers import SOLVERS, grids
from scoresde.solvers.rows import CLEAN, Increment, Knot, Order, Row

FIXED = sorted(set(SOLVERS) - {"probability_flow"})


def knots(sde: GaussianSDE, steps: int) -> list[Knot]:
    return Knot.of(sde.at(grids.log_snr()(sde, steps)))


def through_the_executor(table: Tableau, sde: GaussianSDE | None = None) -> None:
    """The real sampler applies what ``affine_map`` says."""
    expected = table.affine_map(MEAN, VARIANCE)
    scale = max(1.0, float(np.abs(expected).max()))
    got = coefficients(gaussian(sde or SDES["vp"]), table)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12 * scale)


def flow_error(table: Tableau) -> float:
    """Distance of the map from the exact probability flow of Gaussian data, on states of the start's law."""
    first, last = (math.sqrt(k.alpha**2 * VARIANCE + k.sigma**2) for k in (table.start, table.end))
    weights = table.affine_map(MEAN, VARIANCE)
    mean = weights[0] + weights[1] * table.start.alpha * MEAN - table.end.alpha * MEAN
    return math.hypot(mean, weights[1] * first - last)


# --- a predictor-corrector with one call a step: the corrector reads the prediction at the predicted state


def polynomial_weights(nodes: np.ndarray, low: float, high: float) -> np.ndarray:
    """Integrals over [low, high] of the Lagrange basis on ``nodes``."""
    basis = [
        np.poly1d(np.delete(nodes, k), r=True) / np.prod(np.delete(nodes[k] - nodes, k)) for k in range(len(nodes))
    ]
    return np.array([p.integ()(high) - p.integ()(low) for p in basis])


def corrected_adams(points: list[Knot], order: int, correct: bool = True) -> Tableau:
    """Adams-Bashforth of ``order`` in nu on the noise prediction, each state corrected by Adams-Moulton one order up.

    Row i is called at the predicted state of t_i. Its prediction corrects the anchor, which moves from the corrected
    state at t_{i-1} to the one at t_i, and the next state is predicted from there: two sums of one row.
    """
    nu = np.array([k.sigma / k.alpha for k in points])
    rows = []
    for i, here in enumerate(points):
        if i == 0:
            anchor = np.array([1.0, 0.0])
        else:
            # Integrate the polynomial through the newest order + 1 predictions, the one at t_i included.
            history = nu[max(0, i - order) : i + 1][::-1]
            weights = polynomial_weights(history[not correct :], nu[i - 1], nu[i])
            weights = np.pad(weights, (len(history) - len(weights), 0))
            anchor = np.concatenate([[here.alpha / points[i - 1].alpha], here.alpha * weights])
        if i + 1 == len(points):
            rows.append(Row(here, tuple(anchor)))
            continue
        following = points[i + 1]
        history = nu[max(0, i + 1 - order) : i + 1][::-1]
        step = np.concatenate([[0.0], following.alpha * polynomial_weights(history, nu[i], nu[i + 1])])
        state = following.alpha / here.alpha * np.pad(anchor, (0, max(0, len(step) - len(anchor))))
        state[: len(step)] += step
        rows.append(Row(here, tuple(state), anchor=tuple(anchor)))
    return Tableau(f"corrected Adams {order}", "noise", tuple(rows), points[0], points[-1], 1.0)


@pytest.mark.parametrize("sde", ["vp", "ve"])
@pytest.mark.parametrize("order", [1, 2])
def test_a_corrector_of_one_row_is_one_order_above_its_predictor(order: int, sde: str) -> None:
    steps = (160, 320, 640)
    tables = [corrected_adams(knots(SDES[sde], n), order) for n in steps]
    assert tables[0].memory == order
    assert slope([flow_error(t) for t in tables], steps) == pytest.approx(order + 1, abs=0.15)
    plain = [corrected_adams(knots(SDES[sde], n), order, correct=False) for n in steps[:2]]
    assert slope([flow_error(t) for t in plain], steps[:2]) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_executor_runs_a_corrector_of_one_row(order: int) -> None:
    through_the_executor(corrected_adams(knots(SDES["vp"], 9), order))
    through_the_executor(corrected_adams(knots(SDES["ve"], 4), order).denoised(), SDES["ve"])


# --- a two-stage stochastic step: the second stage reads the noise of the first again


def stochastic_heun(points: list[Knot], reuse: bool = True, corner: float = 0.0) -> Tableau:
    """Heun's method for the reverse SDE of y = x/alpha in the clock c = nu^2, where dy = -noise/nu dc + dw.

    The noise is additive with unit rate, so the method has weak order 2 if both stages see one and the same draw.
    ``corner`` adds a second fresh draw in the second stage, to use a fresh and an earlier draw in one row.
    """
    rows = []
    for late, early in itertools.pairwise(points):
        nu, end = late.sigma / late.alpha, early.sigma / early.alpha
        change = (nu - end) * (nu + end)
        ratio, push, width = early.alpha / late.alpha, -early.alpha * change, early.alpha * math.sqrt(change)
        increment = Increment(late.t, early.t, 2.0)
        rows.append(Row(late, (ratio, push / nu), anchor=(1.0,), noise=(width,), increment=increment))
        noise = (0.0, width) if reuse else (width,)
        noise = (corner * width, *noise[1:]) if corner else noise
        rows.append(Row(early, (ratio, push / 2 / end, push / 2 / nu), noise=noise))
    return Tableau("stochastic Heun", "noise", tuple(rows), points[0], points[-1], 1.0)


def weak_error(table: Tableau) -> float:
    mean, variance = table.law(MEAN, VARIANCE)
    end = table.end
    return math.hypot(mean - end.alpha * MEAN, variance - end.alpha**2 * VARIANCE - end.sigma**2)


@pytest.mark.parametrize("sde", ["vp", "sub_vp", "ve"])
def test_a_noise_that_two_stages_share_gives_weak_order_two(sde: str) -> None:
    steps = (160, 320)
    tables = [stochastic_heun(knots(SDES[sde], n)) for n in steps]
    assert slope([weak_error(t) for t in tables], steps) == pytest.approx(2, abs=0.15)
    apart = [stochastic_heun(knots(SDES[sde], n), reuse=False) for n in steps]
    assert slope([weak_error(t) for t in apart], steps) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("options", [{}, {"reuse": False}, {"corner": 0.3}])
def test_the_executor_runs_a_stochastic_step_of_two_stages(options: dict[str, float]) -> None:
    table = stochastic_heun(knots(SDES["vp"], 5), **options)
    assert sum(row.draws for row in table.rows) == (5 if not options else 10)
    through_the_executor(table)


# --- the rest of the format

HERE = [Knot(1.0, 0.4, 0.9), Knot(0.7, 0.6, 0.8), Knot(0.4, 0.8, 0.5), Knot(0.2, 0.9, 0.3), Knot(0.1, 0.95, 0.1)]


def hand_made(*rows: Row, **options: object) -> Tableau:
    fields = {"name": "hand-made", "prediction": "data", "start": HERE[0], "end": HERE[-1], "prior_std": 1.0} | options
    return Tableau(rows=rows, **fields)


ODD_TABLES = {
    "one prediction skipped": hand_made(
        Row(HERE[0], (0.9, 0.1)),
        Row(HERE[1], (0.8, 0.2)),
        Row(HERE[2], (0.7, 0.2, 0.0, 0.3)),
        Row(HERE[3], (0.7, 0.2, 0.0, 0.0, 0.3)),
    ),
    "memory that comes and goes": hand_made(
        Row(HERE[0], (0.9, 0.1)),
        Row(HERE[1], (0.8, 0.2, 0.4)),
        Row(HERE[2], (0.5, 0.3)),
        Row(HERE[3], (0.6, 0.0, 0.3)),
        Row(HERE[3], (0.6, 0.1, 0.0, 0.2)),
    ),
    "earlier draws without a fresh one": hand_made(
        Row(HERE[0], (0.9, 0.1), noise=(0.5,)),
        Row(HERE[1], (0.8, 0.2), noise=(0.4, 0.3)),
        Row(HERE[2], (0.7, 0.2), noise=(0.0, 0.6, 0.2)),
        Row(HERE[3], (0.6, 0.2), noise=(0.1, 0.0, 0.7)),
    ),
    "noise of the anchor's own": hand_made(
        Row(HERE[0], (0.9, 0.1), anchor=(0.7, 0.2), noise=(0.5,), anchor_noise=(0.3,)),
        Row(HERE[1], (0.8, 0.2, 0.1), anchor=(0.6,), anchor_noise=(0.2, 0.4)),
        Row(HERE[2], (0.7, 0.2), anchor=(1.0,), noise=(0.0, 0.1)),
        Row(HERE[3], (0.5, 0.2, 0.3), noise=(0.0, 0.3, 0.2)),
    ),
    "churn before the first call": hand_made(
        Row(HERE[0], (0.9, 0.1), noise=(0.3,)), Row(HERE[1], (0.8, 0.2)), lift=(1.1, 0.6)
    ),
    "churn read again": hand_made(
        Row(HERE[0], (0.9, 0.1), noise=(0.0, 0.4)), Row(HERE[1], (0.8, 0.2), noise=(0.2, 0.3)), lift=(1.1, 0.6)
    ),
    "churn alone": hand_made(Row(HERE[0], (0.9, 0.1)), lift=(0.9, 0.6)),
    "scale alone": hand_made(Row(HERE[0], (0.9, 0.1)), lift=(0.5, 0.0)),
    "a jump up and a new start": hand_made(
        Row(HERE[0], (0.9, 0.1)),
        Row(HERE[1], (0.8, 0.2, 0.1)),
        Row(HERE[2], (0.9, 0.0), noise=(0.7,)),
        Row(HERE[1], (0.8, 0.3), restart=True),
        Row(HERE[2], (0.7, 0.2, 0.15)),
    ),
    "only the prediction": hand_made(Row(HERE[0], (0.0, 1.0)), Row(HERE[1], (0.0, 0.5, 0.5))),
    "only the state": hand_made(Row(HERE[0], (0.7,)), Row(HERE[1], (0.5,), noise=(0.2,))),
    "no row": hand_made(end=HERE[0]),
}


@pytest.mark.parametrize("prediction", ["data", "noise", "flow", "v", "score"])
@pytest.mark.parametrize("name", ODD_TABLES)
def test_the_executor_runs_every_kind_of_row(name: str, prediction: str) -> None:
    through_the_executor(replace(ODD_TABLES[name], prediction=prediction))


def test_the_maps_of_odd_tables_are_what_one_computes_by_hand() -> None:
    """With data N(m, 0) the data prediction is m, so that the numbers can be checked on paper."""
    churn = ODD_TABLES["churn read again"].affine_map(2.0, 0.0)
    # x = 1.1 s + 0.6 z0; then 0.9 x + 0.2 + 0.4 z0; then 0.8 (...) + 0.4 + 0.2 z1 + 0.3 z0.
    np.testing.assert_allclose(churn, [0.8 * 0.2 + 0.4, 0.8 * 0.9 * 1.1, 0.8 * (0.54 + 0.4) + 0.3, 0.2], rtol=1e-15)
    skipped = ODD_TABLES["one prediction skipped"].affine_map(2.0, 0.0)
    steps = [(0.9, 0.2), (0.8, 0.4), (0.7, 1.0), (0.7, 1.0)]
    constant, scale = 0.0, 1.0
    for on_x, push in steps:
        constant, scale = on_x * constant + push, on_x * scale
    np.testing.assert_allclose(skipped, [constant, scale], rtol=1e-15)


@pytest.mark.parametrize(
    ("rows", "options", "kind", "words"),
    [
        (
            [Row(HERE[0], (1.0, 0.5, 0.1))],
            {},
            ConfigError,
            r"rows\[0\]\.state of .* 'hand-made' weighs 3 terms, but 2 exist",
        ),
        (
            [Row(HERE[0], (1.0, 0.5)), Row(HERE[1], (1.0, 0.5, 0.1), restart=True)],
            {},
            ConfigError,
            r"rows\[1\]\.state .* 3 terms",
        ),
        ([Row(HERE[0], (1.0,), noise=(0.0, 0.1))], {}, ConfigError, r"rows\[0\]\.noise .* 2 terms, but 1 exist"),
        ([Row(HERE[0], (1.0,), anchor=(1.0, 0.0, 0.0))], {}, ConfigError, r"rows\[0\]\.anchor .* 3 terms"),
        ([Row(HERE[0], (1.0,), anchor_noise=(0.1,))], {}, ConfigError, "anchor that follows the state"),
        (
            [Row(HERE[0], (math.nan, 0.5))],
            {},
            DomainError,
            r"\.state\[0\] .* \(t = 1\) is nan, which is not finite",
        ),
        ([Row(HERE[0], (1.0,), noise=(math.inf,))], {}, DomainError, r"rows\[0\]\.noise\[0\] .* is inf"),
        ([Row(HERE[0], ())], {}, ConfigError, r"rows\[0\]\.state .* at least one weight.*leaves the state"),
        ([Row(HERE[0], ("a", 1.0))], {}, ConfigError, r"rows\[0\]\.state\[0\] .* must be a number, got 'a'"),
        ([], {"prediction": "nose"}, ConfigError, "did you mean 'noise'"),
        ([], {"prediction": "velocity"}, ConfigError, "choices"),
        ([], {"lift": (1.0, math.nan)}, ConfigError, r"lift\[1\]"),
        ([], {"prior_std": math.inf}, ConfigError, "prior_std"),
        ([Row(Knot(math.nan, 0.5, 0.5), (1.0,))], {}, ConfigError, r"rows\[0\]\.at\.t"),
    ],
)
def test_a_table_that_cannot_run_is_refused(rows, options, kind, words: str) -> None:
    with pytest.raises(kind, match=words):
        hand_made(*rows, **options)


def test_counts_times_and_memory() -> None:
    table = solvers.heun()(VPSDE(), torch.tensor([1.0, 0.5, 0.2], dtype=torch.float64))
    assert (table.nfe, table.memory, table.stochastic) == (4, 1, False)
    assert table.times == (1.0, 0.5, 0.2)
    assert table.denoised().nfe == 5
    assert table.denoised().times == (1.0, 0.5, 0.2, 0.0)
    assert solvers.multistep(order=3)(VPSDE(), grids.uniform(8)).memory == 2
    churned = ODD_TABLES["churn alone"]
    assert churned.stochastic
    assert (ODD_TABLES["no row"].nfe, ODD_TABLES["no row"].times, ODD_TABLES["no row"].memory) == (0, (1.0,), 0)


def test_denoised_and_without_last_noise_are_these_formulas() -> None:
    table = solvers.ancestral()(VPSDE(), torch.tensor([1.0, 0.5, 0.2], dtype=torch.float64))
    weights, end = table.affine_map(MEAN, VARIANCE), table.end
    posterior = end.alpha * VARIANCE / (end.alpha**2 * VARIANCE + end.sigma**2)
    expected = posterior * weights
    expected[0] += MEAN - posterior * end.alpha * MEAN
    np.testing.assert_allclose(table.denoised().affine_map(MEAN, VARIANCE), expected, atol=1e-15)
    assert table.denoised().end == CLEAN
    assert table.denoised().denoised() == table.denoised()
    np.testing.assert_array_equal(table.without_last_noise().affine_map(MEAN, VARIANCE), weights[:-1])
    nothing = hand_made(end=HERE[0])
    assert nothing.without_last_noise() == nothing


def test_the_law_starts_from_the_exact_process_unless_told_otherwise() -> None:
    table = hand_made(Row(HERE[0], (0.5, 0.0), noise=(2.0,)))
    mean, variance = table.law(3.0, 0.5)
    assert mean == pytest.approx(0.5 * 0.4 * 3.0)
    assert variance == pytest.approx(0.25 * (0.16 * 0.5 + 0.81) + 4.0)
    assert table.law(3.0, 0.5, start=(1.0, 0.0)) == pytest.approx((0.5, 4.0))


# --- JSON


def every_table() -> list[Tableau]:
    made = [
        solvers.named.by_name(name)(SDES[sde], grids.karras(7)).denoised() for name in FIXED for sde in ("vp", "ve")
    ]
    return [*made, *ODD_TABLES.values(), corrected_adams(knots(SDES["vp"], 5), 2), stochastic_heun(HERE)]


def test_json_gives_the_same_table_to_the_last_bit() -> None:
    for table in every_table():
        again = Tableau.from_json(table.to_json())
        assert again == table
        assert hash(again) == hash(table)
        assert again.to_json() == table.to_json()
        for row, other in zip(table.rows, again.rows, strict=True):
            assert (row.at.sigma.hex(), *map(float.hex, row.state)) == (
                other.at.sigma.hex(),
                *map(float.hex, other.state),
            )


TEXT = replace(ODD_TABLES["noise of the anchor's own"], order=Order(strong=1.0)).to_json()


def test_a_cut_text_is_refused() -> None:
    for length in range(0, len(TEXT) - 1, 7):
        with pytest.raises(ConfigError, match=r"Tableau\.to_json"):
            Tableau.from_json(TEXT[:length])


def damages() -> list[tuple[str, object]]:
    """(name, damaged content): each key missing or replaced by something of another type."""
    out: list[tuple[str, object]] = [("a list", []), ("a number", 3), ("a key too many", json.loads(TEXT) | {"x": 1})]
    for key, right in json.loads(TEXT).items():
        got = json.loads(TEXT)
        del got[key]
        out.append((f"without {key}", got))
        for wrong in ("words", None, 5, [1, 2, 3], {"t": 1}):
            if not (isinstance(right, str | float) and isinstance(wrong, type(right))) and (key, wrong) != (
                "prior_std",
                5,
            ):
                out.append((f"{key} = {wrong}", json.loads(TEXT) | {key: wrong}))
    for key in ("at", "state", "anchor", "noise", "anchor_noise", "increment"):
        for wrong in ("words", 5, {"t": 1}, ["a"]):
            got = json.loads(TEXT)
            got["rows"][1][key] = wrong
            out.append((f"row's {key} = {wrong}", got))
    got = json.loads(TEXT)
    got["rows"][1]["at"]["sigma"] = "big"
    out.append(("a knot of words", got))
    return out


@pytest.mark.parametrize(("name", "content"), damages(), ids=[name for name, _ in damages()])
def test_a_damaged_text_is_refused(name: str, content: object) -> None:
    with pytest.raises((ConfigError, DomainError)):
        Tableau.from_json(json.dumps(content))


def test_a_newer_format_is_named_as_such() -> None:
    with pytest.raises(ConfigError, match="newer version; upgrade"):
        Tableau.from_json(json.dumps(json.loads(TEXT) | {"format": 2}))


def test_nan_is_never_written_or_read() -> None:
    with pytest.raises(ConfigError, match="NaN is no number of JSON"):
        Tableau.from_json(TEXT.replace("0.7", "NaN", 1) if '"state": [0.7' in TEXT else TEXT.replace("[0.9", "[NaN", 1))


# --- text


def test_one_line_says_what_the_table_is() -> None:
    assert repr(solvers.ddim()(VPSDE(), grids.uniform(3))) == (
        "<Tableau ddim (eta = 0): 3 evaluations, t = 1 to 1e-05, deterministic, in the data prediction>"
    )


def test_the_printed_table_shows_every_weight() -> None:
    text = str(ODD_TABLES["noise of the anchor's own"])
    lines = text.splitlines()
    assert len(lines) == 2 + 4
    assert " ".join(lines[2].split()) == "1 -1.622 x <- [0.9, 0.1] + [0.5] z ; y <- [0.7, 0.2] + [0.3] z"
    assert "+ [0.2, 0.4] z" in lines[3]


def test_a_long_table_is_printed_without_its_middle() -> None:
    lines = str(solvers.ddim()(VPSDE(), grids.uniform(50))).splitlines()
    assert len(lines) == 2 + 10 + 1 + 10
    assert lines[12].split() == ["...", "30", "more", "rows"]
    assert lines[-1].split()[0] == "0.0200098"


def test_knots() -> None:
    assert Knot(0.0, 1.0, 0.0).log_snr == math.inf
    assert Knot(1.0, 0.0, 1.0).log_snr == -math.inf
    assert Knot(0.5, 0.6, 0.3).log_snr == pytest.approx(2 * math.log(2))
    point = Knot.of(VPSDE().at(torch.tensor([0.2, 0.7])))[1].point()
    torch.testing.assert_close(point.log_snr, VPSDE().log_snr(torch.tensor(0.7)).double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["ancestral", "seeds_3", "sra1", "sa_solver", "dpmpp_2m_sde"])
def test_the_mean_of_the_last_step_keeps_what_was_drawn_before_it(name: str) -> None:
    # The law without the last step's draws: their weights on the output are dropped, all others stay. A corrector
    # gives the draw of the step before a weight in the last row.
    table = build_table(VPSDE(), solvers.by_name(name), steps=4, final="sample")
    whole, mean = table.affine_map(0.3, 0.5), table.without_last_noise().affine_map(0.3, 0.5)
    last = {"seeds_3": 3, "sra1": 2}.get(name, 1)
    dropped = len(whole) - len(mean)
    full = np.concatenate([mean, np.zeros(dropped)])
    np.testing.assert_allclose(full[: len(whole) - last], whole[: len(whole) - last], rtol=1e-12)
    assert abs(full[-1]) < abs(whole[-1])
