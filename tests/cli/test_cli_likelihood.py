"""``scoresde likelihood``: the library's own numbers, kept part by part, and mistakes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from cli_helpers import Folders, main, refused
from safetensors.torch import load_file, save_file

from scoresde import Dequantisation, LevelsDecoder, ProbabilityFlow, ScoreModel, continuous_elbo, log_likelihood
from scoresde.cli import likelihood as verb
from scoresde.cli.presets import DATA
from scoresde.noise import stream

FAST = ["--samples", "2", "--tolerance", "0.1"]
PROBED = [*FAST, "--probes", "2", "--draws", "1"]


def values(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "values.safetensors")


def test_points_have_a_density(runs: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    points = runs[0]
    assert main(["likelihood", "--checkpoint", str(points), "--n", "70", "--out", str(tmp_path), *FAST]) == 0
    out = capsys.readouterr().out
    model, x = ScoreModel.load(points), DATA["moons"].test()[0][:70]
    flow = log_likelihood(model, x, divergence="exact", solver=ProbabilityFlow(0.1, 0.1))
    got = values(tmp_path)
    torch.testing.assert_close(got["flow"], flow.values, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got["truncation"], flow.truncation, rtol=1e-5, atol=1e-5)
    bound = continuous_elbo(model, model.sde, x[:64], samples=2, seed=stream(0, "continuous", 0).initial_seed())
    torch.testing.assert_close(got["continuous"][:64], -bound.per_sample, rtol=1e-5, atol=1e-5)
    table = json.loads((tmp_path / "likelihood.json").read_text())
    assert [row["name"] for row in table["rows"]] == ["flow", "continuous", "chain"]
    row = table["rows"][0]
    assert row["nats"] == pytest.approx(float(got["flow"].mean()))
    assert row["nats/dim"] == pytest.approx(float(got["flow"].mean()) / 2)
    assert row["nats_95"] == pytest.approx(1.96 * float(got["flow"].std(correction=0)) / math.sqrt(70))
    assert not row["lower_bound"]
    assert f"{row['nats']:.2f} ± {row['nats_95']:.2f}" in out
    assert "a density in the data's units" in out
    assert (tmp_path / "histogram.png").stat().st_size > 1000


def test_digits_have_levels_and_labels(runs: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    digits, data = runs[2], DATA["digits"]
    assert main(["likelihood", "--checkpoint", str(digits), "--n", "3", "--out", str(tmp_path), *PROBED]) == 0
    assert "on 17 levels in [-1, 1]" in capsys.readouterr().out
    model, (x, labels) = ScoreModel.load(digits), data.test()
    assert labels is not None
    cond = {"label": labels[:3]}
    flow = log_likelihood(
        model, x[:3], probes=2, draws=1, solver=ProbabilityFlow(0.1, 0.1), decoder=Dequantisation(17), cond=cond
    )
    torch.testing.assert_close(values(tmp_path)["flow"], flow.values, rtol=1e-4, atol=1e-3)
    row = json.loads((tmp_path / "likelihood.json").read_text())["rows"][0]
    assert row["bits/dim"] == pytest.approx(-float(flow.total) / (64 * math.log(2)), rel=1e-4)
    assert row["lower_bound"]
    seed = stream(0, "continuous", 0).initial_seed()
    # Half a bin is two standard deviations of the noise there.
    sde = model.sde.starting_at(float(model.sde.time(2 * math.log(2 * 16))))
    bound = continuous_elbo(model, sde, x[:3], samples=2, decoder=LevelsDecoder(17), cond=cond, seed=seed)
    torch.testing.assert_close(values(tmp_path)["continuous"], -bound.per_sample, rtol=1e-4, atol=1e-3)


def test_an_interrupted_run_goes_on_to_the_same_values(
    runs: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(verb, "PART", 4)
    command = ["likelihood", "--checkpoint", str(runs[0]), "--n", "10", *FAST]
    assert main([*command, "--out", str(tmp_path / "whole")]) == 0
    ask, calls = verb.continuous_elbo, []

    def stop(*args: object, **options: object) -> object:
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return ask(*args, **options)

    monkeypatch.setattr(verb, "continuous_elbo", stop)
    capsys.readouterr()
    assert main([*command, "--out", str(tmp_path / "part")]) == 130
    assert "4 of 10 samples are in" in capsys.readouterr().err
    assert json.loads((tmp_path / "part" / "likelihood.json").read_text())["done"] == 4
    assert main([*command, "--out", str(tmp_path / "part")]) == 0
    assert len(calls) == 4
    for name, one in values(tmp_path / "whole").items():
        assert torch.equal(one, values(tmp_path / "part")[name]), name
    # A third time there is nothing left to do.
    assert main([*command, "--out", str(tmp_path / "part")]) == 0
    assert len(calls) == 4


def test_results_of_other_options_are_not_gone_on_with(
    runs: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["likelihood", "--checkpoint", str(runs[0]), "--n", "4", "--out", str(tmp_path), *FAST]
    assert main(command) == 0
    message = refused(capsys, [*command, "--seed", "7", "--draws", "3"])
    assert "holds the likelihood of another draws, seed; choose another --out, or begin anew with --fresh" in message
    assert "another samples" in refused(capsys, [*command, "--n", "5"])
    assert main([*command, "--seed", "7", "--fresh"]) == 0
    whole = load_file(tmp_path / "values.safetensors")
    flow = whole.pop("flow")
    for damaged in (whole, {}, {**whole, "flow": flow[:2]}, {**whole, "flow": flow[None]}):
        save_file(damaged, tmp_path / "values.safetensors")
        message = refused(capsys, [*command, "--seed", "7"])
        assert "is damaged: its values are not those of so many samples; begin anew" in message
    (tmp_path / "values.safetensors").write_bytes(b"no")
    assert "is damaged" in refused(capsys, [*command, "--seed", "7"])


def test_a_bound_that_is_not_there_is_left_out_with_a_word(
    runs: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["likelihood", "--checkpoint", str(runs[1]), "--n", "3", "--out", str(tmp_path), *FAST]) == 0
    assert "left out the bound of 1000 steps: a DDPM chain preserves variance" in capsys.readouterr().err
    assert "chain" not in values(tmp_path)


MISTAKES = [
    (["--levels", "5"], "--levels 5 lie between --low and --high; say where"),
    (["--low", "0"], "--low and --high are the ends of levels"),
    (["--levels", "5", "--low", "0", "--high", "1"], "on the 5 levels"),
    (["--n", "0"], "n must be"),
    (["--n", "99999"], "n must be"),
    (["--probes", "3"], "probes must be"),
    (["--data", "digits"], "the model's samples have shape (2,), those of digits (1, 8, 8)"),
    (["--tolerance", "0"], "tolerance must lie in (0, inf), got 0"),
]


@pytest.mark.parametrize(("options", "message"), MISTAKES)
def test_a_mistake_is_one_line(
    runs: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    command = ["likelihood", "--checkpoint", str(runs[0]), "--out", str(tmp_path), *FAST]
    assert message in refused(capsys, [*command, *options])
