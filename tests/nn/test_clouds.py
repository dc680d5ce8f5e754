"""Clouds of different sizes in one batch, and a variance that is said of them: masks, and what must not turn."""

from __future__ import annotations

import pytest
import torch
from network_cases import awake, distance, orthogonal, turn
from torch import Tensor

from scoresde import VPSDE, ConfigError, RelativePlaces, ScoreModel, ShapeError, guided, losses, sample, solvers
from scoresde.errors import DTypeError
from scoresde.nn import EGNN
from scoresde.noise import normal, permutation, stream

DOUBLE = torch.float64
C = torch.tensor([-6.0, 0.0, 4.0], dtype=DOUBLE)
SIZES = (2, 4, 6)
LAYOUTS = {
    "clouds": {"features": 2},
    "centred": {"features": 2, "centred": True},
    "places": {},
    "relative": {"features": 2, "relative": True},
    "relative places": {"relative": True},
}


def make(layout: str, **options: bool) -> EGNN:
    return awake(EGNN(3, width=16, depth=2, **LAYOUTS[layout], **options)).double()


def padded(features: int) -> tuple[Tensor, Tensor]:
    """Return clouds (3, 6, 3 + features) of 2, 4 and 6 points, the rest 0, and their mask; places have mean 0."""
    x = normal((3, 6, 3 + features), stream(1, "padded"), dtype=DOUBLE)
    mask = (torch.arange(6) < torch.tensor(SIZES)[:, None]).double()
    x = x * mask[..., None]
    mean = x[..., :3].sum(1, keepdim=True) / mask.sum(1)[:, None, None]
    x[..., :3] = (x[..., :3] - mean) * mask[..., None]
    return x, mask


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_cloud_among_larger_ones_is_the_cloud_alone(layout: str) -> None:
    net, features = make(layout, masked=True), LAYOUTS[layout].get("features", 0)
    x, mask = padded(features)
    transform = RelativePlaces(3, features) if net.relative else None
    forward, inverse = (transform.forward, transform.inverse) if transform else (lambda x: x,) * 2
    out = inverse(net(forward(x), C, mask=mask))
    for b, size in enumerate(SIZES):
        alone = inverse(net(forward(x[b : b + 1, :size]), C[b : b + 1]))
        assert distance(out[b : b + 1, :size], alone) < 1e-12
    assert distance(out[mask == 0], torch.zeros(())) < 1e-14
    # In any order of the rows.
    order = permutation(6, stream(2))
    other = inverse(net(forward(x[:, order]), C, mask=mask[:, order]))
    assert distance(other, out[:, order]) < 1e-12


def test_rows_that_are_no_points_are_not_seen() -> None:
    """Whatever they hold, the others' output has the same bits, and no gradient reaches them."""
    net = make("clouds", masked=True)
    x, mask = padded(2)
    out = net(x, C, mask=mask)
    strange = torch.where(mask[..., None] == 0, torch.tensor([1e6, torch.nan, torch.inf, 3.0, -1.0]).double(), x)
    assert torch.equal(net(strange, C, mask=mask), out)
    strange = strange.requires_grad_(True)
    (slope,) = torch.autograd.grad(net(strange, C, mask=mask).square().sum(), strange)
    assert not slope[mask == 0].any()
    assert bool((slope[mask == 1].abs().amax(1) > 0).all())
    # All ones, none at all and the null are the same.
    full = net(x, C)
    for everyone in (torch.ones_like(mask), torch.full_like(mask, torch.nan)):
        assert distance(net(x, C, mask=everyone), full) < 1e-13
    assert bool(net(x, C, mask=torch.zeros_like(mask)).isfinite().all())


def test_the_loss_of_a_padded_cloud_is_that_of_the_cloud_alone() -> None:
    """With the noise's part on the cloud's own subspace, and the mean over fewer coordinates undone."""
    transform = RelativePlaces(3, 2)
    model = ScoreModel(make("relative", masked=True), VPSDE(), predicts="data")
    x, mask = padded(2)
    y, t = transform.forward(x), torch.tensor([0.2, 0.5, 0.8], dtype=DOUBLE)
    z = normal(y.shape, stream(3), dtype=DOUBLE)
    together = (
        losses.denoising_score_matching(model, y, weight="simple", t=t, noise=z, cond={"mask": mask}) * y.shape[1]
    )
    for b, size in enumerate(SIZES):
        alone, seen = (transform.forward(whole[b : b + 1, :size]) for whole in (x, transform.inverse(z)))
        loss = (
            losses.denoising_score_matching(model, alone, weight="simple", t=t[b : b + 1], noise=seen) * alone.shape[1]
        )
        assert float(together[b].detach()) == pytest.approx(float(loss.detach()), rel=1e-10)


def test_a_sample_with_a_mask_ends_with_zeros_where_no_points_are() -> None:
    model = ScoreModel(make("relative", masked=True), VPSDE(), predicts="data", transform=RelativePlaces(3, 2))
    _, mask = padded(2)
    for solver in ("ddim", "euler_maruyama", "dpmpp_2m"):
        x = sample(model, (3, 27), solver=solver, steps=4, seed=0, cond={"mask": mask}, dtype=DOUBLE)
        size = 1e-12 * float(x.abs().max())
        assert not x[mask == 1].eq(0).any()
        assert float(x[mask == 0].abs().max()) < size
        assert float(x[..., :3].mean(1).abs().max()) < size
    # Guidance leaves out conditions, and not the mask.
    net = awake(EGNN(3, features=2, width=16, depth=2, relative=True, masked=True, classes=2)).double()
    told = {"mask": mask, "label": torch.tensor([0, 1, 1])}
    null = net.null_conditions(told)
    assert torch.equal(null["mask"], mask)
    assert null["label"].tolist() == [-1, -1, -1]
    led = guided(ScoreModel(net, VPSDE(), predicts="data", transform=RelativePlaces(3, 2)), 2.0)
    x = sample(led, (3, 27), solver="ddim", steps=3, seed=0, cond=told, dtype=DOUBLE)
    assert float(x[mask == 0].abs().max()) < 1e-12 * float(x.abs().max())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_learned_variance_does_not_turn_and_moves_with_the_points(layout: str) -> None:
    net, features = make(layout, learned_variance=True), LAYOUTS[layout].get("features", 0)
    width = 3 + features
    x = normal((3, 5, width), stream(4, layout), dtype=DOUBLE)
    transform = RelativePlaces(3, features) if net.relative else None

    def split(cloud: Tensor) -> tuple[Tensor, Tensor]:
        first, second = net(cloud if transform is None else transform.forward(cloud), C).chunk(2, 1)
        return (first, second) if transform is None else (transform.inverse(first), second)

    out, v = split(x)
    assert float(v.detach().std()) > 1e-3
    q, order = orthogonal(3, reflect=True), permutation(5, stream(5))
    turned, v_turned = split(turn(x, q))
    assert distance(turned, turn(out, q)) < 1e-12
    assert distance(v_turned, v) < 1e-12
    moved, v_moved = split(x[:, order])
    assert distance(moved, out[:, order]) < 1e-12
    if transform is None:
        assert distance(v_moved, v[:, order]) < 1e-12
        assert distance(v[..., :3], v[..., :1].expand(-1, -1, 3)) == 0
    else:
        assert distance(v[:, :12], v[:, :1].expand(-1, 12)) == 0
    if features:  # the first half is that of the network without
        if transform is not None:
            assert distance(v_moved[:, 12:].reshape(3, 5, -1), v[:, 12:].reshape(3, 5, -1)[:, order]) < 1e-12
        plain = make(layout)
        plain.load_state_dict({k: v for k, v in net.state_dict().items() if not k.startswith("spread")})
        first = plain(x if transform is None else transform.forward(x), C)
        assert distance(first if transform is None else transform.inverse(first), out) < 1e-13


def test_the_ancestral_rule_takes_the_variance_and_a_network_without_is_told() -> None:
    for layout, shape in (("relative", (4, 22)), ("clouds", (4, 5, 5))):
        ancestral = solvers.ancestral(variance="learned")
        model = ScoreModel(make(layout, learned_variance=True), VPSDE(), variance="learned")
        learned = sample(model, shape, solver=ancestral, steps=4, seed=0, dtype=DOUBLE)
        small = sample(model, shape, solver=solvers.ancestral(), steps=4, seed=0, dtype=DOUBLE)
        assert distance(learned, small) > 1e-3
        with pytest.raises(ShapeError, match=r"nn\.EGNN learned_variance=True"):
            sample(ScoreModel(make(layout), VPSDE(), variance="learned"), shape, solver=ancestral, steps=4, seed=0)


def test_masks_and_shapes_that_do_not_fit_are_refused() -> None:
    net, x = make("clouds", masked=True), torch.zeros(3, 6, 5)
    with pytest.raises(ShapeError, match=r"mask must have shape \(3, 6\) for x of shape \(3, 6, 5\), got \(3, 5\)"):
        net(x, C, mask=torch.ones(3, 5))
    with pytest.raises(DTypeError, match=r"mask must be a floating tensor, got torch.bool; convert it with mask.float"):
        net(x, C, mask=torch.ones(3, 6, dtype=torch.bool))
    with pytest.raises(ConfigError, match="mask was given, but the network takes no conditions"):
        make("clouds")(x, C, mask=torch.ones(3, 6))
    with pytest.raises(ConfigError, match='takes a condition "mask"; give the other one another name'):
        EGNN(3, masked=True, context_features={"mask": 2})
    with pytest.raises(ShapeError, match=r"relative coordinates have shape \(B, 5 N - 3\)"):
        make("relative")(torch.zeros(3, 20), C)
    with pytest.raises(ShapeError, match=r"mask must have shape \(3, 6\) for x of shape \(3, 27\)"):
        make("relative", masked=True)(torch.zeros(3, 27), C, mask=torch.ones(3, 27))
    with pytest.raises(ShapeError, match=r"a mask is for clouds; x has shape \(3,\)"):
        make("relative", masked=True).check_conditions(torch.Size([3]), {"mask": torch.ones(3, 6)})
    with pytest.raises(DTypeError, match="relative must be True or False"):
        EGNN(3, relative="yes")
