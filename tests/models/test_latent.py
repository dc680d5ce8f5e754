"""A model of codes: its samples are its own, decoded; its codes have unit variance; its checkpoint holds both parts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from scoresde import (
    VESDE,
    VPSDE,
    Affine,
    CheckpointError,
    CombinedModel,
    Compose,
    ConfigError,
    DTypeError,
    EncoderDecoder,
    GaussianModel,
    Langevin,
    Latent,
    Moments,
    ProbabilityFlow,
    ScoreModel,
    ShapeError,
    decode,
    edit,
    encode,
    fit,
    guided,
    interpolate,
    posterior,
    sample,
    tilted,
)
from scoresde.nn import MLP, Autoencoder, UNet
from scoresde.noise import normal, stream

F64 = torch.float64
SOLVERS = ["flow_abm", "dpmpp_2m", "ancestral", "dpmpp_2m_sde", "heun", "edm"]


def data(n: int = 40) -> Tensor:
    return normal((n, 1, 8, 8), stream(0, "latent", "data"))


def coder(*, variational: bool = True, seed: int = 0) -> Autoencoder:
    made = Autoencoder(1, 2, width=4, multipliers=(1, 2), variational=variational, seed=seed)
    with torch.no_grad():
        for k, weight in enumerate(made.parameters()):
            weight.add_(0.1 * normal(weight.shape, stream(k, "latent", seed)))
    return made


def model(*, variational: bool = True) -> ScoreModel:
    latent = Latent.standardise(coder(variational=variational), data())
    net = UNet(2, width=4, multipliers=(1,), classes=3, seed=1)
    return ScoreModel(net, VPSDE(), moments=Moments.of(latent.encode(data(), seed=0)), transform=latent)


@pytest.mark.parametrize("solver", [*SOLVERS, ProbabilityFlow(1e-3, 1e-3)], ids=[*SOLVERS, "adaptive"])
def test_the_samples_are_those_of_the_codes_decoded(solver: object) -> None:
    whole = model()
    options = {"solver": solver, "seed": 4}
    options |= {} if isinstance(solver, ProbabilityFlow) else {"steps": 4}
    options |= {"kernels": [Langevin()]} if solver == "ancestral" else {}
    codes = sample(whole.in_its_own_coordinates(), 5, **options)
    then = whole.transform.then
    with torch.no_grad():
        expected = whole.transform.autoencoder.decode(then.inverse(codes))
    got = sample(whole, 5, **options)
    assert got.shape == (5, 1, 8, 8)
    assert not got.requires_grad
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    # A sample does not depend on the chunk, nor on those beside it.
    torch.testing.assert_close(sample(whole, 5, chunk_size=2, **options), got, rtol=1e-4, atol=1e-4)
    alone = sample(whole, 1, first_sample=3, **options)
    torch.testing.assert_close(alone, got[3:4], rtol=1e-4, atol=1e-4)


def test_another_sde_and_other_types() -> None:
    whole = model(variational=False)
    codes = sample(whole.in_its_own_coordinates(), 3, sde=VESDE(), steps=4, seed=0)
    decoded = whole.transform.inverse(codes)
    torch.testing.assert_close(sample(whole, 3, sde=VESDE(), steps=4, seed=0), decoded.detach(), rtol=1e-5, atol=1e-5)
    assert whole.with_sde(VESDE()).transform is whole.transform
    for dtype in (F64, torch.bfloat16):
        assert sample(whole, 3, steps=2, seed=0, dtype=dtype).dtype == dtype
    half = ScoreModel(MLP((2, 4, 4), width=8).bfloat16(), VPSDE(), transform=whole.transform)
    assert half.dtype == torch.bfloat16
    half.transform = None
    half.transform = Affine()
    half.transform = whole.transform
    inside = {f"transform.autoencoder.{name}" for name in whole.transform.autoencoder.state_dict()}
    assert set(dict(half.named_parameters())) > inside


@pytest.mark.parametrize("variational", [True, False])
def test_the_codes_have_unit_variance_in_every_channel(variational: bool) -> None:
    latent = Latent.standardise(coder(variational=variational), data(), seed=5)
    codes = latent.encode(data(), seed=5).double()
    torch.testing.assert_close(codes.mean((0, 2, 3)), torch.zeros(2, dtype=F64), rtol=0, atol=1e-5)
    torch.testing.assert_close(codes.var((0, 2, 3)), torch.ones(2, dtype=F64), rtol=1e-4, atol=0)
    assert latent.random == variational


def test_codes_are_draws_of_their_law_each_sample_with_its_own() -> None:
    net, x = coder(), data(1).expand(4000, -1, -1, -1)
    latent = Latent(net, Affine(0.5, 2.0))
    with torch.no_grad():
        mean, log_variance = net.posterior(x[:1])
    z = 0.5 + 2.0 * latent.encode(x, seed=3).double()
    deviation = (z - mean.double()) / (0.5 * log_variance.double()).exp()
    # Means and variances of 32 coordinates of 4000 standard normal draws: a false alarm in some 10 000 runs each.
    assert float(deviation.mean(0).abs().max()) < 5 / 4000**0.5
    assert float((deviation.var(0) - 1).abs().max()) < 5 * (2 / 4000) ** 0.5
    assert len(torch.unique(z.flatten(1), dim=0)) == len(z)
    torch.testing.assert_close(latent.encode(x[:300], seed=3).double() * 2 + 0.5, z[:300], rtol=0, atol=1e-5)
    assert not torch.equal(latent.encode(x[:3], seed=4), latent.encode(x[:3], seed=3))
    torch.testing.assert_close(latent.encode(x[:3]) * 2 + 0.5, mean.expand(3, -1, -1, -1), rtol=0, atol=1e-5)
    first, again = (latent.forward(x[:3], stream(8)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(latent.forward(x[:3], stream(9)), first)
    torch.testing.assert_close(latent.forward(x[:3]), latent.encode(x[:3]), rtol=0, atol=1e-6)


def test_a_fit_on_data_is_one_on_codes_that_are_drawn_anew() -> None:
    latent, x = Latent.standardise(coder(), data()), data()
    before = {name: value.clone() for name, value in latent.autoencoder.state_dict().items()}
    options = {"steps": 3, "batch_size": 40, "progress": False, "seed": 2}
    whole = fit(ScoreModel(MLP((2, 4, 4), width=8), VPSDE()), x, transform=latent, **options)
    once = fit(ScoreModel(MLP((2, 4, 4), width=8), VPSDE()), latent.encode(x, seed=0), **options)
    assert whole.model.moments.mean.shape == (2, 4, 4)
    variance = whole.model.moments.covariance.diagonal().mean()
    assert float(variance) == pytest.approx(1.0, abs=0.1)
    assert not torch.equal(whole.losses, once.losses)
    torch.testing.assert_close(whole.losses, once.losses, rtol=0.2, atol=0.2)
    # The autoencoder is as it was.
    assert all(torch.equal(value, before[name]) for name, value in latent.autoencoder.state_dict().items())
    assert sample(whole.model, 2, steps=2, seed=0).shape == (2, 1, 8, 8)


def test_a_run_with_another_autoencoder_is_another_run(tmp_path: Path) -> None:
    net, x = coder(variational=False), data()
    latent = Latent.standardise(net, x)
    options = {"batch_size": 8, "progress": False, "decay": "constant", "warmup": 0, "folder": tmp_path / "run"}
    made = fit(ScoreModel(MLP((2, 4, 4), width=8), VPSDE()), x, steps=2, transform=latent, **options).model
    again = ScoreModel.load(tmp_path / "run")
    assert torch.equal(sample(again, 2, steps=2, seed=0), sample(made, 2, steps=2, seed=0))
    fit(ScoreModel(MLP((2, 4, 4), width=8), VPSDE()), x, steps=3, transform=latent, resume=True, **options)
    with torch.no_grad():
        next(net.parameters()).mul_(1.001)
    with pytest.raises(ConfigError, match="another run: transform"):
        fit(ScoreModel(MLP((2, 4, 4), width=8), VPSDE()), x, steps=4, transform=latent, resume=True, **options)


@pytest.mark.parametrize("variational", [True, False])
def test_a_checkpoint_carries_both(tmp_path: Path, variational: bool) -> None:
    whole = model(variational=variational)
    whole.save(tmp_path / "model")
    again = ScoreModel.load(tmp_path / "model")
    assert again.transform.to_dict() == whole.transform.to_dict()
    assert torch.equal(sample(again, 3, steps=3, seed=1), sample(whole, 3, steps=3, seed=1))
    assert torch.equal(again.transform.encode(data(), seed=1), whole.transform.encode(data(), seed=1))
    label = torch.tensor([0, 2])
    strong = guided(whole, 2.0)
    expected = sample(strong, 2, steps=3, seed=1, cond={"label": label})
    strong.save(tmp_path / "guided")
    loaded = CombinedModel.load(tmp_path / "guided")
    assert torch.equal(sample(loaded, 2, steps=3, seed=1, cond={"label": label}), expected)


class Fold(nn.Module):
    """An encoder of a user's own, with an option that weights do not show."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.weight = nn.Parameter(normal((6, 3), stream(seed, "fold")))
        self.seen: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(self.training)
        return x @ self.weight


def unfold(z: Tensor) -> Tensor:
    return torch.cat([z, -z], 1)


def test_an_encoder_and_a_decoder_of_ones_own(tmp_path: Path) -> None:
    encoder, x = Fold(), normal((20, 6), stream(0, "own"))
    latent = Latent.standardise(EncoderDecoder(encoder, unfold), x)
    assert encoder.training
    assert encoder.seen
    assert not any(encoder.seen)
    own = ScoreModel(MLP(3, width=8), VPSDE(), moments=Moments.of(latent.encode(x)), transform=latent)
    expected = sample(own, 4, steps=3, seed=0)
    assert expected.shape == (4, 6)
    assert torch.equal(expected[:, :3], -expected[:, 3:])
    own.save(tmp_path)
    with pytest.raises(CheckpointError, match=r"your own autoencoder EncoderDecoder.*load\(folder, autoencoder="):
        ScoreModel.load(tmp_path)
    other = Fold(1)
    again = ScoreModel.load(tmp_path, autoencoder=EncoderDecoder(other, unfold))
    assert torch.equal(other.weight, encoder.weight)
    assert torch.equal(sample(again, 4, steps=3, seed=0), expected)
    with pytest.raises(CheckpointError, match=r"does not fit the network EncoderDecoder: unexpected encoder.weight"):
        ScoreModel.load(tmp_path, autoencoder=EncoderDecoder(torch.sin, unfold))


def test_a_decoder_passes_gradients_on_where_they_are_asked_for() -> None:
    """With the exact model of codes N(0, 1) and a linear decoder a tilted model and a posterior are known."""
    weight = torch.tensor([[2.0, 0.0, 1.0], [0.5, 1.0, -1.0]], dtype=F64)
    then = Affine((1.0, -0.5), (2.0, 0.5))
    shift, scale = (torch.tensor(v, dtype=F64) for v in (then.shift, then.scale))
    codes = GaussianModel(sde=VPSDE(), mean=-shift / scale, covariance=scale**-2)
    codes.transform = Latent(EncoderDecoder(lambda x: x[:, :2], lambda z: z @ weight.to(z)), then)
    y, std = torch.tensor([1.5, -0.4], dtype=F64), 0.2
    seen = posterior(codes, torch.eye(3, dtype=F64)[:2], y, noise_std=std, event=(2,))
    x = sample(seen, (4000, 2), steps=60, seed=0, dtype=F64)
    a = weight[:, :2].T
    covariance = torch.linalg.inv(torch.eye(2, dtype=F64) + a.T @ a / std**2)
    mean = covariance @ a.T @ y / std**2
    spread = weight.T @ covariance @ weight
    assert float((x.mean(0) - mean @ weight).abs().max()) < 5 * (float(spread.diagonal().max()) / 4000) ** 0.5 + 0.01
    torch.testing.assert_close(torch.cov(x.T), spread, rtol=0.12, atol=0.01)
    pulled = tilted(codes, lambda x0: x0.sum(1), at="data")
    start = normal((3, 2), stream(1), dtype=F64).requires_grad_()
    out = sample(pulled, x_init=start, steps=4, differentiable=True, dtype=F64)
    (gradient,) = torch.autograd.grad(out.sum(), start)
    assert float(gradient.abs().min()) > 0


def test_data_go_through_the_flow_and_back() -> None:
    whole, x = model(variational=False), data(3)
    options = {"solver": "heun", "steps": 6}
    z = encode(whole, x, **options)
    bare = whole.in_its_own_coordinates()
    torch.testing.assert_close(z, encode(bare, whole.transform.encode(x), **options), rtol=1e-5, atol=1e-5)
    there = decode(whole, z, **options)
    between = interpolate(whole, x[:2], x[1:], 3, **options)
    assert between.shape == (3, 2, 1, 8, 8)
    torch.testing.assert_close(between[0], there[:2], rtol=1e-4, atol=1e-4)
    near = edit(whole, x, strength=0.01, steps=3)
    with torch.no_grad():
        back = whole.transform.inverse(whole.transform.forward(x))
    assert float((near - back).square().mean()) < 0.1 * float((edit(whole, x, steps=3) - back).square().mean())


def test_what_is_none_is_refused(tmp_path: Path) -> None:
    net = coder()
    with pytest.raises(DTypeError, match=r"must be an nn.Autoencoder, got MLP; two functions make one: EncoderDecoder"):
        Latent(MLP(2))
    with pytest.raises(DTypeError, match="transform must be one of"):
        Latent(net, torch.sin)
    with pytest.raises(DTypeError, match="decoder must be a function"):
        EncoderDecoder(torch.sin, None)
    with pytest.raises(ShapeError, match=r"the encoder must return .* shape \(3, \*\), got tuple; .*latent_dist"):
        Latent(EncoderDecoder(lambda x: (x, x), torch.sin)).forward(data(3))
    nested = ScoreModel(MLP((2, 4, 4)), VPSDE(), transform=Compose((Latent(net), Affine())))
    with pytest.raises(ConfigError, match=r"write Latent\(autoencoder, then=Compose"):
        nested.save(tmp_path / "nested")
    plain = ScoreModel(MLP(2, width=4), VPSDE(), transform=Affine())
    plain.save(tmp_path / "plain")
    with pytest.raises(ConfigError, match="without an autoencoder; leave autoencoder= out"):
        ScoreModel.load(tmp_path / "plain", autoencoder=net)
    with pytest.raises(ShapeError, match="2 channels"):
        sample(model(), (3, 1, 8, 8), steps=2)
