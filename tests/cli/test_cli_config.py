"""Options from a TOML file: what they become, what the command line changes, and what is refused with its line."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_helpers import Folders, contents, main, refused

from scoresde.cli.compare import Compare
from scoresde.cli.config import WORDS, read_settings
from scoresde.cli.options import Command
from scoresde.cli.sample import Sample
from scoresde.cli.train import Train

Writer = Callable[[str], str]


@pytest.fixture
def toml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Writer:
    """Write run.toml and return its name."""
    monkeypatch.chdir(tmp_path)

    def write(text: str) -> str:
        Path("run.toml").write_text(text, encoding="utf-8")
        return "run.toml"

    return write


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[Command]:
    """The options with which verbs ran, which do nothing here."""
    found: list[Command] = []
    for verb in (Train, Sample, Compare):
        monkeypatch.setattr(verb, "run", lambda self: found.append(self) or 0)
    return found


def test_a_file_gives_options_and_the_command_line_wins(toml: Writer, ran: list[Command]) -> None:
    file = toml(
        """\
# A run.
data = "moons"
sde = "cosine"
steps = 500         # of the optimiser
learning_rate = 1   # a whole number is a number
ema_decay = 0.99
conditional = true
out = "runs/first"
"""
    )
    expected = Train(
        config=Path(file),
        data="moons",
        sde="cosine",
        steps=500,
        learning_rate=1.0,
        ema_decay=0.99,
        conditional=True,
        out=Path("runs/first"),
    )
    assert main(["train", "--config", file]) == 0
    assert main(["train", f"--config={file}", "--sde", "ve", "--steps", "7", "--no-conditional"]) == 0
    assert main(["train", "--seed", "3"]) == 0
    first, second, without = ran
    assert first == expected
    assert isinstance(first.learning_rate, float)
    assert second == dataclasses.replace(expected, sde="ve", steps=7, conditional=False)
    assert without == Train(seed=3)


def test_sample_and_compare_read_files_too(
    toml: Writer, ran: list[Command], capsys: pytest.CaptureFixture[str]
) -> None:
    file = toml('checkpoint = "runs/digits"\nsolver = "heun:5"\nlabel = "3"\n')
    assert main(["sample", "--config", file, "--n", "2"]) == 0
    file = toml('checkpoint = "runs/digits"\nsamplers = ["ddim:5", "ddim:10"]\n')
    assert main(["compare", "--config", file]) == 0
    assert ran == [
        Sample(config=Path(file), checkpoint=Path("runs/digits"), solver="heun:5", label="3", n=2),
        Compare(config=Path(file), checkpoint=Path("runs/digits"), samplers=("ddim:5", "ddim:10")),
    ]
    # What has no default is still asked for.
    assert "Missing from scoresde sample: --checkpoint" in refused(capsys, ["sample", "--config", toml("n = 3\n")])


def test_help_shows_the_file_s_values_as_defaults(toml: Writer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--config", toml("ema_decay = 0.75\n"), "--help"]) == 0
    assert "(default: 0.75)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "# one\n\n" + "#\n" * 9 + "lerning_rate = 1e-3\n",
            "unknown key 'lerning_rate' (line 12 of run.toml); did you mean 'learning_rate'?",
        ),
        ("steps = 3\nbatch-size = 4\n", "unknown key 'batch-size' (line 2 of run.toml); did you mean 'batch_size'?"),
        (
            "[train]\nsteps = 3\n",
            "unknown key 'train' (line 1 of run.toml); keys: accumulate, background, batch_size, change, ",
        ),
        ("xyzzy.steps = 3\n", "unknown key 'xyzzy' (line 1 of run.toml); keys: "),
        ("debug = true\n", "unknown key 'debug' (line 1 of run.toml)"),
        ('config = "other.toml"\n', "unknown key 'config' (line 1 of run.toml)"),
        # What looks like the key inside a text is not it.
        (
            'data = """\nstepz = 1\n"""\n"stepz" = 2\n',
            "unknown key 'stepz' (line 4 of run.toml); did you mean 'steps'?",
        ),
        ('steps = "many"\n', "steps must be a whole number, got 'many' (line 1 of run.toml)"),
        ("steps = 10.0\n", "steps must be a whole number, got 10.0 (line 1 of run.toml)"),
        ("steps = true\n", "steps must be a whole number, got True (line 1 of run.toml)"),
        ("\nlearning_rate = '0.1'\n", "learning_rate must be a number, got '0.1' (line 2 of run.toml)"),
        ("ema_decay = false\n", "ema_decay must be a number, got False (line 1 of run.toml)"),
        ("conditional = 1\n", "conditional must be true or false, got 1 (line 1 of run.toml)"),
        ("data = 3\n", "data must be a text in quotes, got 3 (line 1 of run.toml)"),
        ("out = [1]\n", "out must be a path in quotes, got [1] (line 1 of run.toml)"),
        ("seed = {a = 1}\n", "seed must be a whole number, got {'a': 1} (line 1 of run.toml)"),
        ("seed = 1\nsteps = 2\nseed = 3\n", "the key 'seed' stands twice in run.toml, again on line 3; keep one"),
        ("steps = \n", "run.toml, line 1: invalid value; write option = value, texts in quotes"),
        ("steps 3\n", "run.toml, line 1: expected '=' after a key in a key/value pair; write option = value"),
        ("data = moons\n", "run.toml, line 1: invalid value"),
        ('data = "moons\n', "run.toml, line 1: "),
        ("steps = [1, 2", "write option = value"),
    ],
)
def test_a_mistake_in_a_file_is_one_line_that_names_the_place(
    text: str, message: str, toml: Writer, ran: list[Command], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    before = {toml(text): text.encode()}
    assert message in refused(capsys, ["train", "--config", "run.toml"])
    assert ran == []
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed = 1\nsteps = 0\n", "steps must be at least 1, got 0 (line 2 of run.toml)"),
        ("ema_decay = 1.0\n", "ema_decay must lie in [0, 1), got 1.0 (line 1 of run.toml)"),
        ("learning_rate = nan\n", "learning_rate must lie in (0, inf), got nan (line 1 of run.toml)"),
        (
            "\n\nlabel_dropout = -0.5\nconditional = true\n",
            "label_dropout must lie in [0, 1), got -0.5 (line 3 of run.toml)",
        ),
        ('sde = "vpp"\n', "(line 1 of run.toml)"),
        ('# data\ndata = "moon"\n', "(line 2 of run.toml)"),
        ("seed = -1\n", "seed must lie in [0, 2**64), got -1 (line 1 of run.toml)"),
    ],
)
def test_a_value_out_of_range_is_refused_with_its_line(
    text: str, message: str, toml: Writer, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    before = {toml(text): text.encode()}
    assert refused(capsys, ["train", "--config", "run.toml"]).endswith(message)
    assert contents(tmp_path) == before


def test_the_line_is_that_of_the_option_that_is_wrong_only(toml: Writer, capsys: pytest.CaptureFixture[str]) -> None:
    file = toml("steps = 5\nseed = 1\n")
    message = refused(capsys, ["train", "--config", file, "--steps", "0"])
    assert message == "steps must be at least 1, got 0"
    assert refused(capsys, ["train", "--config", file, "--batch-size", "0"]).endswith("got 0")


def test_a_name_with_its_steps_is_found_in_the_file(
    runs: Folders, toml: Writer, capsys: pytest.CaptureFixture[str]
) -> None:
    points = f'checkpoint = "{runs[0]}"\n'
    message = refused(capsys, ["compare", "--config", toml(points + 'samplers = ["ddim:5", "dimm:5"]\n')])
    assert message.startswith("unknown sampler 'dimm'; did you mean 'ddim'?")
    assert message.endswith(" (line 2 of run.toml)")
    message = refused(capsys, ["sample", "--config", toml(points + 'out = "x.giff"\n')])
    assert message.startswith("unknown ending of --out '.giff'")
    assert message.endswith(" (line 2 of run.toml)")


def test_files_that_cannot_be_read(toml: Writer, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    message = refused(capsys, ["train", "--config", "absent.toml"])
    assert message == "--config absent.toml cannot be read: No such file or directory; name a TOML file"
    Path("folder").mkdir()
    assert "--config folder cannot be read: Is a directory" in refused(capsys, ["train", "--config", "folder"])
    Path("binary").write_bytes(b"\xff\xfe\x00")
    assert "--config binary is no text in UTF-8" in refused(capsys, ["train", "--config", "binary"])
    assert "Missing value for argument '--config'" in refused(capsys, ["train", "--config"])
    assert contents(tmp_path) == {"binary": b"\xff\xfe\x00"}


def test_every_type_of_an_option_can_stand_in_a_file() -> None:
    for verb in (Train, Sample, Compare):
        hints = typing.get_type_hints(verb)
        for field in dataclasses.fields(verb):
            kinds = typing.get_args(hints[field.name]) or (hints[field.name],)
            assert set(kinds) & set(WORDS) or hints[field.name] in WORDS, field.name


def test_no_file_means_no_settings() -> None:
    assert read_settings(["--steps", "3"], Train) is None
