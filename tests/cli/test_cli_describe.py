"""``scoresde describe``, and what ``sample`` does with tables, ends and animations."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_helpers import QUICK, contents, main, refused
from PIL import Image

from scoresde import VPSDE, ScoreModel, build_table, sample
from scoresde.cli.presets import SDES
from scoresde.diffusions.named import DIFFUSIONS
from scoresde.nn import MLP
from scoresde.solvers import SOLVERS, ProbabilityFlow, by_name
from scoresde.solvers.tableau import Tableau


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hardly trained points with labels."""
    folder = tmp_path_factory.mktemp("describe") / "iris"
    argv = ["train", "--data", "iris", "--conditional", "--sde", "cosine", "--predicts", "v", "--seed", "7", *QUICK]
    assert main([*argv, "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def facts(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, str]:
    """Run describe and return the lines "word   text"."""
    capsys.readouterr()
    assert main(["describe", *argv]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return {line[:12].strip(): line[13:] for line in out.splitlines()}


# ---------------------------------------------------------------------------------------------------------------------
# describe


def test_a_run_is_described_as_it_is(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = facts(capsys, str(run))
    model = ScoreModel.load(run / "checkpoint")
    assert isinstance(model.net, MLP)
    assert told["checkpoint"] == f"{run / 'checkpoint'}/"
    assert told["network"].startswith(
        "MLP(classes=3, concat_channels=None, context_features=None, depth=3, event_shape=[4], "
    )
    count = sum(p.numel() for p in model.net.parameters())
    assert told["weights"] == f"{count} in {len(model.net.state_dict())} tensors of float32, raw and averaged"
    assert told["sde"] == repr(model.sde)
    assert told["predicts"] == "v, sigma_data 1.0, conditioned on log_snr"
    assert model.transform is not None
    assert json.loads(told["transform"]) == json.loads(json.dumps(model.transform.to_dict()))
    assert re.match(r"samples of shape \(4,\); mean .* standard deviation 0\.99\d ", told["moments"])
    assert told["training"] == "seed 7, step 4, times low_discrepancy, updates 4, weight v"
    assert re.match(r"step 4, loss [\d.]+, learning_rate ", told["last record"])
    assert "data iris" in told["options"]
    assert "conditional True" in told["options"]
    # The checkpoint's own folder serves too, and stands alone.
    alone = facts(capsys, str(run / "checkpoint"))
    assert alone["network"] == told["network"]


def test_a_log_that_is_broken_is_described_by_what_is_whole(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    whole = b'{"step": 3, "loss": 0.25, "count": 1' + b"0" * 400 + b"}\n"
    for rest in (b"\xff\xfe\n", b"[" * 100_000, b'{"step": "x"}\n', b'{"step": 4, "watched": 3}', b"\0"):
        (folder / "log.jsonl").write_bytes(whole + rest)
        assert facts(capsys, str(folder))["last record"] == "step 3, loss 0.25"
    (folder / "run.json").write_text("[" * 100_000)
    assert "run.json is damaged, it is no JSON" in refused(capsys, ["describe", str(folder)])


def test_a_network_and_an_sde_of_your_own_are_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Own(VPSDE):
        pass

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.shift = (torch.nn.Parameter(torch.zeros(n)) for n in (4, 2))

    ScoreModel(Net(), Own()).save("mine")
    told = facts(capsys, "mine")
    assert told["network"] == "Net(), your own"
    assert told["weights"] == "6 in 2 tensors of float32"
    assert told["sde"] == "Own, your own"
    assert told["moments"] == "none: the shape of a sample is not known"
    assert "training" not in told


@pytest.mark.parametrize("name", [*SDES, *DIFFUSIONS])
def test_a_diffusion_is_described_by_name(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["describe", name]) == 0
    built = DIFFUSIONS[name]() if name in DIFFUSIONS else SDES[name].build()
    out = capsys.readouterr().out
    assert out.startswith(built.describe() + "\n")
    assert ("sampler " in out) == (name in SOLVERS)
    for column in ("alpha", "sigma", "log_snr", "d log alpha/dt", "g"):
        assert column in out


def test_a_sampler_is_described_by_its_table(capsys: pytest.CaptureFixture[str]) -> None:
    def printed(*argv: str) -> str:
        assert main(["describe", *argv]) == 0
        return capsys.readouterr().out

    ve = SDES["ve"].build()
    table = build_table(ve, by_name("dpmpp_2m"), steps=5)
    for argv in (["dpmpp_2m:5", "--sde", "ve"], ["dpmpp_2m", "--steps", "5", "--sde", "VESDE"]):
        out = printed(*argv)
        assert out.endswith(f"table        {table}\n")
        assert out.startswith(f"sampler      dpmpp_2m under {ve}\n")
    assert "source       Lu et al. 2022" in out
    assert "order        2 (deterministic)" in out
    ends = build_table(VPSDE(), by_name("heun"), steps=3, final="sample")
    assert str(ends) in printed("heun:3", "--final", "sample")
    assert str(build_table(VPSDE(), by_name("ddim"), steps=10)) in printed("ddim"), "ten steps by default"
    assert "chooses its own steps" in printed("probability_flow")
    assert "corrector    Langevin(snr=0.16" in printed("pc:3")
    assert "4 evaluations" in printed("ddpm:4")


@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_every_sampler_has_a_description(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["describe", name]) == 0
    adaptive = isinstance(by_name(name), ProbabilityFlow)
    assert ("evaluations, t = " in capsys.readouterr().out) == (not adaptive)


def test_a_saved_table_is_described(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = build_table(VPSDE(), by_name("heun"), steps=3)
    Path("t.json").write_text(table.to_json())
    assert main(["describe", "t.json"]) == 0
    assert capsys.readouterr().out.endswith(f"table        {table}\n")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["dmpp_2m"], "unknown thing to describe 'dmpp_2m'; did you mean 'dpmpp_2m'?"),
        (["vpsde"], "or a folder, or a .json file"),
        (["absent.json"], "the table absent.json cannot be read: No such file or directory"),
        (["bad.json"], "bad.json: this is no saved table"),
        (["folder"], "checkpoint folder holds no checkpoint; make one with: scoresde train"),
        (["heun:x"], "after the colon stands a number of steps"),
        (["heun:3", "--steps", "4"], "sampler 'heun:3' names its steps already; leave out steps=4"),
        (["heun", "--steps", "0"], "steps must be at least 1, got 0"),
        (["heun", "--sde", "vpp"], "unknown sde 'vpp'"),
        (["heun", "--final", "clean"], "unknown final 'clean'"),
        (["ddpm:3", "--sde", "ve"], "VESDE does not; use ancestral:3"),
        (["probability_flow:3"], "chooses its own steps"),
        ([], "Missing from scoresde describe: FOLDER|NAME|FILE"),
    ],
)
def test_nonsense_is_one_line(argv: list[str], message: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("bad.json").write_text("{}")
    Path("folder").mkdir()
    assert message in refused(capsys, ["describe", *argv])


# ---------------------------------------------------------------------------------------------------------------------
# sample: tables, ends, animations


def test_a_saved_table_draws_the_same_samples(run: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["sample", "--checkpoint", str(run), "--n", "5", "--seed", "2"]
    for final in ("denoise", "sample", "mean"):
        own = ["--solver", "ancestral:6", "--final", final, "--out", "x.npy", "--save-table", "deep/t.json"]
        assert main([*argv, *own]) == 0
        model = ScoreModel.load(run / "checkpoint")
        table = Tableau.from_json(Path("deep/t.json").read_text())
        assert table == build_table(model.sde, by_name("ancestral"), steps=6, final=final)
        assert main([*argv, "--solver", "deep/t.json", "--out", "y.npy"]) == 0
        assert "5 samples by ancestral" in capsys.readouterr().out
        x, y = (np.load(f"{name}.npy", allow_pickle=False) for name in "xy")
        assert (x == y).all()
        cond = {"label": torch.arange(5) % 3}
        expected = sample(model, (5, 4), solver="ancestral", steps=6, final=final, seed=2, cond=cond)
        assert isinstance(expected, torch.Tensor)
        assert np.allclose(x, expected.numpy(), atol=1e-5)
    # A comparison takes it as well.
    compare = ["compare", "--checkpoint", str(run), "--n", "5", "--out", "c", "--samplers", "deep/t.json", "ddim:3"]
    assert main(compare) == 0
    rows = json.loads(Path("c/table.json").read_text())["rows"]
    assert [(row["sampler"].split()[0], row["nfe"]) for row in rows] == [("ancestral", 7), ("ddim", 3)]


def test_steps_and_chunks_are_options_of_their_own(run: Path, here: Path) -> None:
    argv = ["sample", "--checkpoint", str(run), "--n", "7", "--label", "versicolor"]
    assert main([*argv, "--solver", "heun:4", "--out", "x.npz"]) == 0
    assert main([*argv, "--solver", "heun", "--steps", "4", "--chunk-size", "3", "--out", "y.npz"]) == 0
    with np.load("x.npz", allow_pickle=False) as x, np.load("y.npz", allow_pickle=False) as y:
        assert np.allclose(x["samples"], y["samples"], atol=1e-5)
        assert x["labels"].tolist() == y["labels"].tolist() == ["versicolor"] * 7


def test_an_animation_runs_from_noise_to_the_samples(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ["train", "--data", "moons", "--sde", "ve", *QUICK, "--out", "run"]
    assert main(argv) == 0
    sampling = ["sample", "--checkpoint", "run", "--n", "50", "--chunk-size", "20", "--solver"]
    assert main([*sampling, "ancestral:6", "--out", "x.gif"]) == 0
    with Image.open("x.gif") as picture:
        assert picture.n_frames == 7
    # A long way is thinned to sixty frames, which start in noise of unit scale and end in the samples themselves.
    shown: list[Sequence[torch.Tensor]] = []
    captions: list[Sequence[str]] = []

    def kept(frames: Sequence[torch.Tensor], path: Path, **options: Sequence[str]) -> None:
        shown.append(frames)
        captions.append(options["captions"])
        path.touch()

    monkeypatch.setattr("scoresde.cli.pictures.animation", kept)
    assert main([*sampling, "ddim:70", "--out", "y.gif"]) == 0
    assert main([*sampling, "ddim:70", "--out", "y.npy"]) == 0
    assert len(shown[0]) == len(captions[0]) == 60
    assert (captions[0][0], captions[0][-1]) == ("t = 1", "t = 0")
    assert 0.8 < float(shown[0][0].std()) < 1.2
    assert np.allclose(shown[0][-1].numpy(), np.load("y.npy", allow_pickle=False), atol=1e-6)
    before = contents(here)
    assert "heun:20" in refused(capsys, [*sampling, "probability_flow", "--out", "z.gif"])
    assert contents(here) == before
