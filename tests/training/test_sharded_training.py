"""One training whose state is divided between two processes: what one process does, in half of the memory of each.

Both processes run one program (``outcome``), whose folders the tests compare with runs of this process.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from test_parallel_training import DATA, OPTIONS, START, records, run
from torch import Tensor, nn

from scoresde import VPSDE, CheckpointError, ConfigError, DTypeError, EnergyModel, ScoreModel, fit
from scoresde.models import checkpoint
from scoresde.models.manifest import list_entries, read_manifest
from scoresde.models.stored import StoredFile, StoredTensors
from scoresde.nn import MLP, DiT
from scoresde.noise import normal, stream
from scoresde.sampling.processes import World
from scoresde.training.sharding import find_parts, shard_network, write_together

SGD = partial(torch.optim.SGD, lr=0.05, momentum=0.9)
# Records of losses that a checkpoint carries on, and an optimiser without a kernel of its own for skipped steps.
PLAIN: dict[str, Any] = {**OPTIONS, "held_out": None, "log_every": 5, "optimizer": SGD}
MANY: dict[str, Any] = {**OPTIONS, "accumulate": 3, "uncertainty": True, "sigma_rel": (0.1, 0.2), "patience": 50}


class Scaled(nn.Module):
    """Rows that two processes cannot share evenly, one row, a number, and buffers that every step changes."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = MLP(2, width=7, depth=1, seed=3)
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        if self.training:
            self.seen += x.detach().square().mean()
        return self.scale * self.inner(x, c_noise)


def odd() -> ScoreModel:
    return ScoreModel(MLP(2, width=7, depth=2, seed=3).double(), VPSDE())


def scaled() -> ScoreModel:
    return ScoreModel(Scaled().double(), VPSDE())


PROGRAM = (
    START
    + """
import signal
from torch import nn
from test_sharded_training import MANY, PLAIN, odd, scaled
from scoresde.cli import main
from scoresde.models import checkpoint
from scoresde.models.sharded import local_rows
from scoresde.training.parallel import shared_network
from scoresde.training.trainer import Trainer

def stop(done, steps, seconds):
    if done == 9:
        raise Stop

def alike(net):
    flat = torch.cat([value.flatten() for value in net.state_dict().values()])
    assert torch.equal(*world.gather(flat[None])), "the processes end with one network"

def count(trainer):
    states = [value for one in trainer.optimizer.state.values() for value in one.values() if value.ndim]
    averages = [*trainer.ema.base, *trainer.ema.offset]
    return sum(local_rows(value).numel() for value in [*trainer.parameters, *states, *averages])

try:
    with processes(timeout=60) as world:
        one = odd()
        given, weight = one.net, one.net.input.weight
        result = fit(one, DATA, folder="two", world=world, shard="Linear", **OPTIONS)
        assert one.net is given and given.input.weight is weight and type(weight) is nn.Parameter
        alike(one.net), alike(result.model.net)
        if world.is_main:
            result.model.save("result")
        many = dict(folder="many", world=world, shard=lambda part: isinstance(part, nn.Linear), **MANY)
        first, again = fit(odd(), DATA, **many), fit(odd(), DATA, resume=True, **many)
        assert all(torch.equal(a, b) for a, b in zip(first.model.net.parameters(), again.model.net.parameters()))
        buffered = scaled()
        fit(buffered, DATA, folder="scaled", world=world, shard=nn.Linear, **OPTIONS)
        alike(buffered.net)
        fit(odd(), DATA, folder="plain", world=world, shard="Linear", **PLAIN)
        try:
            fit(odd(), DATA, folder="cut", world=world, shard="Linear", **{**PLAIN, "progress": stop})
        except Stop:
            world.barrier()
        fit(odd(), DATA, folder="cut", world=world, shard="Linear", resume=True, **PLAIN)
        fit(odd(), DATA, folder="later", world=world, shard="Linear", resume=True, **OPTIONS)

        counts = []
        for rule in (None, "Linear"):
            with shared_network(odd(), world, rule) as model:
                trainer = Trainer(model)
                trainer.join(world, 6)
                trainer(DATA[3 * world.rank : 3 * world.rank + 3])
                counts.append(count(trainer))
        whole, mine = counts
        both = sum(int(one) for one in world.gather(torch.tensor([mine])))
        assert whole == 5 * sum(p.numel() for p in odd().net.parameters())
        assert both == whole and 0.4 * whole < mine < 0.6 * whole, (whole, mine)

        options = ["--data", "moons", "--steps", "4", "--batch-size", "8", "--threads", "1"]
        assert main(["train", *options, "--shard", "first,second", "--out", "run"]) == 0
        assert main(["train", *options, "--shard", "first", "--watch", "--out", "no"]) == 2
        for one, optimizer, rule in (
            (odd(), torch.optim.Adafactor, "Linear"), (odd(), None, "Attention"), (scheduled(), None, "Linear")
        ):
            try:
                fit(one, DATA, world=world, shard=rule, optimizer=optimizer, **{**OPTIONS, "held_out": None})
            except ConfigError as error:
                print("refused:", error)

        put, names = checkpoint._put, []
        def watched(file, data):
            put(file, data)
            names.append(file.name)
            # One of the second save's files is there, the others and the manifest are not.
            if len(names) == 4 and world.rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
        checkpoint._put = watched
        fit(odd(), DATA, folder="dead", world=world, shard="Linear", **OPTIONS)
except ProcessError as error:
    print("lost:", error)
    os._exit(3)
"""
)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[int, str, str]]]:
    """Return the folder of all runs, and how the two processes ended."""
    if sys.platform == "win32":
        pytest.skip("needs gloo")
    folder = tmp_path_factory.mktemp("sharded")

    def stop(done: int, steps: int, seconds: float) -> None:
        if done == 9:
            raise KeyError

    fit(odd(), DATA, folder=folder / "one", **OPTIONS)
    with pytest.raises(KeyError):
        fit(odd(), DATA, folder=folder / "later", **{**OPTIONS, "progress": stop})
    return folder, run(["-c", PROGRAM], folder)


def same(one: Path, other: Path) -> None:
    """Compare two checkpoints of a run, and their logs: weights, averages, optimiser, to rounding in float64."""
    mine, theirs = (checkpoint.read(folder / "checkpoint") for folder in (one, other))
    for part in ("weights", "ema", "training_state", "moments"):
        found = theirs.tensors(part)
        assert found.keys() == mine.tensors(part).keys()
        for key, value in mine.tensors(part).items():
            torch.testing.assert_close(found[key], value, rtol=1e-9, atol=1e-12, msg=f"{part} {key}")
    assert mine.document("run") == theirs.document("run")
    for a, b in zip(records(one), records(other), strict=True):
        assert a.keys() == b.keys()
        for key in {"loss", "held_out_loss", "gradient_norm"} & a.keys():
            assert b[key] == pytest.approx(a[key], rel=1e-6)  # kept in float32


def test_two_sharded_processes_make_the_steps_of_one(
    outcome: tuple[Path, list[tuple[int, str, str]]], tmp_path: Path
) -> None:
    """Also in parts, with an uncertainty that stays whole, several averages, and an optimiser of one's own."""
    folder, ended = outcome
    assert [code for code, _, _ in ended] == [3, -9], ended
    same(folder / "one", folder / "two")
    fit(odd(), DATA, folder=tmp_path / "many", **MANY)
    same(tmp_path / "many", folder / "many")
    last = "averages/0000000012"
    mine, theirs = (checkpoint.read(where / "many" / last).tensors("average_b") for where in (tmp_path, folder))
    for key, value in mine.items():
        torch.testing.assert_close(theirs[key], value, rtol=1e-9, atol=1e-12)
    fit(odd(), DATA, folder=tmp_path / "plain", **PLAIN)
    same(tmp_path / "plain", folder / "plain")
    # Numbers are averaged over the processes; the buffer is the first one's.
    trained = scaled()
    fit(trained, DATA, folder=tmp_path / "scaled", **OPTIONS)
    found = checkpoint.read(folder / "scaled" / "checkpoint").tensors("weights")
    torch.testing.assert_close(found["scale"], trained.net.scale.detach(), rtol=1e-9, atol=1e-12)


def test_a_sharded_run_goes_on_to_the_same_bits(outcome: tuple[Path, list[tuple[int, str, str]]]) -> None:
    folder, _ = outcome
    whole, cut = (read_manifest(folder / name / "checkpoint" / "manifest.json")[1] for name in ("plain", "cut"))
    assert whole == cut
    assert [len(whole[part]) for part in ("weights", "ema", "training_state", "moments")] == [2, 2, 2, 1]
    assert records(folder / "plain") == records(folder / "cut")


def test_any_number_of_processes_goes_on_with_a_checkpoint(outcome: tuple[Path, list[tuple[int, str, str]]]) -> None:
    """Two with what one wrote, one with what two wrote; the files of a save that was cut off go with the next."""
    folder, _ = outcome
    same(folder / "one", folder / "later")
    files = {file.name for file in (folder / "dead" / "checkpoint").iterdir()}
    named = {entry["file"] for entry in list_entries(folder / "dead" / "checkpoint")}
    assert files - named - {"manifest.json"}, "the save left something"
    fit(odd(), DATA, folder=folder / "dead", resume=True, **OPTIONS)
    same(folder / "one", folder / "dead")
    files = {file.name for file in (folder / "dead" / "checkpoint").iterdir()}
    assert files == {entry["file"] for entry in list_entries(folder / "dead" / "checkpoint")} | {"manifest.json"}


def test_a_sharded_checkpoint_is_an_ordinary_model(outcome: tuple[Path, list[tuple[int, str, str]]]) -> None:
    folder, _ = outcome
    loaded, kept = (ScoreModel.load(folder / name) for name in ("two", "result"))
    assert type(loaded.net) is MLP
    assert all(torch.equal(a, b) for a, b in zip(loaded.net.parameters(), kept.net.parameters(), strict=True))
    assert len(read_manifest(folder / "run" / "checkpoint" / "manifest.json")[1]["weights"]) == 2
    assert ScoreModel.load(folder / "run").moments is not None


def test_a_process_killed_in_a_save_ends_the_job_and_leaves_the_checkpoint(
    outcome: tuple[Path, list[tuple[int, str, str]]], tmp_path: Path
) -> None:
    _, ((_, out, _), _) = outcome
    lost = [line for line in out.splitlines() if line.startswith("lost:")]
    assert len(lost) == 1
    assert lost[0].count("process 0 of 2 lost the others: one has died") == 1
    assert "the last checkpoint stands, go on with resume=True" in lost[0]
    refused = [line for line in out.splitlines() if line.startswith("refused:")]
    assert "Adafactor does not take sharded parameters" in refused[0]
    assert "shard='Attention' names no part of MLP" in refused[1]
    assert "a LearnedSchedule is not trained under shard=" in refused[2]


@pytest.fixture
def shards(tmp_path: Path) -> tuple[Path, dict[str, Tensor]]:
    """Return a checkpoint of three processes, and what it holds."""
    held = {"a": normal((7, 3), stream(0, "a")), "b": torch.arange(4), "c": torch.tensor(2.5), "d": torch.ones(1) > 0}
    rows = [{"a": held["a"][:3], "b": held["b"][:2], "c": held["c"], "d": held["d"]}]
    rows += [{"a": held["a"][3:6], "b": held["b"][2:]}, {"a": held["a"][6:]}]
    entries = []
    for share in rows:
        with checkpoint.share(tmp_path, {"weights": share}, first=True) as made:
            entries.append(made["weights"])
    checkpoint.write(tmp_path, {"note": {"x": 1}}, {}, {"weights": entries})
    return tmp_path, held


def test_rows_of_several_files_are_one_tensor(shards: tuple[Path, dict[str, Tensor]]) -> None:
    folder, held = shards
    stored = checkpoint.read(folder).stored("weights")
    found = stored.load()
    assert found.keys() == held.keys()
    assert all(torch.equal(found[name], value) and found[name].dtype == value.dtype for name, value in held.items())
    assert stored.elements == sum(value.numel() for value in held.values())
    for start in range(8):
        for stop in range(start, 8):
            assert torch.equal(stored._read_rows("a", slice(start, stop)), held["a"][start:stop])


def test_damaged_shards_are_refused(shards: tuple[Path, dict[str, Tensor]]) -> None:
    folder, _ = shards
    entries = read_manifest(folder / "manifest.json")[1]["weights"]
    # Documents change, and the rows stay.
    checkpoint.amend(folder, {"note": {"x": 2}})
    contents = checkpoint.read(folder)
    assert contents.document("note") == {"x": 2}
    assert read_manifest(folder / "manifest.json")[1]["weights"] == entries
    last = folder / entries[2]["file"]
    data = last.read_bytes()
    last.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="has changed: its SHA-256"):
        checkpoint.read(folder)
    late = checkpoint.read(folder, at_once=False).stored("weights")
    assert torch.equal(late._read_rows("b", slice(0, 4)), torch.arange(4))
    with pytest.raises(CheckpointError, match="has changed: its SHA-256"):
        late.load()
    last.unlink()
    with pytest.raises(CheckpointError, match="is missing; take another copy"):
        checkpoint.read(folder)
    with pytest.raises(CheckpointError, match="which another process wrote, is not there; all need one folder"):
        checkpoint.write(folder, {}, {}, {"weights": entries})
    first, second = (StoredFile(folder / entry["file"]) for entry in entries[:2])
    StoredTensors(first, second)
    with pytest.raises(CheckpointError, match=r"c of shape \[\] and dtype F32 has no rows"):
        StoredTensors(first, first)


@pytest.mark.parametrize(
    ("rule", "names"),
    [
        ("input", ["input"]),
        ("blocks", ["blocks.1", "blocks.0"]),
        (["input", "blocks"], ["blocks.1", "blocks.0", "input"]),
        (nn.Linear, None),
        (lambda part: isinstance(part, nn.ModuleList), ["blocks.1", "blocks.0"]),
    ],
)
def test_a_rule_names_parts_of_a_network(rule: Any, names: list[str] | None) -> None:
    net = DiT(1, width=8, depth=2, heads=1, patch=2, seed=0)
    found = find_parts(net, rule)
    known = {id(part): name for name, part in net.named_modules()}
    linear = [name for name, part in net.named_modules() if isinstance(part, nn.Linear)]
    assert [known[id(part)] for part in found] == (linear[::-1] if names is None else names)


def test_what_cannot_be_sharded_is_refused() -> None:
    """In one line, before any process is asked and with the network as it was."""
    net, two = MLP(2, width=4, depth=1, seed=0), World(0, 2)
    for rule, kind, words in (
        ("blocks", ConfigError, "shard='blocks' names no part of MLP, .* of the classes .*Linear.* of the names cond"),
        (nn.Conv2d, ConfigError, "shard='Conv2d' names no part"),
        (lambda part: False, ConfigError, "names no part"),
        ([], ConfigError, "names no part"),
        ([3], DTypeError, "shard must be classes or names of modules"),
        (3, DTypeError, "shard must be a list of classes or names"),
    ):
        with pytest.raises(kind, match=words):
            shard_network(net, rule, two)
    tied = MLP(2, width=4, depth=1, seed=0)
    tied.second[0].weight = tied.first[0].weight
    mixed = MLP(2, width=4, depth=1, seed=0)
    mixed.input.double()
    energy = EnergyModel(MLP(2, width=4, depth=1, seed=0), VPSDE()).net
    for other, words in (
        (tied, "uses a parameter in two places"),
        (mixed, "has parameters of several types"),
        (energy, "differentiates inside its call"),
        (nn.DataParallel(net), "is in a DataParallel"),
    ):
        assert isinstance(other, nn.Module)
        with pytest.raises(ConfigError, match=f"shard= cannot divide the network .*: it .*{words}"):
            shard_network(other, "Linear", two)
    with pytest.raises(ConfigError, match="this is one alone; start several"):
        fit(odd(), DATA, shard="Linear", **OPTIONS)
    with pytest.raises(ConfigError, match="watch= looks at the model in one process"):
        fit(odd(), DATA, shard="Linear", watch=print, **OPTIONS)
    with pytest.raises(ConfigError, match="world= is that of `with processes"):
        fit(odd(), DATA, shard="Linear", world=two, **OPTIONS)


def test_a_checkpoint_that_nobody_shares_is_written_by_the_first(tmp_path: Path) -> None:
    write_together(tmp_path / "a", {}, {"weights": {"w": torch.ones(2)}}, World(1, 2))
    assert not (tmp_path / "a").exists()
    write_together(tmp_path / "a", {}, {"weights": {"w": torch.ones(2)}}, World(0, 2))
    assert torch.equal(checkpoint.read(tmp_path / "a").tensors("weights")["w"], torch.ones(2))
