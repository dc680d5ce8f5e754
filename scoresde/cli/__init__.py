"""The command line: ``scoresde train | sample | compare``.

Each verb is a frozen dataclass of options, which tyro reads from the arguments, with a method ``run``. An error is one
line on stderr that says what to do, with exit code 2 (its traceback with ``--debug``); Ctrl-C keeps what is done and
exits with 130. The extra ``scoresde[cli]`` brings tyro.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import os
import re
import sys
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from scoresde.errors import ConfigError, ScoreSDEError, unknown

if TYPE_CHECKING:
    from scoresde.cli.options import Command

__all__ = ["main"]

USAGE = """usage: scoresde [-h] [--version] {train,sample,compare} [OPTIONS]

Score-based diffusion models: train one, draw samples, compare samplers.

  train    train a score model on a built-in data set
  sample   draw samples from a trained model: a picture or arrays
  compare  draw with many samplers, discrete and continuous; measure them against held-out data

"scoresde train --help" lists the options of a verb with their units and defaults. A first session:

  scoresde train --data swiss_roll --out runs/swiss_roll
  scoresde sample --checkpoint runs/swiss_roll --n 2000 --out samples.png
  scoresde compare --checkpoint runs/swiss_roll"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0 done, 2 an error that the user can cure, 130 stopped by Ctrl-C.

    Args:
        argv: the arguments without the program's name; by default those of this process.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _run(arguments)
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
        print(f"scoresde: error: {_one_line(error)}", file=sys.stderr)
        return 2


def _run(arguments: list[str]) -> int:
    verb = arguments[0] if arguments else ""
    if not arguments:
        print(USAGE, file=sys.stderr)
        return 2
    if verb in ("-h", "--help"):
        print(USAGE)
        return 0
    if verb == "--version":
        # Loaded before any file of its own, which may not import it back.
        print(f"scoresde {sys.modules['scoresde'].__version__}")
        return 0
    verbs = _verbs()
    if verb not in verbs:
        raise unknown("verb", verb, verbs)
    options = _parse(verbs[verb], verb, arguments[1:])
    return 0 if options is None else options.run()


def _verbs() -> dict[str, type[Command]]:
    try:
        from scoresde.cli.compare import Compare
        from scoresde.cli.sample import Sample
        from scoresde.cli.train import Train
    except ImportError as error:
        if error.name != "tyro":
            raise
        raise ConfigError('the command line needs tyro; install it with: pip install "scoresde[cli]"') from error
    return {"train": Train, "sample": Sample, "compare": Compare}


def _parse(command: type[Command], verb: str, arguments: list[str]) -> Command | None:
    """Return the options; None where help was asked for and shown. tyro's boxed complaint becomes a ConfigError."""
    import tyro

    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(
                command,
                prog=f"scoresde {verb}",
                description=_description(command),
                args=arguments,
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as stop:
        if not stop.code:
            return None
        said = _unboxed(complaint.getvalue())
    raise ConfigError(f"{said} scoresde {verb} --help lists the options")


def _description(command: type[Command]) -> str:
    """Return a verb's docstring without its arguments, in lines of 80 letters."""
    about = inspect.cleandoc(command.__doc__ or "").partition("\nArgs:")[0].strip()
    return "\n\n".join(textwrap.fill(paragraph, 80) for paragraph in about.split("\n\n"))


def _unboxed(text: str) -> str:
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


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}; choose another path"
    return " ".join(str(error).split()) or type(error).__name__
