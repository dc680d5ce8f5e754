"""Models on the hub: the local folder, the cache and the network in this order, what is uploaded, and its page."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.errors import LocalTokenNotFoundError
from huggingface_hub.utils import filter_repo_objects
from torch import Tensor, nn

from scoresde import VPSDE, Affine, CheckpointError, ConfigError, DTypeError, Moments, RectifiedFlow, ScoreModel, sample
from scoresde.models.hub import write_card
from scoresde.models.manifest import MANIFEST
from scoresde.nn import MLP
from scoresde.noise import normal, stream

NAME = "someone/moons"
DATA = normal((40, 2), stream(0))


def make(seed: int = 0) -> ScoreModel:
    return ScoreModel(MLP(2, width=8, depth=1, seed=seed), VPSDE(), moments=Moments.of(DATA))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache" / "models--someone--moons"


def fill(cache: Path, model: ScoreModel, commit: str = "a" * 40, branch: str | None = "main") -> Path:
    """Put a model into the cache as the hub's library lays it out."""
    folder = cache / "snapshots" / commit
    model.save(folder)
    (folder / "README.md").write_text("a page")
    if branch is not None:
        (cache / "refs").mkdir(parents=True, exist_ok=True)
        (cache / "refs" / branch).write_text(commit)
    return folder


def assert_same(one: ScoreModel, other: ScoreModel) -> None:
    z = normal((3, 2), stream(1))
    assert torch.equal(sample(one, x_init=z, steps=4), sample(other, x_init=z, steps=4))


def test_a_folder_is_read_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.chdir(tmp_path)
    model = make()
    model.save("someone/moons/checkpoint")  # a run's folder, of a name that the hub could have
    assert_same(ScoreModel.from_pretrained(NAME), model)
    with pytest.raises(ConfigError, match=r'need huggingface_hub; pip install "scoresde\[hub\]"'):
        ScoreModel.from_pretrained("someone/else")
    with pytest.raises(ConfigError, match=r'need huggingface_hub; pip install "scoresde\[hub\]"'):
        model.push_to_hub(NAME)


def test_what_the_cache_holds_whole_is_read_without_the_network(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    newer, older = make(1), make(2)
    fill(cache, newer)
    fill(cache, older, "b" * 40, "first")
    assert_same(ScoreModel.from_pretrained(NAME), newer)
    assert_same(ScoreModel.from_pretrained(NAME, revision="first"), older)
    assert_same(ScoreModel.from_pretrained(NAME, revision="b" * 40), older)
    with pytest.raises(CheckpointError, match=r"someone/moons is no folder here, is not whole in the cache and could"):
        ScoreModel.from_pretrained(NAME, revision="second")


def serve(monkeypatch: pytest.MonkeyPatch, folder: Path) -> list[dict[str, Any]]:
    """Stand in for the network: a download is a copy of a folder into the cache; return what was asked."""
    asked: list[dict[str, Any]] = []
    local = huggingface_hub.snapshot_download

    def download(name: str, **options: Any) -> str:
        asked.append(options)
        if options.get("local_files_only"):
            return local(name, **options)
        patterns = options["allow_patterns"]
        kept = filter_repo_objects([f.name for f in folder.iterdir()], allow_patterns=patterns)
        target = Path(constants.HF_HUB_CACHE) / "fetched"
        target.mkdir(parents=True)
        for file in kept:
            shutil.copy(folder / file, target / file)
        return str(target)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return asked


@pytest.mark.parametrize("cut", ["no cache", "no manifest", "a file missing", "asked for"])
def test_what_is_not_there_is_fetched(cut: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remote = make(3)
    remote.save(tmp_path / "remote")
    (tmp_path / "remote" / "README.md").write_text("a page")
    (tmp_path / "remote" / "weights.bin").write_bytes(b"a pickle")
    if cut != "no cache":
        folder = fill(cache, make(4))
        if cut != "asked for":
            gone = MANIFEST if cut == "no manifest" else next(folder.glob("weights-*")).name
            (folder / gone).unlink()
    asked = serve(monkeypatch, tmp_path / "remote")
    assert_same(ScoreModel.from_pretrained(NAME, update=cut == "asked for"), remote)
    assert [bool(one.get("local_files_only")) for one in asked] == ([False] if cut == "asked for" else [True, False])
    names = {f.name for f in (cache.parent / "fetched").iterdir()}
    assert names == {f.name for f in (tmp_path / "remote").iterdir()} - {"README.md", "weights.bin"}


def test_other_things_are_refused(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("nowhere", "./some/where", "a/b/c", "/no/where"):
        with pytest.raises(CheckpointError, match="is no folder, and no name of a repository on the hub"):
            ScoreModel.from_pretrained(name)
    for name in ("some one/moons--", "user/..", "user/a\x07b"):
        with pytest.raises(CheckpointError, match="could not be fetched"):
            ScoreModel.from_pretrained(name)
    with pytest.raises(DTypeError, match="revision must be a text, got 3"):
        ScoreModel.from_pretrained(NAME, revision=3)
    for options in ({"name": 3}, {"name": "user/name", "message": None}):
        with pytest.raises(DTypeError, match="must be a text, got"):
            make().push_to_hub(**options)
    folder = fill(cache, make())
    file = next(folder.glob("weights-*"))
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="has changed"):
        ScoreModel.from_pretrained(NAME)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{}")
    serve(monkeypatch, tmp_path / "other")
    with pytest.raises(CheckpointError, match=r"holds no manifest\.json: it was not written by push_to_hub"):
        ScoreModel.from_pretrained("someone/else")


class Hub:
    """Stands in for the hub's interface, and keeps what it was given."""

    def __init__(self, home: Path) -> None:
        self.home, self.calls = home, []

    def create_repo(self, name: str, **options: Any) -> str:
        self.calls.append(("create", name, options))
        return f"https://hub.example/{name}"

    def upload_folder(self, **options: Any) -> None:
        self.calls.append(("upload", options.pop("repo_id"), options))
        shutil.copytree(options["folder_path"], self.home)


def test_what_is_uploaded_is_the_saved_model_and_its_page(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    model, average = make(), make(7)
    address = model.push_to_hub(NAME, ema=average.net.state_dict(), private=True, message="the first")
    assert address == "https://hub.example/someone/moons"
    (_, name, made), (_, again, sent) = hub.calls
    assert (name, again) == (NAME, NAME)
    assert made == {"private": True, "exist_ok": True}
    assert sent["commit_message"] == "the first"
    assert_same(ScoreModel.load(hub.home), average)
    assert_same(ScoreModel.load(hub.home, weights="raw"), model)
    card = (hub.home / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: scoresde\n")
    # What an older model left behind goes, and nothing else.
    names = ["manifest.json", "weights-0123456789abcdef.safetensors", "README.md", "picture.png", "config.json"]
    gone = list(filter_repo_objects(names, allow_patterns=sent["delete_patterns"]))
    assert gone == names[:2]


def test_an_upload_that_fails(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise LocalTokenNotFoundError("no token\nhere")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
    with pytest.raises(CheckpointError, match=r"moons could not be uploaded \(no token here\); log in with hf auth"):
        make().push_to_hub(NAME)
    with pytest.raises(ConfigError, match="name must be that of a repository, 'user/name', got 'moons'"):
        make().push_to_hub("moons")
    literal = ScoreModel.from_callable(lambda x, t: -x, VPSDE())
    with pytest.raises(ConfigError, match="a model made by from_callable holds a function"):
        literal.push_to_hub(NAME)


class Own(nn.Module):
    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return x


def test_the_page_says_what_a_model_is() -> None:
    scale = Affine((1.0, 2.0), 3.0)
    model = ScoreModel(MLP(2, width=8, depth=1, classes=2), VPSDE(), moments=Moments.of(DATA), transform=scale)
    model.class_names = {"label": ("cat", "dog | wolf")}
    card = write_card(model, NAME)
    for row in (
        f"| network | MLP of {sum(p.numel() for p in model.net.parameters()):,} parameters |",
        f"| diffusion | {VPSDE()!r} |",
        "| predicts | noise |",
        "| one sample | shape (2,) |",
        f"| transform | {scale!r} |",
        "| classes of 'label' | cat, dog \\| wolf |",
        'model = ScoreModel.from_pretrained("someone/moons")',
        'x = sample(model, 16, cond={"label": 0}, seed=0)',
    ):
        assert row in card.splitlines()
    own = write_card(ScoreModel(Own(), VPSDE(), predicts="data").with_sde(RectifiedFlow()), NAME)
    assert "| network | Own, whose code is not here: build it and pass net= |" in own
    assert f"| diffusion | {VPSDE()!r}, in use under {RectifiedFlow()!r} |" in own
    assert 'from_pretrained("someone/moons", net=Own(...))' in own
    assert "sample(model, (16, ...), seed=0)" in own


def test_the_lines_of_the_page_run(cache: Path) -> None:
    model = make()
    fill(cache, model)
    code = write_card(model, NAME).split("```python\n")[1].split("```")[0]
    space: dict[str, Any] = {}
    exec(code, space)
    assert torch.equal(space["x"], sample(model, 16, seed=0))
    assert json.loads((cache / "snapshots" / ("a" * 40) / MANIFEST).read_text())["format"]
