"""Wrong likelihoods, bounds and densities."""

from __future__ import annotations

from mutations.mutant import Mutant

__all__ = ["MUTANTS"]

MUTANTS = (
    Mutant(
        what="the strata of the bound not shuffled",
        file="likelihood/bound.py",
        pattern="        v = v[permutation(batch, draw).cpu()]\n",
        replacement="",
        tests=("likelihood/test_strata.py::test_the_strata_are_dealt_out_at_random",),
    ),
    Mutant(
        what="one stratum of the bound for all draws",
        file="likelihood/bound.py",
        pattern='return (torch.arange(self.repeats, dtype=torch.float64, device="cpu")[:, None] + v) / self.repeats',
        replacement="return v.expand(self.repeats, -1) / self.repeats",
        tests=("likelihood/test_strata.py::test_places_are_evenly_spaced_and_meet_every_stratum",),
    ),
    Mutant(
        what="the prior's divergence without the trace",
        file="likelihood/bound.py",
        pattern="return -prior.log_prob(mean) + 0.5 * variance * inverse - entropy",
        replacement="return -prior.log_prob(mean) - entropy",
        tests=("likelihood/test_bounds.py::test_gaussian_data_in_closed_form",),
    ),
    Mutant(
        what="the bound's standard error without the root of the count",
        file="likelihood/figures.py",
        pattern="return float(self.per_sample.std()) / math.sqrt(count) if count > 1",
        replacement="return float(self.per_sample.std()) / count if count > 1",
        tests=("likelihood/test_bound_draws.py::test_standard_error_and_empty_batches",),
    ),
    Mutant(
        what="the continuous bound without its half",
        file="likelihood/continuous.py",
        pattern="values *= 0.5 * (high - low) * task.size / samples",
        replacement="values *= (high - low) * task.size / samples",
        tests=("likelihood/test_bounds.py::test_continuous_bound_becomes_minus_log_p_as_the_lower_end_falls",),
    ),
    Mutant(
        what="drawn layers of a chain without their weight",
        file="likelihood/chain.py",
        pattern="reconstruction + values.sum(0) * (layers / max(1, draws)), terms)",
        replacement="reconstruction + values.sum(0), terms)",
        tests=("likelihood/test_bound_draws.py::test_drawn_indices_meet_every_layer_equally_often",),
    ),
    Mutant(
        what="importance draws averaged in the logarithm",
        file="likelihood/flow.py",
        pattern="each = torch.logsumexp(torch.stack(weighted), 0) - math.log(self.importance)  # (B, draws)",
        replacement="each = torch.stack(weighted).mean(0)",
        tests=(
            "likelihood/test_starts.py::test_equal_weights_give_the_plain_value_for_any_number_of_draws",
            "likelihood/test_starts.py::test_a_decoder_gives_a_lower_bound",
            "likelihood/test_starts.py::test_levels_by_draws_in_their_bins",
        ),
    ),
    Mutant(
        what="the data's log |det| left out of a density",
        file="likelihood/flow.py",
        pattern='each=gather("each") + (0.0 if discrete else log_abs_det[:, None]),',
        replacement='each=gather("each"),',
        tests=("likelihood/test_log_likelihood.py::test_transforms_change_the_density",),
    ),
    Mutant(
        what="one random sign for all coordinates of a group",
        file="likelihood/probes.py",
        pattern="yield torch.where(groups == group, signs[:, draw], 0).to(x.dtype)",
        replacement="yield torch.where(groups == group, signs[:, draw].abs(), 0).to(x.dtype)",
        tests=("likelihood/test_probes.py::test_every_estimate_is_a_quadratic_form_of_one_matrix",),
    ),
    Mutant(
        what="the jackknife without its factor",
        file="likelihood/ratios.py",
        pattern="std(0, correction=0) * math.sqrt(draws - 1)",
        replacement="std(0, correction=0)",
        tests=("likelihood/test_jackknife.py::test_the_standard_error_is_the_jackknifes",),
    ),
    Mutant(
        what="a path's forward step without its normalisation",
        file="likelihood/paths.py",
        pattern="total = total + size * (0.5 * math.log(2 * math.pi) + math.log(forward))",
        replacement="total = total + size * 0.5 * math.log(2 * math.pi)",
        tests=("likelihood/test_path_weights.py::test_weight_is_the_ratio_of_the_chains_densities",),
    ),
    Mutant(
        what="the half step of the extrapolation at the end's time",
        file="likelihood/fokker_planck/scheme.py",
        pattern="for share in (0.5, 1.0))",
        replacement="for share in (1.0, 1.0))",
        tests=("likelihood/fokker_planck/test_fokker_planck.py::test_order_two_in_time",),
    ),
    Mutant(
        what="the third sweep of the plane at the step's start",
        file="likelihood/fokker_planck/scheme.py",
        pattern="self.sweep(p, 0, t + self.sign * 0.5 * tau, 0.5 * tau)",
        replacement="self.sweep(p, 0, t, 0.5 * tau)",
        tests=(
            "likelihood/fokker_planck/test_order_in_the_plane.py::test_order_two_in_time_with_coefficients_that_change",
        ),
    ),
    Mutant(
        what="the second sweep of the plane from the middle of the step on",
        file="likelihood/fokker_planck/scheme.py",
        pattern="self.sweep(p, 1, t, tau)",
        replacement="self.sweep(p, 1, t + self.sign * 0.5 * tau, tau)",
        tests=(
            "likelihood/fokker_planck/test_order_in_the_plane.py::test_order_two_in_time_with_coefficients_that_change",
        ),
    ),
    Mutant(
        what="no extrapolation in time",
        file="likelihood/fokker_planck/scheme.py",
        pattern="after = _limited(positive, 2 * twice - once - positive)",
        replacement="after = _limited(positive, twice - positive)",
        tests=("likelihood/fokker_planck/test_fokker_planck.py::test_order_two_in_time",),
    ),
    Mutant(
        what="Bernoulli's function by exp - 1",
        file="likelihood/fokker_planck/scheme.py",
        pattern="z / np.expm1(np.where(near, 1.0, z)))",
        replacement="z / (np.exp(np.where(near, 1.0, z)) - 1))",
        tests=("likelihood/fokker_planck/test_weak_drift.py::test_the_stationary_law_of_a_weak_drift_is_exact",),
    ),
    Mutant(
        what="the Jacobian of the midpoint rule upside down",
        file="likelihood/action.py",
        pattern="(spreading.to(work).reshape(flat[:2]) * step / 2)",
        replacement="(spreading.to(work).reshape(flat[:2]) * -step / 2)",
        tests=("likelihood/test_action.py::test_the_action_is_minus_the_log_density_of_the_rules_own_chain",),
    ),
    Mutant(
        what="the midpoint rule's diffusion at the start of a step",
        file="likelihood/action.py",
        pattern="knots[:-1] + step / 2)\n    spread",
        replacement="knots[:-1])\n    spread",
        tests=("likelihood/test_action.py::test_the_action_is_minus_the_log_density_of_the_rules_own_chain",),
    ),
    Mutant(
        what="the action of a reverse SDE with a negative variance",
        file="likelihood/action.py",
        pattern="spread = 2 * _diffusion(sde, at).square() * step.abs()",
        replacement="spread = 2 * _diffusion(sde, at).square() * step",
        tests=("likelihood/test_action.py::test_in_equilibrium_a_path_and_its_reversal_are_equally_likely",),
    ),
    Mutant(
        what="the Hessian's blocks below the diagonal one column off",
        file="likelihood/action.py",
        pattern="bands[:, size - d : 2 * size - d, places, d]",
        replacement="bands[:, size - d : 2 * size - d, places, size - 1 - d]",
        tests=("likelihood/test_action.py::test_in_the_plane_it_goes_over_the_saddle_along_the_steepest_line",),
    ),
    Mutant(
        what="a path of least action that is still on its way",
        file="likelihood/action.py",
        pattern="STILL = 1e-9 ",
        replacement="STILL = 1e-2 ",
        tests=("likelihood/test_action.py::test_nothing_near_by_is_of_less_action",),
    ),
    Mutant(
        what="the bound of a latent model without the volume of its map of codes",
        file="likelihood/latent.py",
        pattern='nats if then is None else nats - then.log_abs_det(z).to("cpu", torch.float64)',
        replacement="nats",
        tests=(
            "likelihood/test_latent_bound.py::"
            "test_the_bound_is_log_p_for_every_draw_where_the_encoder_is_the_posterior",
        ),
    ),
)
