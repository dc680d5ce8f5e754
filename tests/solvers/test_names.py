"""Names: one dict, its aliases, its type; what near misses say; each solver, grid and table in one line and in HTML."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import get_args

import pytest

from scoresde import VPSDE, ConfigError, DTypeError, ProbabilityFlow, RectifiedFlow, Solver, build_table, solvers
from scoresde.solvers import SOLVERS, SolverName, by_name, grids
from scoresde.solvers.ancestral import VARIANCES, Variance
from scoresde.solvers.clocks import VARIABLES, VariableName
from scoresde.solvers.forms import FORMS, FormName
from scoresde.solvers.named import ALIASES, DEFAULT
from scoresde.solvers.pairs import EMBEDDED, EmbeddedName
from scoresde.solvers.published import Rounding
from scoresde.solvers.quadrature import COEFFICIENTS, CoefficientsName
from scoresde.solvers.rows import Order
from scoresde.solvers.tableau import Tableau


@pytest.mark.parametrize(
    ("words", "table"),
    [
        (SolverName, SOLVERS),
        (VariableName, VARIABLES),
        (FormName, FORMS),
        (CoefficientsName, COEFFICIENTS),
        (EmbeddedName, EMBEDDED),
        (Variance, VARIANCES),
    ],
)
def test_a_type_of_names_has_the_names_of_its_table(words: object, table: dict[str, object]) -> None:
    assert sorted(get_args(words)) == sorted(table)
    assert len(get_args(words)) == len(set(get_args(words)))


def test_the_roundings_of_unipc_are_coefficients_that_correct() -> None:
    assert set(get_args(Rounding)) == {name for name, rule in COEFFICIENTS.items() if rule.corrects}


def test_every_name_is_the_builder_of_the_room() -> None:
    for name, builder in SOLVERS.items():
        assert builder is (ProbabilityFlow if name == "probability_flow" else getattr(solvers, name))
    assert DEFAULT in SOLVERS
    assert len(SOLVERS) == 41


def test_what_the_room_exports_is_there_once() -> None:
    assert len(solvers.__all__) == len(set(solvers.__all__))
    assert set(SOLVERS) - {"probability_flow"} < set(solvers.__all__)
    for name in solvers.__all__:
        assert getattr(solvers, name) is not None
    public = {name for name, value in vars(solvers).items() if callable(value) and not name.startswith("_")}
    assert public | {"SOLVERS", "SolverName"} == set(solvers.__all__) | {"SolverName"}


@pytest.mark.parametrize("alias", ALIASES)
def test_an_alias_is_the_method_that_it_names(alias: str) -> None:
    original = SOLVERS[alias].__name__
    assert original != alias
    assert original not in ALIASES
    assert by_name(alias) == by_name(original)
    assert build_table(VPSDE(), alias) is build_table(VPSDE(), original)
    entry = next(entry for entry in solvers.list() if entry.name == alias)
    assert entry.paper == f"as {original}"
    assert replace(entry, name=original, paper="") == replace(
        next(entry for entry in solvers.list() if entry.name == original), paper=""
    )


# --- a name in the place of a solver


def test_build_table_takes_a_name() -> None:
    for name in ("flow_abm", "milstein", "edm"):
        assert build_table(VPSDE(), name, steps=7) is build_table(VPSDE(), by_name(name), steps=7)
    table = build_table(RectifiedFlow(), "heun", times=grids.karras(5), final="sample")
    assert table == build_table(RectifiedFlow(), solvers.heun(), times=grids.karras(5), final="sample")
    assert build_table(VPSDE(), table) == table.denoised()


def test_a_solver_without_tables_is_refused_by_name_and_as_itself() -> None:
    for solver in ("probability_flow", ProbabilityFlow()):
        with pytest.raises(DTypeError, match=r"chooses its own steps and has no table"):
            build_table(VPSDE(), solver)
    with pytest.raises(DTypeError, match=r"a builder is called first: solver=solvers\.ddim\(\)"):
        build_table(VPSDE(), solvers.ddim)


NEAR = {
    "DPMPP_2M": "dpmpp_2m",
    "dpm++_2m": "dpmpp_2m",
    "DPM-Solver++(2M)": "dpmpp_2m",
    "DPM++ 2M SDE": "dpmpp_2m_sde",
    "dpm-solver++-3s": "dpmpp_3s",
    "DPM-Solver-2": "dpm_solver_2",
    "euler-maruyama": "euler_maruyama",
    "EulerMaruyama": "euler_maruyama",
    "heun2": "heun",
    "UniPC": "unipc",
    "SA-Solver": "sa_solver",
    "DDIM": "ddim",
    "flow abm": "flow_abm",
    "RK-4": "rk4",
    "Milstein": "milstein",
}


@pytest.mark.parametrize(("miss", "meant"), NEAR.items())
def test_a_near_miss_names_the_right_word(miss: str, meant: str) -> None:
    for call in (by_name, lambda name: build_table(VPSDE(), name)):
        with pytest.raises(ConfigError, match=re.escape(f"unknown solver {miss!r}; did you mean {meant!r}? choices:")):
            call(miss)


def test_a_far_miss_names_every_choice() -> None:
    for name in ("", "zzz", "---"):
        with pytest.raises(ConfigError, match=rf"unknown solver {name!r}; choices: ancestral, .*, unipc$"):
            by_name(name)


@pytest.mark.parametrize(
    ("make", "meant"),
    [
        (lambda: solvers.heun(variable="Log-SNR"), "log_snr"),
        (lambda: solvers.multistep(prediction="Data"), "data"),
        (lambda: solvers.multistep(coefficients="BH-2"), "bh2"),
        (lambda: solvers.exponential(coefficients="Published"), "published"),
        (lambda: solvers.unipc(variant="b_h1"), "bh1"),
        (lambda: solvers.sa_solver(coefficients="Exact"), "exact"),
        (lambda: solvers.ancestral(variance="Large"), "large"),
        (lambda: ProbabilityFlow(method="DOPRI-5"), "dopri5"),
    ],
)
def test_options_in_words_name_the_right_word_too(make, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"did you mean '{meant}'"):
        make()


# --- one line


@pytest.mark.parametrize("name", sorted(set(SOLVERS) - {"probability_flow"}))
def test_a_solver_is_one_short_line(name: str) -> None:
    solver = by_name(name)
    assert isinstance(solver, Solver)
    line = repr(solver)
    assert str(solver) == line
    assert line.startswith(f"<Solver {SOLVERS[name].__name__}")
    assert f"{solver.calls} evaluation" in line
    assert line.endswith(f"grid {solver.grid.name}>")
    assert "\n" not in line
    assert len(line) < 160


@pytest.mark.parametrize(
    ("solver", "line"),
    [
        (
            solvers.dpmpp_2m(eta=0.5),
            "<Solver dpmpp_2m (data, log_snr, order 2, eta = 0.5, midpoint), 1 evaluation a step, order 1 "
            "strong, 2 weak, grid log_snr (centre = 3, width = 4.5)>",
        ),
        (solvers.heun(variable="nu"), "<Solver heun (nu), 2 evaluations a step, order 2, grid karras (rho = 7)>"),
        (
            solvers.multistep(eta=lambda t: t, corrector=3),
            "<Solver multistep (data, log_snr, order 2, eta = eta(t), corrector 3), 1 evaluation a step, order 1 "
            "strong, 2 weak, grid log_snr (centre = 3, width = 4.5)>",
        ),
        (
            solvers.exponential(order=2, eta=0.5, nodes=(0.25,)),
            "<Solver exponential (data, eta = 0.5, node 0.25, exact), 2 evaluations a step, order 1 strong, 2 "
            "weak, grid log_snr>",
        ),
        (
            solvers.restart(solvers.ddim(0.3), t_min=0.1, t_max=0.4, repeats=2, steps=3, name="twice"),
            "<Solver twice (ddim, 2 from t = 0.1 to 0.4 of 3 steps), 1 evaluation a step, grid even>",
        ),
        (
            solvers.edm(churn=8.0),
            "<Solver edm (heun, churn = 8 from 0.05 to 50, s_noise = 1.003), 2 evaluations a step, grid karras "
            "(rho = 7)>",
        ),
        (
            solvers.annealed_langevin(repeats=2, step=0.1),
            "<Solver annealed_langevin (2 steps of 0.1 sigma^2 a level), 2 evaluations a step, grid log_snr>",
        ),
        (solvers.corrector_only(), "<Solver corrector_only, 1 evaluation a step, grid log_snr>"),
        (
            Solver("own", lambda sde, times: None, order=Order(2.0)),
            "<Solver own, 1 evaluation a step, order 2, grid log_snr>",
        ),
    ],
)
def test_the_line_has_the_options_that_matter(solver: Solver, line: str) -> None:
    assert repr(solver) == line


def test_a_grid_is_one_short_line() -> None:
    assert repr(grids.karras()) == "<Grid karras (rho = 7)>"
    assert repr(grids.uniform(12)) == "<Grid uniform, 12 steps>"
    assert repr(grids.Grid("mine", lambda sde, fractions: fractions)) == "<Grid mine>"


# --- notebooks


def cells(html: str) -> list[list[str]]:
    """The text of each cell, row by row."""
    return [re.findall(r"<t[dh]>(.*?)</t[dh]>", row) for row in re.findall(r"<tr>(.*?)</tr>", html, re.DOTALL)]


def test_a_table_shows_its_rows_in_a_notebook() -> None:
    table = build_table(VPSDE(), "heun", steps=3)
    html = table._repr_html_()
    head, *rows = cells(html)
    assert head[:2] == ["t", "log_snr"]
    assert len(rows) == table.nfe
    printed = str(table).splitlines()[2:]
    for row, line in zip(rows, printed, strict=True):
        assert " ".join(row).replace("&lt;", "<") == " ".join(line.split())
    assert "<caption>Tableau heun (rectified): 6 evaluations, t = 1 to 0, deterministic, in the flow" in html
    for tag in ("table", "caption", "thead", "tbody"):
        assert html.count(f"<{tag}>") == html.count(f"</{tag}>") == 1


def test_a_long_table_is_shown_without_its_middle_and_an_empty_one_without_rows() -> None:
    long = solvers.ddim()(VPSDE(), grids.uniform(50))
    _, *rows = cells(long._repr_html_())
    assert len(rows) == 10 + 1 + 10
    assert rows[10] == ["...", "", "30 more rows"]
    assert len(long._repr_html_()) < 4000
    empty = Tableau("nothing", "data", (), long.start, long.start, 1.0)
    assert len(cells(empty._repr_html_())) == 1


def test_a_name_cannot_break_out_of_the_table() -> None:
    table = replace(build_table(VPSDE(), "ddim", steps=2), name="<script>alert('&')</script>")
    html = table._repr_html_()
    assert "<script>" not in html
    assert "&lt;script&gt;alert(&#x27;&amp;&#x27;)&lt;/script&gt;" in html
