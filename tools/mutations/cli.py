"""A wrong command line."""

from __future__ import annotations

from mutations.mutant import Mutant

__all__ = ["MUTANTS"]

MUTANTS = (
    Mutant(
        what="the classes in turn from the second one on",
        file="cli/run_folder.py",
        pattern='return {"label": torch.arange(n, device="cpu") % self.classes}',
        replacement='return {"label": (torch.arange(n, device="cpu") + 1) % self.classes}',
        tests=("cli/test_cli_labels.py::test_a_sample_keeps_its_class_whatever_the_chunks",),
    ),
    Mutant(
        what="a label's name one place off",
        file="cli/run_folder.py",
        pattern='torch.full((n,), self.names.index(label), dtype=torch.int64, device="cpu")',
        replacement='torch.full((n,), (self.names.index(label) + 1) % self.classes, dtype=torch.int64, device="cpu")',
        tests=("cli/test_cli_labels.py::test_a_sample_keeps_its_class_whatever_the_chunks",),
    ),
    Mutant(
        what="later chunks with the first one's labels",
        file="cli/sample.py",
        pattern="cond=select(labels, rows),",
        replacement="cond=select(labels, slice(0, rows.stop - rows.start)),",
        tests=("cli/test_cli_labels.py::test_a_sample_keeps_its_class_whatever_the_chunks",),
    ),
    Mutant(
        what="later chunks with the first one's noise",
        file="cli/sample.py",
        pattern="first_sample=rows.start,",
        replacement="first_sample=0,",
        tests=("cli/test_cli_labels.py::test_a_sample_keeps_its_class_whatever_the_chunks",),
    ),
    Mutant(
        what="--weight-decay not passed on",
        file="cli/train_run.py",
        pattern="            weight_decay=options.weight_decay,\n",
        replacement="",
        tests=("cli/test_cli_options_reach_fit.py::test_train_with_every_option_is_the_library_s_fit",),
    ),
    Mutant(
        what="--label-dropout not passed on",
        file="cli/train_run.py",
        pattern="dict.fromkeys(conds[0] or (), options.label_dropout or 0.0)",
        replacement="dict.fromkeys(conds[0] or (), 0.0)",
        tests=("cli/test_cli_options_reach_fit.py::test_train_with_every_option_is_the_library_s_fit",),
    ),
    Mutant(
        what="the held-out conditions not passed on",
        file="cli/train_run.py",
        pattern="held_out_cond=conds[1] if judged else None,",
        replacement="held_out_cond=conds[0] if judged else None,",
        tests=("cli/test_cli_options_reach_fit.py::test_train_with_every_option_is_the_library_s_fit",),
    ),
    Mutant(
        what="--clip-norm 0 as a limit of 0",
        file="cli/train_run.py",
        pattern="clip_norm=options.clip_norm or None,",
        replacement="clip_norm=options.clip_norm,",
        tests=("cli/test_cli_options_reach_fit.py::test_train_with_every_option_is_the_library_s_fit",),
    ),
)
