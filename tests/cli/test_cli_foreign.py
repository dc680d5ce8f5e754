"""Folders of diffusers where a checkpoint is asked for: their samples, what they are measured against, and mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_helpers import contents, main, refused
from foreign import small_dit, small_unet
from torch import Tensor

from scoresde import (
    VPSDE,
    Affine,
    Moments,
    ProbabilityFlow,
    ScoreModel,
    from_diffusers,
    guidance,
    guided,
    sample,
    sample_posterior,
)
from scoresde.metrics import sliced_wasserstein
from scoresde.nn import MLP
from scoresde.noise import integers, normal, stream

diffusers = pytest.importorskip("diffusers")

CPU = ("--threads", "1")
SAMPLERS = ("--samplers", "ddim:4", "euler_maruyama:4")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A pipeline, a model of classes with its scheduler beside it, and a transformer of latents."""
    home = tmp_path_factory.mktemp("foreign")
    scheduler = diffusers.DDIMScheduler(num_train_timesteps=100)
    diffusers.DDIMPipeline(small_unet(), scheduler).save_pretrained(home / "plain")
    for part in (small_unet(num_class_embeds=3), scheduler):
        part.save_pretrained(home / "classes")
    small_dit().save_pretrained(home / "latents" / "transformer")
    scheduler.save_pretrained(home / "latents" / "scheduler")
    (home / "latents" / "vae").mkdir()
    return {one.name: one for one in home.iterdir()}


def read_table(folder: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Return the rows of table.json by sampler."""
    rows = json.loads((folder / "table.json").read_text())["rows"]
    return {row["sampler"]: row for row in rows}


def test_samplers_are_measured_against_the_models_own_flow(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(folders["plain"])
    argv = ["compare", "--checkpoint", str(folders["plain"]), "--n", "6", "--out", str(tmp_path), *SAMPLERS, *CPU]
    assert main([*argv, "--seed", "3"]) == 0
    out, err = capsys.readouterr()
    assert "drawing 12 samples of the model's own flow" in err
    assert "no data: measured against the model's own flow, which knows nothing of the network's own errors" in out
    model = from_diffusers(folders["plain"])
    fine = sample(model, (12, 1, 8, 8), solver=ProbabilityFlow(rtol=1e-5, atol=1e-5), seed=3)
    drawn = {name: sample(model, (6, 1, 8, 8), solver=name, steps=4, seed=3) for name in ("ddim", "euler_maruyama")}
    rows = read_table(tmp_path)
    assert rows["ddim"]["distances"]["flow_error"] == pytest.approx(
        float((drawn["ddim"] - fine[:6]).square().mean().sqrt()), rel=1e-3
    )
    assert "flow_error" not in rows["euler_maruyama"]["distances"], "it has draws of its own"
    for name, x in drawn.items():
        distance = sliced_wasserstein(x, fine[6:])
        assert rows[name]["distances"]["sliced_wasserstein"] == pytest.approx(distance, rel=1e-3)
        assert rows[name]["floors"].keys() == {"sliced_wasserstein"}
    assert {one.name for one in tmp_path.iterdir()} == {"table.json", "comparison.png", "samples.png"}
    assert contents(folders["plain"]) == before


def test_the_classes_come_in_turn_on_both_sides(folders: dict[str, Path], tmp_path: Path) -> None:
    argv = ["compare", "--checkpoint", str(folders["classes"]), "--n", "4", "--out", str(tmp_path), *CPU]
    assert main([*argv, "--samplers", "ddim:4", "ddim:4@2", "ddim:4@5"]) == 0
    model, label = from_diffusers(folders["classes"]), torch.arange(4) % 3
    fine = sample(
        model,
        (8, 1, 8, 8),
        solver=ProbabilityFlow(rtol=1e-5, atol=1e-5),
        seed=0,
        cond={"label": torch.cat([label, label])},
    )
    x = sample(model, (4, 1, 8, 8), solver="ddim", steps=4, seed=0, cond={"label": label})
    rows = json.loads((tmp_path / "table.json").read_text())["rows"]
    errors = [float((x - fine[:4])[:n].square().mean().sqrt()) for n in (4, 2, 4)]
    assert [row["distances"]["flow_error"] for row in rows] == pytest.approx(errors, rel=1e-3)
    assert [len(row["floors"]) for row in rows] == [1, 1, 0], "there are no two sets of five among eight"


def test_data_that_are_named_are_brought_to_the_models_range(folders: dict[str, Path], tmp_path: Path) -> None:
    pixels = integers(256, (20, 1, 8, 8), stream(1)).to(torch.uint8)
    np.save(tmp_path / "pixels.npy", pixels.numpy())
    argv = ["compare", "--checkpoint", str(folders["plain"]), "--data", str(tmp_path / "pixels.npy")]
    assert main([*argv, "--samplers", "ddim:4", "--n", "8", "--out", str(tmp_path / "out"), *CPU]) == 0
    held_out = pixels[::5] / 127.5 - 1
    x = sample(from_diffusers(folders["plain"]), (8, 1, 8, 8), solver="ddim", steps=4, seed=0)
    row = read_table(tmp_path / "out")["ddim"]
    assert row["distances"] == pytest.approx({"sliced_wasserstein": sliced_wasserstein(x, held_out)}, rel=1e-3)


def test_a_checkpoint_without_data_is_measured_in_its_own_units(tmp_path: Path) -> None:
    data = 100 + 20 * normal((64, 2), stream(2))
    scale = Affine.standardise(data)
    made = ScoreModel(MLP(2, width=8, depth=1), VPSDE(), moments=Moments.of(scale.forward(data)), transform=scale)
    made.save(tmp_path / "saved")
    argv = ["compare", "--checkpoint", str(tmp_path / "saved"), "--samplers", "ddim:4", "--n", "6", *CPU]
    assert main(argv) == 0
    x, fine = (
        scale.forward(sample(made, 6, solver=solver, steps=steps, seed=0))
        for solver, steps in (("ddim", 4), (ProbabilityFlow(rtol=1e-5, atol=1e-5), None))
    )
    row = read_table(tmp_path / "saved" / "comparison")["ddim"]
    assert row["distances"]["flow_error"] == pytest.approx(float((x - fine).square().mean().sqrt()), rel=1e-3)
    assert row["distances"].keys() == {"flow_error", "sliced_wasserstein", "energy_distance"}


def drawn(folder: Path, out: Path, *options: str) -> Tensor:
    """Return what ``scoresde sample`` writes."""
    assert main(["sample", "--checkpoint", str(folder), "--solver", "ddim:4", "--out", str(out), *options, *CPU]) == 0
    return torch.from_numpy(np.load(out))


def test_samples_labels_sizes_and_guidance(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "x.npy"
    model = from_diffusers(folders["classes"])
    found = drawn(folders["classes"], out, "--n", "3", "--label", "2", "--seed", "5")
    cond = {"label": torch.full((3,), 2)}
    torch.testing.assert_close(found, sample(model, (3, 1, 8, 8), solver="ddim", steps=4, seed=5, cond=cond))
    found = drawn(folders["plain"], out, "--n", "2", "--size", "16")
    larger = sample(from_diffusers(folders["plain"]), (2, 1, 16, 16), solver="ddim", steps=4, seed=0)
    torch.testing.assert_close(found, larger)
    capsys.readouterr()
    found = drawn(folders["latents"], out, "--n", "2", "--label", "207", "--guidance", "3")
    assert f"note: samples of {folders['latents']} are latents; its decoder is not applied" in capsys.readouterr().err
    strong = guided(from_diffusers(folders["latents"]), 3.0)
    cond = {"label": torch.full((2,), 207)}
    torch.testing.assert_close(found, sample(strong, (2, 4, 4, 4), solver="ddim", steps=4, seed=0, cond=cond))
    grey = tmp_path / "grey.npy"
    np.save(grey, np.full((1, 1, 8, 8), 0.3, dtype=np.float32))
    argv = ["restore", "--checkpoint", str(folders["plain"]), "--data", str(grey), "--operator", "grey", "--n", "2"]
    assert main([*argv, "--noise-std", "0.05", "--steps", "5", "--out", str(out), *CPU]) == 0
    restored = sample_posterior(
        from_diffusers(folders["plain"]),
        guidance.Grey(),
        torch.full((1, 8, 8), 0.3),
        2,
        noise_std=0.05,
        steps=5,
        event=(1, 8, 8),
        seed=0,
    )
    torch.testing.assert_close(torch.from_numpy(np.load(out))[0], restored.x, rtol=1e-4, atol=1e-4)
    picture = tmp_path / "x.png"
    assert main(["sample", "--checkpoint", str(folders["plain"]), "--n", "2", "--out", str(picture), *CPU]) == 0
    assert picture.stat().st_size > 1000


def test_a_folder_is_described(folders: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["describe", str(folders["classes"])]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"diffusers    {folders['classes']}/"
    assert lines[1].startswith("network      UNet2DModel of ")
    assert lines[3] == "sde          TabulatedSDE(100 knots on [0.01, 1])"
    assert lines[-3:] == [
        "predicts     noise, variance fixed",
        "makes        samples of shape (1, 8, 8)",
        "classes      3",
    ]
    assert main(["describe", str(folders["latents"])]) == 0
    said = capsys.readouterr().out
    assert "makes        latents of shape (4, 4, 4), for a decoder\n" in said
    assert "variance learned" in said


def test_mistakes(folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(verb: str, folder: Path, *options: str) -> str:
        option = [] if verb == "describe" else ["--checkpoint"]
        return refused(capsys, [verb, *option, str(folder), *options])

    plain, classes = folders["plain"], folders["classes"]
    assert "--label 1: " in said("sample", plain, "--label", "1")
    assert "was trained without labels; leave it out" in said("sample", plain, "--label", "1")
    assert "unknown class '3'; " in said("sample", classes, "--label", "3")
    assert "is told none; leave it out" in said("sample", plain, "--guidance", "2")
    assert "keeps no tables; in Python, tune(from_diffusers(folder), 5, event=(1, 8, 8))" in said("tune", plain)
    assert "no data are named; add --data FOLDER" in said("compare", plain, "--on-bad-image", "skip")
    assert "has no run.json that names its data; say which with --data" in said("likelihood", plain)
    assert "samples have shape (1, 8, 8), those of moons (2,)" in said("compare", plain, "--data", "moons")

    def change(name: str, part: str, **values: object) -> Path:
        """Return a copy of the pipeline whose configuration says something else."""
        for file, data in contents(plain).items():
            (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / file).write_bytes(data)
        file = tmp_path / name / part
        file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
        return tmp_path / name

    sized = change("sized", "unet/config.json", sample_size=None)
    assert '"sample_size": 32' in said("compare", sized)
    told = change("told", "scheduler/scheduler_config.json", prediction_type="flow")
    assert "unknown prediction_type 'flow'; choices: epsilon, sample" in said("sample", told)
    for file in ("config.json", "diffusion_pytorch_model.safetensors"):
        (told / "unet" / file).unlink()
    (told / "unet").rmdir()
    assert "holds no network: no unet/, no transformer/" in said("sample", told)
    (told / "config.json").write_text("{}")
    (told / "scheduler" / "scheduler_config.json").unlink()
    assert "scheduler_config.json cannot be read" in said("describe", told)
    with torch.random.fork_rng():
        text = diffusers.UNet2DConditionModel(
            block_out_channels=(4,),
            layers_per_block=1,
            norm_num_groups=1,
            cross_attention_dim=4,
            attention_head_dim=1,
            down_block_types=("CrossAttnDownBlock2D",),
            up_block_types=("CrossAttnUpBlock2D",),
        )
    text.save_pretrained(tmp_path / "text" / "unet")
    diffusers.DDIMScheduler().save_pretrained(tmp_path / "text" / "scheduler")
    assert "which is told of a text; the command line has none to tell" in said("compare", tmp_path / "text")
    assert list(tmp_path.glob("**/*.png")) == []
