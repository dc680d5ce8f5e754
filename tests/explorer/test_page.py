"""The explorer's page in headless Chromium: its numbers against the library's, its controls, its links, its manners.

They run where ``make explorer`` has brought node's packages.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from explorer_helpers import PAGE, drive, needs_node
from torch import Tensor

from scoresde import DomainError, GaussianMixtureModel, ScoreModel, Tableau, build_table, nn, sample, solvers
from scoresde.cli.explore import Served, _bind, make_page
from scoresde.cli.presets import SDES
from scoresde.cli.run_folder import RunFolder
from scoresde.noise import normal, stream
from scoresde.solvers import grids

GRIDS = {
    "even": grids.even(),
    "log_snr": grids.log_snr(),
    "asinh": grids.log_snr(centre=3.0, width=4.5),
    "karras": grids.karras(),
    "rectified": grids.rectified(),
    "rectified 1.25": grids.rectified(power=1.25),
    "rectified 1.5": grids.rectified(power=1.5),
    "diffused 3.9": grids.diffused(power=3.9),
    "diffused": grids.diffused(),
}
ETAS = {
    "ancestral": "eta",
    "ddim": "eta",
    "euler_maruyama": "eta",
    "reverse_diffusion": "eta",
    "dpmpp_2m_sde": "eta",
    "sa_solver": "tau",
}
SOLVERS = (
    *("flow_abm", "ancestral", "ddim", "euler_maruyama", "reverse_diffusion", "dpmpp_2m", "dpmpp_2m_sde", "unipc"),
    *("sa_solver", "exponential_ab", "deis", "ipndm", "euler", "midpoint", "heun", "rk4"),
)
FROM_NOISE = ("deis", "ipndm")  # say nothing out of alpha = 0
MIXTURE: dict[str, Any] = {
    "dim": 2,
    "weights": [0.2, 0.5, 0.3],
    "means": [[-1.0, 0.3], [0.9, 0.8], [0.2, -1.1]],
    "stds": [0.1, 0.4, 0.25],
}


def cases() -> Iterator[dict[str, Any]]:
    for sde in SDES:
        for solver in SOLVERS:
            yield from ({"sde": sde, "solver": solver, "steps": n} for n in (1, 2, 3, 5, 10, 40))
            yield from ({"sde": sde, "solver": solver, "steps": 8, "grid": grid} for grid in GRIDS)
            if solver in ETAS:
                yield from ({"sde": sde, "solver": solver, "steps": 7, "eta": eta} for eta in (0.0, 0.5, 1.0))


def build(case: dict[str, Any]) -> Tableau:
    options = {ETAS[case["solver"]]: case["eta"]} if "eta" in case else {}
    made = getattr(solvers, case["solver"])(**options)
    grid = GRIDS[case["grid"]] if "grid" in case else None
    return build_table(SDES[case["sde"]].build(), made, steps=case["steps"], times=grid)


def padded(weights: Sequence[float] | None, length: int) -> list[float]:
    return [*(weights or ()), *(0.0,) * (length - len(weights or ()))]


@needs_node
def test_the_pages_tables_are_the_librarys() -> None:
    every = list(cases())
    script = """return args.map((one) => {
        try { return scoresde.toDocument(scoresde.buildTable({ ...one, sde: scoresde.DIFFUSIONS[one.sde] })); }
        catch (error) { return String(error); }
    });"""
    answer = drive([{"do": script, "args": every}])
    assert answer["errors"] == []
    compared = 0
    for case, document in zip(every, answer["answers"][0], strict=True):
        try:
            ours = build(case)
        except DomainError:  # a noise prediction out of alpha = 0
            assert isinstance(document, str), case
            continue
        assert isinstance(document, dict), (case, document)
        theirs = Tableau.from_json(json.dumps(document))
        assert (theirs.prediction, len(theirs.rows)) == (ours.prediction, len(ours.rows)), case
        for mine, other in zip(ours.rows, theirs.rows, strict=True):
            pairs = [((mine.at.t, mine.at.alpha, mine.at.sigma), (other.at.t, other.at.alpha, other.at.sigma))]
            pairs += [(mine.state, other.state), (mine.noise, other.noise), (mine.anchor, other.anchor)]
            pairs += [(mine.anchor_noise, other.anchor_noise)]
            for a, b in pairs:
                length = max(len(a or ()), len(b or ()))
                assert padded(a, length) == pytest.approx(padded(b, length), rel=1e-9, abs=1e-11), case
        compared += 1
    assert compared > 0.95 * len(every)


@needs_node
@pytest.mark.parametrize("name", ["vp", "edm", "rectified"])
def test_the_pages_samples_are_the_librarys(name: str) -> None:
    """Sixteen solvers on an exact mixture, from the same start state and the same draws."""
    sde, count, steps = SDES[name].build(), 5, 12
    tables = {
        one: build_table(sde, one, steps=steps) for one in SOLVERS if name != "rectified" or one not in FROM_NOISE
    }
    draws = normal((40, count, 2), stream(3, "draws")).double()  # the library casts its draws from float32
    z = draws[0] * float(sde.prior_std(sde.t_max))
    parts = {key: torch.tensor(MIXTURE[key], dtype=torch.float64) for key in ("weights", "means")}
    model = GaussianMixtureModel(sde=sde, **parts, std=torch.tensor(MIXTURE["stds"], dtype=torch.float64)).double()
    script = """const model = new scoresde.ExactModel(args.mixture);
    const out = {};
    for (const [name, table] of Object.entries(args.tables)) {
        let next = 1;
        const draw = (into) => into.set(args.draws[next++]);
        const course = await scoresde.run(table, model, Float64Array.from(args.z), draw);
        out[name] = [...course.states.at(-1)];
    }
    return out;"""
    args = {
        "mixture": MIXTURE,
        "tables": {one: json.loads(table.to_json()) for one, table in tables.items()},
        "draws": draws.flatten(1).tolist(),
        "z": z.flatten().tolist(),
    }
    found = drive([{"do": script, "args": args}])["answers"][0]
    for one, table in tables.items():
        x = sample(model, x_init=z, solver=table, final="sample", noise=list(draws[1:]))
        assert isinstance(x, Tensor)
        assert found[one] == pytest.approx(x.flatten().tolist(), rel=1e-6, abs=1e-8), one


def network(predicts: str, sde: str, dim: int, classes: int | None = None) -> ScoreModel:
    net = nn.MLP(dim, width=8, depth=2, seed=4, classes=classes)
    draw = stream(5, "network")
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.3 * normal(p.shape, draw))
    return ScoreModel(net, SDES[sde].build(), predicts=predicts).eval()


def run_of(
    model: ScoreModel, event: tuple[int, ...], data: str | None = None, names: tuple[str, ...] = ()
) -> RunFolder:
    return RunFolder(Path("model"), model, {}, data, torch.Size(event), len(names) or None, names, 0)


NETWORKS = [
    *(("noise", "vp", 2), ("data", "cosine", 1), ("v", "subvp", 2), ("score", "ve", 2), ("edm", "edm", 2)),
    ("velocity", "rectified", 2),
]


@needs_node
def test_a_network_in_the_page_says_what_it_says_here() -> None:
    """Data predictions at three levels of noise, for each prediction; the page's own network is such a document too."""
    points = [(0.9, 0.2), (0.3, 0.8), (1.0, 4.0)]
    steps, expected = [], []
    for predicts, sde, dim in NETWORKS:
        model = network(predicts, sde, dim)
        served = Served(run_of(model, (dim,)))
        assert served.network is not None
        x = normal((4, dim), stream(6, predicts), dtype=torch.float64)
        ours = [
            served.predict((x * math.hypot(alpha, sigma)).flatten(), alpha, sigma).tolist() for alpha, sigma in points
        ]
        expected.append(ours)
        args = {"document": served.network, "x": x.flatten().tolist(), "points": points}
        steps.append(
            {
                "do": """const model = new scoresde.NetworkModel(args.document);
            return args.points.map(([alpha, sigma]) => {
                const x = Float64Array.from(args.x, (v) => v * Math.hypot(alpha, sigma));
                const out = new Float64Array(x.length);
                model.data(x, { t: 0, alpha, sigma }, out);
                return [...out];
            });""",
                "args": args,
            }
        )
    for case, ours, theirs in zip(NETWORKS, expected, drive(steps)["answers"], strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert b == pytest.approx(a, rel=3e-5, abs=3e-5), case  # here the network computes in float32


MOVE = """const input = document.getElementById(args.id);
    input[input.type === "checkbox" ? "checked" : "value"] = args.value;
    input.dispatchEvent(new Event("input", { bubbles: true }));"""
SLOPES = "await scoresde.settled(); return scoresde.errors().map((one) => one.label);"
COURSE = """await scoresde.settled();
    return scoresde.shown().map(({ course }) => [[...course.states[0]], [...course.states.at(-1)]]);"""


def move(**values: object) -> list[dict[str, Any]]:
    return [{"do": MOVE, "args": {"id": key, "value": value}} for key, value in values.items()]


def slope(label: str) -> float:
    return float(label.rsplit("slope ", 1)[1])


@needs_node
def test_controls_links_and_edits() -> None:
    """A bent weight spoils the order; an edited one is marked and changes the samples; a link brings all of it back."""
    type_weight = """document.querySelector("details").open = true;
        const input = document.querySelectorAll("#table tr")[3].querySelectorAll("input")[1];
        input.value = args; input.dispatchEvent(new Event("change"));
        await scoresde.settled();
        return [document.querySelectorAll("#table .edited").length, document.getElementById("noted").textContent];"""
    first = drive(
        [
            {"do": SLOPES},
            {"do": "return document.getElementById('noted').textContent;"},
            *move(solver="dpmpp_2m", bent="2", bend="0.2"),
            {"do": SLOPES},
            *move(bend="0"),
            {"do": COURSE},
            *({"do": type_weight, "args": text} for text in ("a half", "1e9", "0.5")),
            {"do": COURSE},
            *move(beside=True, time="0.25", seed=None)[:2],
            {"do": COURSE},
            {"do": "return [...document.querySelectorAll('figcaption')].map((one) => one.textContent);"},
            {"do": "document.getElementById('link').click(); return [location.href, scoresde.state];"},
        ],
        url=PAGE.as_uri() + "#steps=9&particles=200&sde=%22cosine%22&solver=%22nothing%22&eta=7&seed=__proto__",
    )
    found = [answer for answer in first["answers"] if answer is not None]
    slopes, noted, bent, [[_, before]], word, large, good, [[_, after]], beside, captions, (link, state) = found
    assert first["errors"] == []
    assert first["asked"] == [a for a in first["asked"] if a.startswith(("file:", "data:"))]
    assert 2.6 < slope(slopes[0]) < 4.5  # flow_abm, whose name the link did not know
    assert [line.split(" must be")[0] for line in noted.split("\n")] == [
        *("the link's solver", "the link's eta", "the link's seed")
    ]
    assert slope(bent[0]) < 1.4
    assert bent[1].startswith("as it was")
    assert 1.6 < slope(bent[1]) < 2.5
    assert (word[0], large[0], good) == (0, 0, [1, ""])
    assert "“a half” is no number" in word[1]
    assert "take one from -1000 to 1000" in large[1]
    assert before != after
    assert beside[0][0] == beside[1][0] == beside[2][0]
    assert captions == [
        "the chain (DDPM): 9 evaluations",
        "the SDE (Euler-Maruyama): 9 evaluations",
        "the flow (dpmpp_2m): 9 evaluations",
    ]
    again = drive([{"do": COURSE}, {"do": "return scoresde.state;"}], url=link)["answers"]
    assert again == [beside, state]
    assert state["edits"] == {"2.1": 0.5}


@needs_node
def test_drawing_by_hand_and_by_keys_at_the_width_of_a_phone() -> None:
    """Places of the pointer become Gaussians there; keys do the same; nothing is wider than the phone; all is dark."""
    canvas = "#panels canvas"
    geometry = f"""await scoresde.settled();
        const canvas = document.querySelector("{canvas}");
        window.scrollTo(0, 0);
        return [[0, 0], [1, 0.5], [-1.5, -1]].map(([x, y]) =>
            scoresde.placeOf(x, y, canvas.clientWidth, canvas.clientHeight));"""
    where = drive([{"do": geometry}], url=PAGE.as_uri() + "#target=%22drawn%22", width=390, height=844)["answers"][0]
    answer = drive(
        [
            {"do": "await scoresde.settled(); window.scrollTo(0, 0);"},
            {"drag": canvas, "along": where},
            {"do": "await scoresde.settled(); return [scoresde.state.drawn, scoresde.state.time];"},
            {"do": f"document.querySelector('{canvas}').focus();"},
            {
                "press": [
                    "ArrowRight",
                    "Shift+ArrowUp",
                    "Enter",
                    "ArrowLeft",
                    "ArrowLeft",
                    "ArrowLeft",
                    " ",
                    "Backspace",
                ]
            },
            {"do": "await scoresde.settled(); return scoresde.state.drawn;"},
            {"do": "document.getElementById('undo').click(); document.getElementById('undo').click();"},
            {"do": "return scoresde.state.drawn;"},
            {"do": "return [document.documentElement.scrollWidth, getComputedStyle(document.body).backgroundColor];"},
            {
                "do": """await scoresde.settled();
                return [...document.querySelectorAll("canvas")].map((one) =>
                    [one.getAttribute("role"), one.ariaLabel]);"""
            },
            {"do": "document.getElementById('play').focus();"},
            {"press": [" ", "Tab"]},
            {"do": "return document.getElementById('play').textContent;"},
            {"press": ["End", "ArrowLeft"]},
            {"do": "return [document.getElementById('play').textContent, scoresde.state.time];"},
            {"press": ["Tab"] * 18},
        ],
        url=PAGE.as_uri() + "#target=%22drawn%22&time=0.5&particles=100&steps=4&solver=%22ddim%22",
        width=390,
        height=844,
        dark=True,
    )
    assert answer["errors"] == []
    found = [one for one in answer["answers"] if one is not None]
    (drawn, time), _, keyed, undone, (width, ground), labels, _, playing, _, (paused, scrubbed), tabbed = found
    assert drawn == pytest.approx([0, 0, 1, 0.5, -1.5, -1], abs=0.03)
    assert time == 1
    # (0.1, 0.01) is nearer to (0, 0) than the brush is wide; (-0.2, 0.01) was undone.
    assert keyed == drawn
    assert undone == []
    assert width == 390
    assert ground == "rgb(22, 24, 28)"
    assert len(labels) == 3
    for role, label in labels:
        assert role == "img"
        assert len(label) > 40
    assert playing == "Pause"
    assert paused == "Play"
    assert 0.9 < scrubbed < 1
    every = [
        "target",
        "brush",
        "undo",
        "clear",
        "sde",
        "open",
        "solver",
        "grid",
        "steps",
        "eta",
        "beside",
        "bent",
        "bend",
    ]
    assert tabbed == [*every, "particles", "density", "lines", "noise", "link"]


@needs_node
def test_a_file_is_opened_or_refused_with_nothing_lost() -> None:
    served = Served(run_of(network("v", "subvp", 2), (2,)))
    document = json.dumps(served.network | {"sde": "subvp"}) if served.network else ""
    choose = """const files = new DataTransfer();
        files.items.add(new File([args], "mine.json"));
        const input = document.getElementById("file");
        input.files = files.files;
        input.dispatchEvent(new Event("change"));
        await new Promise((go) => setTimeout(go, 300));
        const { target, sde } = scoresde.state;
        return [target, sde, document.getElementById("noted").textContent, document.getElementById("target").value];"""
    answer = drive(
        [
            *({"do": choose, "args": text} for text in ("no json", document)),
            {"do": "return scoresde.shown()[0].course.states.at(-1).length;"},
            {"do": choose, "args": document.replace('"v"', '"w"')},
        ],
        url=PAGE.as_uri() + "#particles=10&steps=3",
    )
    refused, taken, count, kept = answer["answers"]
    assert answer["errors"] == []
    assert refused == [
        *("ring", "vp"),
        "mine.json is no network for the explorer, it holds no JSON; "
        "write one with scoresde explore --checkpoint FOLDER --out network.json",
        "ring",
    ]
    assert taken == ["file", "subvp", "", "file"]
    assert count == 20
    assert kept[:2] == ["file", "subvp"]
    assert 'its "predicts" is none of' in kept[2]


@pytest.fixture
def serve() -> Iterator[Callable[[Served | None], str]]:
    running = []

    def start(served: Served | None) -> str:
        server = _bind(0, served)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        running.append((server, thread))
        return f"http://127.0.0.1:{server.server_address[1]}/"

    yield start
    for server, thread in running:
        server.shutdown()
        server.server_close()
        thread.join()


@needs_node
def test_a_model_of_pictures_is_explored_where_it_is(serve: Callable[[Served | None], str]) -> None:
    net = nn.UNet(1, width=4, multipliers=(1,), classes=3)
    model = ScoreModel(net, SDES["vp"].build()).eval()
    served = Served(run_of(model, (1, 6, 6), names=("a", "b", "c")), "b")
    answer = drive(
        [
            {
                "do": """scoresde.state.steps = 3; scoresde.state.particles = 4; await scoresde.compute();
                return [scoresde.shown()[0].title, [...scoresde.shown()[0].course.states[0]],
                        [...scoresde.shown()[0].course.states.at(-1)], scoresde.toDocument(scoresde.shown()[0].table),
                        document.getElementById("said").textContent];"""
            }
        ],
        url=serve(served),
    )
    _, start, end, table, said = answer["answers"][0]
    assert said == ""
    x = sample(
        model,
        x_init=torch.tensor(start, dtype=torch.float64).reshape(-1, 1, 6, 6).float(),
        solver=Tableau.from_json(json.dumps(table)),
        final="sample",
        cond={"label": torch.ones(len(start) // 36, dtype=torch.long)},
    )
    assert isinstance(x, Tensor)
    assert end == pytest.approx(x.flatten().tolist(), abs=1e-4)
    assert answer["errors"] == []


def test_the_page_stands_alone() -> None:
    page = make_page()
    assert page == PAGE.read_text(encoding="utf-8")
    assert len(page) < 1_000_000
    for word in ("http://", "https://", "import(", "@import", "src="):
        assert word not in page, word
