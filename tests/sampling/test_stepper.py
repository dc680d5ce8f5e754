"""A table step by step is the table; a scheduler of diffusers made of it is, too."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign import small_unet
from torch import Tensor, nn

from scoresde import (
    DDPM,
    VPSDE,
    ConfigError,
    DomainError,
    DTypeError,
    GaussianModel,
    RectifiedFlow,
    ShapeError,
    SolverError,
    Stepper,
    Tableau,
    adapt,
    build_table,
    sample,
    to_diffusers,
)
from scoresde.diffusions.targets import target, view
from scoresde.noise import normal, stream
from scoresde.solvers.catalogue import catalogue

F64 = torch.float64
MODEL = GaussianModel(
    sde=VPSDE(), mean=torch.tensor([1.0, -0.5], dtype=F64), covariance=torch.tensor([[1.0, 0.3], [0.3, 0.5]], dtype=F64)
)
Z = normal((4, 2), stream(0), dtype=F64)


def run(stepper: Stepper, kind: str, z: Tensor = Z) -> Tensor:
    x = stepper.start(z)
    for at in stepper:
        x = stepper(x, MODEL.at(x, at.point()).view(kind))
    return x


NAMES = [one.name for one in catalogue() if one.calls is not None and "VPSDE" in one.serves]


@pytest.mark.parametrize("kind", ["noise", "data", "v"])
@pytest.mark.parametrize("name", NAMES)
def test_step_by_step_is_the_loop(name: str, kind: str) -> None:
    table = build_table(VPSDE(), name, steps=6)
    expected = sample(MODEL, x_init=table.prior_std * Z, solver=table, seed=3)
    stepper = Stepper(table, predicts=kind, seed=3)
    torch.testing.assert_close(run(stepper, kind), expected, rtol=0, atol=1e-7)
    torch.testing.assert_close(run(stepper, kind), expected, rtol=0, atol=1e-7)  # a second loop begins anew


def test_the_seeds_draws_are_those_of_sample() -> None:
    table = build_table(VPSDE(), "ancestral", steps=5)
    start = normal((4, 2), stream(9), dtype=F64)
    stepper = Stepper(table, predicts="data", seed=7)
    assert torch.equal(stepper.start(start), start)
    torch.testing.assert_close(run(stepper, "data", start), sample(MODEL, x_init=start, solver=table, seed=7))


def test_velocities_states_of_ones_own_and_gradients() -> None:
    sde = RectifiedFlow()
    flow = GaussianModel(sde=sde, mean=MODEL.moments.mean, covariance=torch.eye(2, dtype=F64))
    table = build_table(sde, "flow_abm", steps=6)
    stepper = Stepper(table, predicts="velocity", sde=sde)
    z = Z.clone().requires_grad_(True)
    x = stepper.start(z)
    for at in stepper:
        x = stepper(x, flow.at(x, sde.at(at.t)).view("velocity"))
    torch.testing.assert_close(x.detach(), sample(flow, x_init=Z, solver=table), rtol=0, atol=1e-9)
    (gradient,) = torch.autograd.grad(x.sum(), z)
    assert bool((gradient.abs() > 0.1).all())


def test_a_state_that_is_changed_on_the_way_is_the_one_that_goes_on() -> None:
    table = build_table(VPSDE(), "ddim", steps=6)
    stepper = Stepper(table, predicts="data")
    x = stepper.start(Z)
    for row, _ in zip(table.rows, stepper, strict=True):
        pinned = normal((4, 2), stream(1, stepper.place), dtype=F64)
        x = stepper(pinned, torch.ones_like(x))
        points = row.at.point()
        on_x, on_data = row.state
        # P is what the table extrapolates, of x and the data.
        a, b = view(target("data", points), target(table.prediction, points), points)
        torch.testing.assert_close(x, (on_x + on_data * a) * pinned + on_data * b, rtol=0, atol=1e-9)


def test_what_is_returned_is_never_written_to_again() -> None:
    stepper = Stepper(build_table(VPSDE(), "dpmpp_3m", steps=8), predicts="data")
    x, kept = stepper.start(Z), []
    for at in stepper:
        x = stepper(x, MODEL.at(x, at.point()).data)
        kept.append((x, x.clone()))
    assert all(torch.equal(one, copy) for one, copy in kept)


def test_mistakes() -> None:
    table = build_table(VPSDE(), "ddim", steps=3)
    stepper = Stepper(table)
    with pytest.raises(SolverError, match=r"was not started: x = stepper.start\(z\)"):
        stepper(Z, Z)
    x = stepper.start(Z)
    with pytest.raises(ShapeError, match=r"output must have the shape \(4, 2\) of x, got \(4, 1\)"):
        stepper(x, Z[:, :1])
    with pytest.raises(DTypeError, match="output must be a tensor, got NoneType"):
        stepper(x, None)
    with pytest.raises(DTypeError, match="x must be a tensor, got int"):
        stepper(3, Z)
    with pytest.raises(SolverError, match="was not called since it said where to ask"):
        for _ in stepper:
            pass
    for _ in range(len(stepper)):
        x = stepper(x, Z)
    with pytest.raises(SolverError, match=r"has ended after 3 calls; begin again with stepper.start\(z\)"):
        stepper(x, Z)
    with pytest.raises(DTypeError, match="table must be a Tableau"):
        Stepper("ddim")
    with pytest.raises(ConfigError, match="a velocity is of an SDE's time; pass sde="):
        Stepper(table, predicts="velocity")
    with pytest.raises(ConfigError, match="unknown prediction 'nois'"):
        Stepper(table, predicts="nois")
    chain = DDPM.linear(50)
    with pytest.raises(ConfigError, match="takes its variance from the network"):
        Stepper(chain.ancestral(variance="learned"))


# ---------------------------------------------------------------------------------------------------------------------
# A scheduler of diffusers

BETAS = DDPM.linear(200).betas


@pytest.fixture(scope="module")
def unet() -> nn.Module:
    pytest.importorskip("diffusers")
    return small_unet()


def draw(pipeline: Any, steps: int) -> Tensor:
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(1)
    images = pipeline(batch_size=2, generator=generator, num_inference_steps=steps, output_type="np").images
    return torch.from_numpy(images).permute(0, 3, 1, 2)


@pytest.mark.parametrize(("name", "steps"), [("ddim", 9), ("dpmpp_2m", 9), ("heun", 10), ("flow_abm", 8)])
def test_a_pipeline_runs_our_solver(name: str, steps: int, unet: nn.Module) -> None:
    import diffusers

    found = draw(diffusers.DDPMPipeline(unet, to_diffusers(name, betas=BETAS)), steps)
    model = adapt(unet, time="index", betas=BETAS)
    z = torch.empty(2, 1, 8, 8).normal_(generator=torch.Generator().manual_seed(1))
    table = next(table for k in range(1, steps + 1) if (table := build_table(model.sde, name, steps=k)).nfe == steps)
    expected = (sample(model, x_init=z, solver=table) / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
    scheduler = to_diffusers(name, betas=BETAS)
    scheduler.set_timesteps(steps)
    torch.testing.assert_close(scheduler.timesteps, (200 * table.points.t - 1).float())
    assert float(scheduler.timesteps[0]) == 199


def test_noise_comes_from_the_pipelines_generator(unet: nn.Module) -> None:
    import diffusers

    pipeline = diffusers.DDPMPipeline(unet, to_diffusers("ancestral", betas=BETAS))
    first = draw(pipeline, 6)
    assert torch.equal(draw(pipeline, 6), first)
    generator = torch.Generator().manual_seed(1)
    z = torch.empty(2, 1, 8, 8).normal_(generator=generator)
    model = adapt(unet, time="index", betas=BETAS)
    table = build_table(model.sde, "ancestral", steps=6)
    assert table.nfe == 6
    expected = (sample(model, x_init=z, solver=table, generator=generator) / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(first, expected, rtol=0, atol=2e-5)


def test_a_table_and_flow_matching_and_what_a_pipeline_saves(unet: nn.Module, tmp_path: Path) -> None:
    import diffusers

    sde = adapt(unet, time="index", betas=BETAS).sde
    table = build_table(sde, "dpmpp_2m", steps=5)
    scheduler = to_diffusers(Tableau.from_json(table.to_json()), betas=BETAS)
    by_table = draw(diffusers.DDPMPipeline(unet, scheduler), table.nfe)
    torch.testing.assert_close(
        by_table, draw(diffusers.DDPMPipeline(unet, to_diffusers("dpmpp_2m", betas=BETAS)), table.nfe)
    )
    scheduler.save_pretrained(tmp_path)
    again = type(scheduler).from_pretrained(tmp_path)
    assert torch.equal(draw(diffusers.DDPMPipeline(unet, again), table.nfe), by_table)
    assert (len(again), again.order, again.init_noise_sigma) == (200, 1, 1.0)
    flow = to_diffusers("flow_abm", predicts="velocity")
    flow.set_timesteps(6)
    assert float(flow.timesteps[0]) == 1000
    x = Z.clone()
    for t in flow.timesteps:
        x = flow.step(torch.zeros_like(x), t, x, return_dict=False)[0]
    assert torch.equal(x, Z), "nothing moves where the velocity is 0"


def test_noise_is_added_as_the_chain_does(unet: nn.Module) -> None:
    chain = DDPM.from_betas(BETAS)
    scheduler = to_diffusers("ddim", betas=BETAS)
    x0, z, index = (
        normal((3, 2), stream(1), dtype=F64),
        normal((3, 2), stream(2), dtype=F64),
        torch.tensor([0, 50, 199]),
    )
    torch.testing.assert_close(scheduler.add_noise(x0, z, index), chain.perturb(x0, index, z))
    assert scheduler.scale_model_input(x0, 3) is x0


def test_schedulers_that_cannot_be(unet: nn.Module) -> None:
    with pytest.raises(ConfigError, match="any other prediction needs betas="):
        to_diffusers("ddim")
    with pytest.raises(ConfigError, match="any other prediction needs betas="):
        to_diffusers("ddim", betas=BETAS, predicts="velocity")
    with pytest.raises(ConfigError, match="it is called 'noise' here"):
        to_diffusers("ddim", betas=BETAS, predicts="epsilon")
    scheduler = to_diffusers("heun", betas=BETAS)
    with pytest.raises(ConfigError, match="call set_timesteps"):
        scheduler.step(Z, 0, Z)
    with pytest.raises(ConfigError, match="heun makes no table of 9 calls; those with tables near it: 6, 8, 10, 12"):
        scheduler.set_timesteps(9)
    with pytest.raises(ConfigError, match="is adaptive and has no table"):
        to_diffusers("probability_flow", betas=BETAS).set_timesteps(9)
    table = build_table(VPSDE(), "ddim", steps=3)
    with pytest.raises(ConfigError, match="the table has 3 calls, got num_inference_steps=7"):
        to_diffusers(table, betas=BETAS).set_timesteps(7)
    assert isinstance(copy.deepcopy(Stepper(table)), Stepper)


def test_a_scheduler_of_diffusers_is_held_to_its_configuration() -> None:
    """Whatever ``from_config`` hands over."""
    diffusers = pytest.importorskip("diffusers")
    made = to_diffusers("ddim", betas=DDPM.linear(1000).betas[:20], n=20)
    kind = type(made)
    assert isinstance(made, diffusers.SchedulerMixin)
    for change, message in (
        ({"prediction_type": "epsilom"}, "unknown prediction_type 'epsilom'; did you mean 'epsilon'"),
        ({"num_train_timesteps": "x"}, "num_train_timesteps must be an integer"),
        ({"num_train_timesteps": -3}, "num_train_timesteps must be at least 1"),
        ({"num_train_timesteps": 10**12}, "num_train_timesteps must be at most 1000000"),
        ({"num_train_timesteps": 3}, "trained_betas has 20 numbers, and num_train_timesteps is 3"),
    ):
        with pytest.raises((ConfigError, DTypeError, DomainError), match=message):
            kind.from_config({**made.config, **change})
    x = torch.zeros(2, 1)
    assert made.add_noise(x, x, torch.tensor([0, 19])).shape == (2, 1)
    for wrong in (torch.tensor([5, 99]), torch.tensor([5, -3])):
        with pytest.raises(DomainError, match="timesteps must lie in"):
            made.add_noise(x, x, wrong)
