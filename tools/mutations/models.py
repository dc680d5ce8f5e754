"""Wrong models, guidance, checkpoints and metrics."""

from __future__ import annotations

from mutations.mutant import Mutant

__all__ = ["MUTANTS"]

MUTANTS = (
    Mutant(
        what="a checkpoint's manifest written before its parts",
        file="models/checkpoint.py",
        pattern="            _put(where / name, written)\n",
        replacement="            _put(where / MANIFEST, manifest)\n            _put(where / name, written)\n",
        tests=("models/test_checkpoint.py::test_a_save_killed_anywhere_leaves_the_old_checkpoint_or_the_new_one",),
    ),
    Mutant(
        what="a checkpoint's digest not compared",
        file="models/stored.py",
        pattern="if found != self._digest:",
        replacement="if not found:",
        tests=("models/test_checkpoint.py::test_every_flipped_bit_is_refused",),
    ),
    Mutant(
        what="guidance with w and -w",
        file="models/guidance/combine.py",
        pattern="return 1 + more, -more",
        replacement="return 1 + more, -1 - more",
        tests=("models/test_guidance.py::test_guidance_is_its_formula",),
    ),
    Mutant(
        what="guidance outside of its interval",
        file="models/guidance/combine.py",
        pattern="on = (level >= combined.interval[0]) & (level <= combined.interval[1])",
        replacement="on = (level <= combined.interval[0]) | (level >= combined.interval[1])",
        tests=("models/test_guidance.py::test_on_an_interval_and_elsewhere",),
    ),
    Mutant(
        what="guidance rescaled by phi on the wrong share",
        file="models/guidance/combine.py",
        pattern="return mine * (phi * wanted / spread + 1 - phi), fraction",
        replacement="return mine * ((1 - phi) * wanted / spread + phi), fraction",
        tests=("models/test_guidance.py::test_rescaling_keeps_the_spread_of_the_conditional_prediction",),
    ),
    Mutant(
        what="dynamic thresholding without the division",
        file="models/guidance/clamp.py",
        pattern="return torch.minimum(torch.maximum(data, -s), s) * (self.limit / s)",
        replacement="return torch.minimum(torch.maximum(data, -s), s)",
        tests=("models/test_guidance.py::test_clamps_change_the_data_prediction",),
    ),
    Mutant(
        what="a product of powers that do not add up keeps the first model's prior",
        file="models/guidance/combine.py",
        pattern="moments = first.moments if whole else None",
        replacement="moments = first.moments",
        tests=("models/test_prior_of_products.py::test_powers_that_do_not_add_up_start_from_the_sdes_own_prior",),
    ),
    Mutant(
        what="a model made of others saved without the transform that was set on it",
        file="models/saving_parts.py",
        pattern="        part.transform = whole.transform\n",
        replacement="",
        tests=("models/test_wholes.py::test_a_whole_comes_back_with_what_was_set_on_it",),
    ),
    Mutant(
        what="tensors read where a document is named, and taken for nothing",
        file="models/documents.py",
        pattern="if plain in (TENSORS if is_document else DOCUMENTS):",
        replacement="if is_document and plain in TENSORS:",
        tests=("models/test_altered_files.py::test_tensors_in_the_place_of_a_document_are_not_taken_for_nothing",),
    ),
    Mutant(
        what="an autoencoder whose weights are not those that the document names",
        file="models/saving.py",
        pattern="if file and f\"-{config['weights'][:16]}.\" not in file:",
        replacement="if False:",
        tests=("models/test_altered_files.py::test_an_autoencoder_is_the_one_that_the_document_names",),
    ),
    Mutant(
        what="the lock file of the next holder removed",
        file="models/lock.py",
        pattern="            if _is_at(hold.handle, hold.file):\n                hold.file.unlink()",
        replacement="            hold.file.unlink()",
        tests=("models/test_lock.py::test_a_lock_that_was_removed_by_hand_leaves_the_next_holders_alone",),
    ),
    Mutant(
        what="two threads that train one module",
        file="models/modes.py",
        pattern="if others and (training or any(mode != training for _, mode in modes)):",
        replacement="if others and any(mode != training for _, mode in modes):",
        tests=("models/test_threads.py::test_the_other_mode_is_refused_while_another_thread_has_one",),
    ),
    Mutant(
        what="mmd with the pairs of a sample with itself",
        file="metrics/discrepancy.py",
        pattern="within = [sum_within(one, measure) / (len(one) * (len(one) - 1))",
        replacement="within = [sum_within(one, measure) / (len(one) * len(one))",
        tests=("metrics/test_mmd.py::test_mmd_is_the_plain_double_loop",),
    ),
    Mutant(
        what="the energy distance with one cross term",
        file="metrics/distances.py",
        pattern="between = 2.0 * sum_between",
        replacement="between = sum_between",
        tests=("metrics/test_metrics.py::test_energy_distance_is_scipys_in_one_dimension",),
    ),
    Mutant(
        what="the Frechet distance without the means",
        file="metrics/frechet.py",
        pattern="distance = float((mean_x - mean_y).square().sum() + spread.square().sum())",
        replacement="distance = float(spread.square().sum())",
        tests=("metrics/test_metrics.py::test_frechet_distance_of_one_dimensional_moments",),
    ),
    Mutant(
        what="sliced distances along directions that are not of length 1",
        file="metrics/distances.py",
        pattern="        directions = directions / directions.norm(dim=1, keepdim=True)\n",
        replacement="",
        tests=("metrics/test_metrics.py::test_a_shift_has_its_length_per_coordinate",),
    ),
    Mutant(
        what="the permutation test's p-value without the given order",
        file="metrics/two_sample.py",
        pattern="return TwoSampleTest(values[0], (1 + reached) / (1 + count))",
        replacement="return TwoSampleTest(values[0], reached / count)",
        tests=("metrics/test_two_sample.py::test_the_p_value_counts_the_relabellings_that_reach_the_value",),
    ),
    Mutant(
        what="the classifier test standardises by all samples",
        file="metrics/two_sample.py",
        pattern="mean, std = train.mean(0), train.std(0)",
        replacement="mean, std = torch.cat(sets).mean(0), torch.cat(sets).std(0)",
        tests=(
            "metrics/test_two_sample.py::test_the_classifier_gets_balanced_standardised_samples_and_the_rest_is_held_out",
        ),
    ),
    Mutant(
        what="the classifier's p-value without the value reached",
        file="metrics/two_sample.py",
        pattern="hypergeom.sf(right - 1, size_x",
        replacement="hypergeom.sf(right, size_x",
        tests=("metrics/test_two_sample.py::test_the_classifiers_p_value_is_that_of_all_labellings",),
    ),
)
