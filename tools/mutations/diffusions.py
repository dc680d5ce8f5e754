"""Wrong diffusions, transforms and noise."""

from __future__ import annotations

from mutations.mutant import Mutant

__all__ = ["MUTANTS"]

MUTANTS = (
    Mutant(
        what="VPSDE's sigma by exp - 1",
        file="diffusions/vp.py",
        pattern="return (-torch.expm1(-self.integral(t))).sqrt()",
        replacement="return (1 - (-self.integral(t)).exp()).sqrt()",
        tests=("diffusions/test_schedules.py::test_curves_match_references",),
    ),
    Mutant(
        what="sub-VP's diffusion without the factor 2 in the exponent",
        file="diffusions/vp.py",
        pattern="-torch.expm1(-2 * self.integral(t))).sqrt()",
        replacement="-torch.expm1(-self.integral(t))).sqrt()",
        tests=("diffusions/test_schedules.py::test_curves_match_references",),
    ),
    Mutant(
        what="VESDE's diffusion without the 2",
        file="diffusions/levels.py",
        pattern="math.sqrt(2 * self.log_ratio)",
        replacement="math.sqrt(self.log_ratio)",
        tests=("diffusions/test_schedules.py::test_curves_match_references",),
    ),
    Mutant(
        what="the cosine schedule's diffusion without the 2",
        file="diffusions/cosine.py",
        pattern="return (2 * self.speed * self._tangent(t)).sqrt()",
        replacement="return (self.speed * self._tangent(t)).sqrt()",
        tests=("diffusions/test_schedules.py::test_curves_match_references",),
    ),
    Mutant(
        what="the rectified flow's time of a log-SNR with the wrong sign",
        file="diffusions/levels.py",
        pattern="return torch.sigmoid(-0.5 * log_snr)",
        replacement="return torch.sigmoid(0.5 * log_snr)",
        tests=("diffusions/test_time_of_log_snr.py::test_the_ends_have_their_times_and_what_lies_beyond_has_none",),
    ),
    Mutant(
        what="variances' differences by exp - 1",
        file="diffusions/sde.py",
        pattern="return gap, 0.0 - torch.expm1(gap)",
        replacement="return gap, 1.0 - gap.exp()",
        tests=("diffusions/test_small_steps.py::test_transition_and_posterior_of_neighbouring_times",),
    ),
    Mutant(
        what="the transition's b of the earlier sigma",
        file="diffusions/sde.py",
        pattern="return _divide(late.alpha, early.alpha), late.sigma * _compare",
        replacement="return _divide(late.alpha, early.alpha), early.sigma * _compare",
        tests=("diffusions/test_sde.py::test_transition_and_posterior_match_references",),
    ),
    Mutant(
        what="the last knot of a table of numbers not met exactly",
        file="diffusions/tabulated.py",
        pattern="torch.where(t == knots[last], values[last] - inside, torch.zeros_like(inside))",
        replacement="torch.zeros_like(inside)",
        tests=("diffusions/test_knots.py::test_the_curves_meet_their_knots_to_the_last_bit",),
    ),
    Mutant(
        what="the time of the last knot's log-SNR not met exactly",
        file="diffusions/tabulated.py",
        pattern="inside = torch.where(wanted == values[last], knots[last], inside)",
        replacement="inside = torch.where(wanted < values[last], knots[last], inside)",
        tests=("diffusions/test_knots.py::test_the_curves_meet_their_knots_to_the_last_bit",),
    ),
    Mutant(
        what="the times of inner knots' log-SNR not met exactly",
        file="diffusions/tabulated.py",
        pattern="inside = torch.where(wanted == values[i], knots[i], knots[i] + h)",
        replacement="inside = knots[i] + h",
        tests=("diffusions/test_knots.py::test_the_curves_meet_their_knots_to_the_last_bit",),
    ),
    Mutant(
        what="v's two halves exchanged in sign",
        file="diffusions/targets.py",
        pattern="return -p.sigma / r, p.alpha / r",
        replacement="return p.sigma / r, -p.alpha / r",
        tests=("diffusions/test_readout.py::test_views_are_the_literatures",),
    ),
    Mutant(
        what="the reverse SDE with 1 + eta for 1 + eta^2",
        file="diffusions/sde.py",
        pattern="on_score = -0.5 * (1 + self.eta**2) * g.square()",
        replacement="on_score = -0.5 * (1 + self.eta) * g.square()",
        tests=("diffusions/test_reverse.py::test_reverse_drift_uses_the_score_and_keeps_the_marginals",),
    ),
    Mutant(
        what="Affine multiplies by its scale forwards",
        file="transforms/affine.py",
        pattern="y = ((wide - self._numbers(self.shift, wide)) / self._numbers(self.scale, wide)).to(x.dtype)",
        replacement="y = ((wide - self._numbers(self.shift, wide)) * self._numbers(self.scale, wide)).to(x.dtype)",
        tests=("transforms/test_data_transforms.py::test_the_log_determinant_is_that_of_autograds_jacobian",),
    ),
    Mutant(
        what="standardisation by the population's deviation",
        file="transforms/affine.py",
        pattern="std = (scatter / (count - 1)).sqrt() * unit.squeeze(1)",
        replacement="std = (scatter / count).sqrt() * unit.squeeze(1)",
        tests=("transforms/test_data_transforms.py::test_standardised_data_have_mean_zero_and_variance_one",),
    ),
    Mutant(
        what="dequantisation over half of its bin",
        file="transforms/pixels.py",
        pattern="draw = uniform(x.shape, generator).to(wide) - 0.5",
        replacement="draw = 0.5 * uniform(x.shape, generator).to(wide) - 0.25",
        tests=("transforms/test_data_transforms.py::test_every_draw_comes_back_to_its_level",),
    ),
    Mutant(
        what="the logit's log |det| without one of its tails",
        file="transforms/pixels.py",
        pattern="return (slope - lower - upper).reshape",
        replacement="return (slope - lower).reshape",
        tests=("transforms/test_data_transforms.py::test_the_log_determinant_is_that_of_autograds_jacobian",),
    ),
    Mutant(
        what="the parts of a composition taken back in the order of forward",
        file="transforms/compose.py",
        pattern="for part in reversed(self.parts):",
        replacement="for part in self.parts:",
        tests=("transforms/test_data_transforms.py::test_the_inverse_undoes_and_leaves_the_arguments_alone",),
    ),
    Mutant(
        what="the log |det| of a composition at the data alone",
        file="transforms/compose.py",
        pattern="            if k + 1 < len(self.parts):",
        replacement="            if k + 1 > len(self.parts):",
        tests=("transforms/test_data_transforms.py::test_the_log_determinant_is_that_of_autograds_jacobian",),
    ),
    Mutant(
        what="every sample of a call with the stream of its first",
        file="noise.py",
        pattern="first = 0 if self.seeds is not None else self.first_sample * (length // len(out))",
        replacement="first = 0",
        tests=("test_sample_noise.py::test_a_sample_is_the_same_under_any_split",),
    ),
    Mutant(
        what="a sample's draws all its first",
        file="noise.py",
        pattern="numbers = torch.arange(self.draw + 1, self.draw + draws + 1, device=device)[:, None]",
        replacement="numbers = torch.arange(1, draws + 1, device=device)[:, None]",
        tests=("test_sample_noise.py::test_rewinding_replays_any_draw",),
    ),
    Mutant(
        what="normal numbers of another variance",
        file="noise.py",
        pattern="torch.mul(made, ROOT_2, out=out)",
        replacement="torch.mul(made, 1.4, out=out)",
        tests=("test_sample_noise.py::test_the_normal_numbers_invert_their_distribution",),
    ),
)
