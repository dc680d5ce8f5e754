"""The command line: ``scoresde train | sample | restore | compare | tune | likelihood | describe | explore | convert``.

Each verb is a frozen dataclass of options, which tyro reads from the arguments, with a method ``run``. An error is one
line on stderr that says what to do, with exit code 2 (its traceback with ``--debug``), a warning of the package's own
one line; Ctrl-C keeps what is done and exits with 130. The extra ``scoresde[cli]`` brings tyro.

Of the processes that ``torchrun`` starts only the first speaks; an error is told by the one that has it.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import os
import re
import sys
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, TextIO

from scoresde.cli.config import read_settings
from scoresde.errors.kinds import ConfigError, ScoreSDEError, TrainingWarning, UnstableSamplerWarning
from scoresde.errors.names import unknown
from scoresde.sampling.processes import World, world

if TYPE_CHECKING:
    from scoresde.cli.options import Command

__all__ = ["main"]

# Other words for options, from other libraries and from Python; the first that a verb has is meant.
WORDS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("lr", "rate", "learning-rate-init"), ("learning-rate",)),
    **dict.fromkeys(("epoch", "epochs", "num-epochs", "iterations", "iters", "max-steps"), ("steps",)),
    **dict.fromkeys(("steps", "num-steps", "n-steps", "num-inference-steps", "nfe"), ("steps", "samplers")),
    **dict.fromkeys(("bs", "batch", "batch-size"), ("batch-size", "chunk-size")),
    **dict.fromkeys(("samples", "num", "num-samples", "n-samples", "num-images", "count"), ("n",)),
    **dict.fromkeys(("sampler", "solver", "method", "scheduler"), ("solver", "samplers")),
    **dict.fromkeys(("solvers", "samplers"), ("samplers", "solver")),
    **dict.fromkeys(("model", "ckpt", "run", "folder", "checkpoint-path"), ("checkpoint",)),
    **dict.fromkeys(("dataset", "data-dir", "data-path", "input"), ("data",)),
    **dict.fromkeys(("output", "output-dir", "outdir", "save-dir", "logdir"), ("out",)),
    **dict.fromkeys(("class", "class-label", "labels", "cond", "class-cond"), ("label", "conditional")),
    **dict.fromkeys(("ema", "ema-rate"), ("ema-decay",)),
    **dict.fromkeys(("clip", "grad-clip", "gradient-clip", "max-grad-norm"), ("clip-norm",)),
    **dict.fromkeys(("wd",), ("weight-decay",)),
    **dict.fromkeys(("diffusion", "schedule", "noise-schedule"), ("sde",)),
    **dict.fromkeys(("prediction", "prediction-type", "parameterization", "objective"), ("predicts",)),
    **dict.fromkeys(("image-size", "resolution"), ("size",)),
    **dict.fromkeys(("warmup-steps", "lr-warmup", "lr-warmup-steps"), ("warmup",)),
    **dict.fromkeys(("dropout", "cond-dropout", "class-dropout"), ("label-dropout",)),
    **dict.fromkeys(("cfg", "cfg-scale", "guidance-scale", "scale"), ("guidance",)),
    **dict.fromkeys(("sigma", "noise", "noise-level"), ("noise-std",)),
    **dict.fromkeys(("gpu", "cuda"), ("device",)),
    **dict.fromkeys(("num-threads", "n-threads", "workers", "num-workers", "jobs"), ("threads",)),
    **dict.fromkeys(("continue", "resume-from"), ("resume",)),
}

USAGE = """\
usage: scoresde [-h] [--version] {train,sample,restore,compare,tune,likelihood,describe,explore,convert} [OPTIONS]

Score-based diffusion models: train one, draw samples, compare samplers.

  train       train a score model on built-in data, a folder of images or a file
  sample      draw samples from a trained model: a picture, an animation or arrays
  restore     draw what the data may have been, given measurements: inpaint, deblur, enlarge
  compare     draw with many samplers, discrete and continuous; measure them against held-out data
  tune        fit samplers of few evaluations to a trained model, and keep them with it
  likelihood  log p of held-out data, along the flow and by bounds, in nats and bits per dimension
  describe    say what a checkpoint, a diffusion, a sampler or a saved table is
  explore     a page where samplers run in the browser, on exact targets or on a trained model
  convert     write the weights of a file of torch.save as safetensors

"scoresde train --help" lists the options of a verb with their units and defaults; those that compute read them from
a file too (--config run.toml). A first session:

  scoresde train --data swiss_roll --out runs/swiss_roll
  scoresde sample --checkpoint runs/swiss_roll --n 2000 --out samples.png
  scoresde compare --checkpoint runs/swiss_roll"""

# What several processes may do together.
SHARED = ("train", "sample", "likelihood")
NO_TYRO = 'the command line needs tyro; in the repository run pip install ".[cli]"'


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0 done, 2 an error that the user can cure, 130 stopped by Ctrl-C.

    Args:
        argv: the arguments without the program's name; by default those of this process.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    _show_any_letter()
    who = ""
    try:
        here = world()
        who = "" if here.size == 1 else f" in process {here.rank} of {here.size}"
        with _plain_warnings(), _only_main_speaks(here):
            code = _run(arguments, here)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt as interrupt:
        print(f"scoresde: stopped{'; ' * bool(interrupt.args)}{' '.join(map(str, interrupt.args))}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output has gone (``| head``); the interpreter's last flush must not complain of it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ScoreSDEError, OSError) as error:
        if "--debug" in arguments:
            raise
        print(f"scoresde: error{who}: {_join_lines(error)}", file=sys.stderr)
        return 2


def _show_any_letter() -> None:
    """Let a console without Unicode show what it cannot write, as in the name of a file, in escapes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """Show the package's own warnings as one line each, which a progress bar makes room for."""
    usual = warnings.showwarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if not issubclass(category, TrainingWarning | UnstableSamplerWarning):
            usual(message, category, filename, lineno, file, line)
            return
        from tqdm import tqdm

        tqdm.write(f"scoresde: warning: {' '.join(str(message).split())}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


@contextlib.contextmanager
def _only_main_speaks(here: World) -> Iterator[None]:
    """Leave out what the other processes of a job would print once more; they see no terminal, so draw no bars."""
    if here.is_main:
        yield
        return
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def _run(arguments: list[str], here: World) -> int:
    verb = arguments[0] if arguments else ""
    if not arguments:
        print(USAGE, file=sys.stderr)
        return 2
    if verb in ("-h", "--help"):
        print(USAGE)
        try:
            import tyro  # noqa: F401
        except ImportError:
            print(f"\n{NO_TYRO}")
        return 0
    if verb == "--version":
        # Loaded before any file of its own, which may not import it back.
        print(f"scoresde {sys.modules['scoresde'].__version__}")
        return 0
    verbs = _load_verbs()
    if verb not in verbs:
        raise unknown("verb", verb, verbs)
    if here.size > 1 and verb not in SHARED:
        raise ConfigError(
            f"scoresde {verb} is the work of one process, not of {here.size}; start it without torchrun (together work "
            f"{', '.join(SHARED)})"
        )
    settings = read_settings(arguments[1:], verbs[verb])
    options = _parse(verbs[verb], verb, arguments[1:], {} if settings is None else settings.values)
    from scoresde.cli.options import GIVEN, find_given  # which needs tyro

    known = GIVEN.set(find_given(arguments[1:], {} if settings is None else settings.values))
    try:
        return 0 if options is None else options.run()
    except ScoreSDEError as error:
        if settings is not None:
            settings.locate(error, arguments)
        raise
    finally:
        GIVEN.reset(known)


def _load_verbs() -> dict[str, type[Command]]:
    try:
        from scoresde.cli.compare import Compare
        from scoresde.cli.convert import Convert
        from scoresde.cli.describe import Describe
        from scoresde.cli.explore import Explore
        from scoresde.cli.likelihood import Likelihood
        from scoresde.cli.restore import Restore
        from scoresde.cli.sample import Sample
        from scoresde.cli.train import Train
        from scoresde.cli.tune import Tune
    except ImportError as error:
        if error.name != "tyro":
            raise
        raise ConfigError(NO_TYRO) from error
    return {
        "train": Train,
        "sample": Sample,
        "restore": Restore,
        "compare": Compare,
        "tune": Tune,
        "likelihood": Likelihood,
        "describe": Describe,
        "explore": Explore,
        "convert": Convert,
    }


def _parse(command: type[Command], verb: str, arguments: list[str], values: Mapping[str, object]) -> Command | None:
    """Return the options; None where help was asked for and shown. tyro's boxed complaint becomes a ConfigError.

    Args:
        command: the verb's class.
        verb: its name.
        arguments: those behind it.
        values: defaults in the place of the verb's own, from a file.
    """
    import tyro

    complaint = io.StringIO()
    prog, about, flags = f"scoresde {verb}", _describe_verb(command), (tyro.conf.FlagCreatePairsOff,)
    try:
        with contextlib.redirect_stderr(complaint):
            if not values:
                return tyro.cli(command, prog=prog, description=about, args=arguments, config=flags)
            # What the file leaves out and has no default stays required.
            missing = {field.name: tyro.MISSING for field in fields(command) if field.default is MISSING}
            start = command(**{**missing, **values})
            return tyro.cli(command, prog=prog, description=about, args=arguments, config=flags, default=start)
    except SystemExit as stop:
        if not stop.code:
            return None
        said = _find_meant(arguments, command) or _unbox(complaint.getvalue())
    raise ConfigError(f"{said} scoresde {verb} --help lists the options")


def _find_meant(arguments: Sequence[str], command: type[Command]) -> str:
    """Return what to say of the first option that has another name here; nothing where there is none such."""
    options = [field.name.replace("_", "-") for field in fields(command)]
    given = [one.partition("=")[0][2:].replace("_", "-").lower() for one in arguments if one.startswith("--")]
    for word in given:
        meant = next((one for one in WORDS.get(word, ()) if one in options), word)
        if meant != word and word not in options:
            return f"there is no --{word}; did you mean --{meant}?"
    return ""


def _describe_verb(command: type[Command]) -> str:
    """Return a verb's docstring without its arguments, in lines of 80 letters."""
    about = inspect.cleandoc(command.__doc__ or "").partition("\nArgs:")[0].strip()
    return "\n\n".join(textwrap.fill(paragraph, 80) for paragraph in about.split("\n\n"))


def _unbox(text: str) -> str:
    """Return the first paragraph of tyro's boxed message on one line, and the nearest option if it names one."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    rows = [line.strip("│╰╯ ") for line in plain.splitlines()][1:]  # the first line is the box's title
    rules = [i for i, row in enumerate(rows) if row and not row.strip("─-")]
    if rules and rules[0] == 0:  # a terminal without Unicode has a rule below the title
        rows, rules = rows[1:], [i - 1 for i in rules[1:]]
    said = re.sub(r"\s+", " ", " ".join(rows[: rules[0]] if rules else rows)).strip().rstrip(".")
    tail = rows[rows.index("Perhaps you meant:") :] if "Perhaps you meant:" in rows else []
    near = next((row.split()[0] for row in tail if row.startswith("-") and row.strip("─-")), "")
    return f"{said}; did you mean {near}?" if near else f"{said};"


def _join_lines(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}; choose another path"
    return " ".join(str(error).split()) or type(error).__name__
