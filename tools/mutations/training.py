"""Wrong training: steps, averages, losses, and what is kept."""

from __future__ import annotations

from mutations.mutant import Mutant

__all__ = ["MUTANTS"]

MUTANTS = (
    Mutant(
        what="the average's rebase without its compensation",
        file="training/ema.py",
        pattern="list(torch._foreach_add(lost, torch._foreach_sub(self.offset, virtual)))",
        replacement="torch._foreach_sub(self.offset, virtual)",
        tests=("training/test_exact_average.py::test_the_rebase_loses_no_bit",),
    ),
    Mutant(
        what="the average's rebase drops the offset",
        file="training/ema.py",
        pattern="list(torch._foreach_add(lost, torch._foreach_sub(self.offset, virtual)))",
        replacement="[torch.zeros_like(one) for one in lost]",
        tests=("training/test_exact_average.py::test_the_rebase_loses_no_bit",),
    ),
    Mutant(
        what="the average's decay not to the power of its stride",
        file="training/ema.py",
        pattern="return float(decay ** self._stride(k))",
        replacement="return float(decay)",
        tests=("training/test_ema.py::test_average_of_moving_weights_is_the_float64_recursion",),
    ),
    Mutant(
        what="the warm-up of the average one step late",
        file="training/ema.py",
        pattern="min(self.decay, (1 + k) / (10 + k))",
        replacement="min(self.decay, k / (9 + k))",
        tests=("training/test_ema.py::test_average_of_moving_weights_is_the_float64_recursion",),
    ),
    Mutant(
        what="the norm of a sharded gradient by the rows of one process",
        file="training/sharding.py",
        pattern="return _join([*found, *own])",
        replacement="return _join([mine, *own])",
        tests=("training/test_sharded_training.py::test_two_sharded_processes_make_the_steps_of_one",),
    ),
    Mutant(
        what="importance times without their correction of the weight",
        file="training/trainer.py",
        pattern='self.weight = correct_weight(pick("weight", weight, WEIGHTS), self.times)',
        replacement='self.weight = pick("weight", weight, WEIGHTS)',
        tests=("training/test_importance_times.py::test_a_trainers_importance_times_level_the_likelihood_weight",),
    ),
    Mutant(
        what="the noise of a step that of the first",
        file="training/trainer.py",
        pattern='stream(self.seed, "noise", step, device=x0.device)',
        replacement='stream(self.seed, "noise", device=x0.device)',
        tests=("training/test_draws_of_a_step.py::test_no_two_steps_share_their_draws",),
    ),
    Mutant(
        what="the times of a step those of the first",
        file="training/trainer.py",
        pattern='stream(self.seed, "times", step))',
        replacement='stream(self.seed, "times"))',
        tests=("training/test_draws_of_a_step.py::test_no_two_steps_share_their_draws",),
    ),
    Mutant(
        what="a transform's noise that of the first step",
        file="training/batches.py",
        pattern='stream(self.seed, "transform", step, *self.who, device=device)',
        replacement='stream(self.seed, "transform", *self.who, device=device)',
        tests=("training/test_draws_of_a_step.py::test_no_two_steps_share_their_draws",),
    ),
    Mutant(
        what="a step that was not made does change the average",
        file="training/trainer.py",
        pattern="self.skipped = torch.isfinite(norm if self.world.size > 1 else norm + loss).logical_not()",
        replacement="self.skipped = torch.isfinite(norm).logical_not() & False",
        tests=("training/test_trainer.py::test_a_step_without_a_finite_gradient_changes_nothing",),
    ),
    Mutant(
        what="gradients clipped by their square",
        file="training/updates.py",
        pattern="(norm / limit).clamp_min(1.0).float()",
        replacement="(norm / limit).square().clamp_min(1.0).float()",
        tests=("training/test_trainer.py::test_step_is_the_loss_then_clipping_then_adam",),
    ),
    Mutant(
        what="a checkpoint while the loss is not finite",
        file="training/loop.py",
        pattern="if 2 * len(good) < len(recent) or not (trainer.world.is_main or trainer.sharded):",
        replacement="if not trainer.world.is_main:",
        tests=("training/test_what_is_kept.py::test_nothing_is_kept_of_steps_that_were_not_made",),
    ),
    Mutant(
        what="a checkpoint while the records are bad",
        file="training/loop.py",
        pattern="if self.folder is None or self.bad_checks:",
        replacement="if self.folder is None:",
        tests=("training/test_what_is_kept.py::test_nothing_is_kept_while_the_records_are_bad",),
    ),
    Mutant(
        what="the held-out loss with the raw weights",
        file="training/judge.py",
        pattern="        with trainer.ema.applied():\n",
        replacement="        with in_mode(trainer.net, training=True):\n",
        tests=("training/test_held_out.py::test_training_logs_the_loss_by_noise_level_and_of_held_out_data",),
    ),
    Mutant(
        what="held-out times not shuffled",
        file="training/losses/held_out.py",
        pattern='[permutation(count, stream(seed, "held out", "order"))]',
        replacement="[:count]",
        tests=("training/losses/test_held_out_draws.py::test_times_are_dealt_out_at_random",),
    ),
    Mutant(
        what="the held-out loss's standard error without the root of the count",
        file="training/losses/held_out.py",
        pattern="/ (count - 1) ** 0.5",
        replacement="/ (count - 1)",
        tests=("training/losses/test_held_out_draws.py::test_mean_and_standard_error_are_those_of_the_losses",),
    ),
    Mutant(
        what="non-finite losses counted in the bins",
        file="training/losses/bins.py",
        pattern="good.to(losses.dtype)])",
        replacement="torch.ones_like(losses)])",
        tests=("training/losses/test_held_out_draws.py::test_bins_count_finite_losses_alone",),
    ),
    Mutant(
        what="the loss without its factor",
        file="training/losses/denoising.py",
        pattern="factor = unchecked(lambda: weight(point, model.sde)) * c_out.square()",
        replacement="factor = unchecked(lambda: weight(point, model.sde)) * c_out.abs()",
        tests=(
            "training/losses/test_losses.py::test_simple_weight_is_the_noise_error_and_the_network_sees_its_scaled_state",
            "training/losses/test_losses.py::test_every_readout_gives_the_same_loss_and_gradient",
        ),
    ),
    Mutant(
        what="a chain's bound without its half",
        file="training/losses/chain.py",
        pattern="self.on_bound * (0.5 * terms.reshape(len(x0), -1).mean(1) + constant)",
        replacement="self.on_bound * (terms.reshape(len(x0), -1).mean(1) + constant)",
        tests=("training/losses/test_chain_losses.py::test_the_bound_is_the_divergence_of_two_gaussians",),
    ),
    Mutant(
        what="importance indices not weighed",
        file="training/losses/chain.py",
        pattern="return i, 1 / (n * law[i])",
        replacement="return i, torch.ones_like(u)",
        tests=("training/losses/test_chain_training.py::test_importance_sampling_keeps_the_mean",),
    ),
    Mutant(
        what="times of low discrepancy that start at 0",
        file="training/losses/times.py",
        pattern='u = torch.arange(n, dtype=torch.float64, device="cpu").div_(n).add_(start).remainder_(1.0)',
        replacement='u = torch.arange(n, dtype=torch.float64, device="cpu").div_(n)',
        tests=("training/losses/test_times_and_weights.py::test_each_time_alone_has_its_law",),
    ),
)
