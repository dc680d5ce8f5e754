"""Wrong models, guidance, checkpoints and metrics."""

from __future__ import annotations

from mutations.mutant import Mutant

__all__ = ["MUTANTS"]

MUTANTS = (
    Mutant(
        what="a checkpoint's manifest written before its parts",
        file="models/checkpoint.py",
        pattern="        for name, (_, data) in parts.items():\n            _put(",
        replacement="        _put(where / MANIFEST, manifest)\n        for name, (_, data) in parts.items():\n            _put(",
        tests=("models/test_checkpoint.py",),
    ),
    Mutant(
        what="a checkpoint's digest not compared",
        file="models/checkpoint.py",
        pattern='if hashlib.sha256(data).hexdigest() != entry["sha256"]:',
        replacement='if len(data) != entry["bytes"]:',
        tests=("models/test_checkpoint.py",),
    ),
    Mutant(
        what="guidance with w and -w",
        file="models/guidance/combine.py",
        pattern="return 1 + more, -more",
        replacement="return 1 + more, -1 - more",
        tests=("models/test_guidance.py",),
    ),
    Mutant(
        what="guidance outside of its interval",
        file="models/guidance/combine.py",
        pattern="on = (level >= combined.interval[0]) & (level <= combined.interval[1])",
        replacement="on = (level <= combined.interval[0]) | (level >= combined.interval[1])",
        tests=("models/test_guidance.py",),
    ),
    Mutant(
        what="guidance rescaled by phi on the wrong share",
        file="models/guidance/combine.py",
        pattern="return mine * (phi * wanted / spread + 1 - phi), fraction",
        replacement="return mine * ((1 - phi) * wanted / spread + phi), fraction",
        tests=("models/test_guidance.py",),
    ),
    Mutant(
        what="dynamic thresholding without the division",
        file="models/guidance/clamp.py",
        pattern="return torch.minimum(torch.maximum(data, -s), s) * (self.limit / s)",
        replacement="return torch.minimum(torch.maximum(data, -s), s)",
        tests=("models/test_guidance.py",),
    ),
    Mutant(
        what="a product of powers that do not add up keeps the first model's prior",
        file="models/guidance/combine.py",
        pattern="moments = first.moments if whole else None",
        replacement="moments = first.moments",
        tests=("models/test_guidance.py",),
    ),
    Mutant(
        what="mmd with the pairs of a sample with itself",
        file="metrics/discrepancy.py",
        pattern="within = [sum_within(one, measure) / (len(one) * (len(one) - 1))",
        replacement="within = [sum_within(one, measure) / (len(one) * len(one))",
        tests=("metrics/test_mmd.py",),
    ),
    Mutant(
        what="the energy distance with one cross term",
        file="metrics/distances.py",
        pattern="between = 2.0 * sum_between",
        replacement="between = sum_between",
        tests=("metrics/test_metrics.py",),
    ),
    Mutant(
        what="the Frechet distance without the means",
        file="metrics/frechet.py",
        pattern="return float((mean_x - mean_y).square().sum() + spread.square().sum())",
        replacement="return float(spread.square().sum())",
        tests=("metrics/test_metrics.py",),
    ),
    Mutant(
        what="sliced distances along directions that are not of length 1",
        file="metrics/distances.py",
        pattern="        directions = directions / directions.norm(dim=1, keepdim=True)\n",
        replacement="",
        tests=("metrics/test_metrics.py",),
    ),
    Mutant(
        what="the permutation test's p-value without the given order",
        file="metrics/two_sample.py",
        pattern="return TwoSampleTest(values[0], (1 + reached) / (1 + count))",
        replacement="return TwoSampleTest(values[0], reached / count)",
        tests=("metrics/test_two_sample.py",),
    ),
    Mutant(
        what="the classifier test standardises by all samples",
        file="metrics/two_sample.py",
        pattern="mean, std = train.mean(0), train.std(0)",
        replacement="mean, std = torch.cat(sets).mean(0), torch.cat(sets).std(0)",
        tests=("metrics/test_classifier_input.py",),
    ),
    Mutant(
        what="the classifier's p-value without the value reached",
        file="metrics/two_sample.py",
        pattern="hypergeom.sf(right - 1, size_x",
        replacement="hypergeom.sf(right, size_x",
        tests=("metrics/test_two_sample.py",),
    ),
)
