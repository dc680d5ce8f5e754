r"""Latent diffusion: a model of the codes of an autoencoder (Rombach et al. 2022, arXiv:2112.10752).

An encoder gives a code z = E(x), or a law q(z | x) of codes, a decoder leads back, x = D(z). A model is trained on
y = T(z), with T of unit variance, and its samples y are carried back to data, D(T^{-1}(y)).

That is what a model's *transform* does already: ``fit`` applies ``forward`` to the data, ``sample`` applies ``inverse``
to its result, and everything in between (solvers, seeds, chunks, conditions, guidance, tables) knows y alone. So the
mechanism is a transform that holds a network. Next to the others it has weights, which the checkpoint keeps beside the
model's; it changes the shape of an event; and it has no log |det|: a density of y is none of x. What is left:

* variational, q(z | x) and p(x | z) = N(D(z), s^2): ``latent_elbo`` bounds log p(x);
* deterministic: D carries the codes onto a surface of fewer dimensions than x, where data have no density at all;
  ``log_likelihood`` and the bounds refuse such a model. The density of the codes is that of
  ``model.in_its_own_coordinates()`` at ``transform.encode(x)``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Never, Protocol, runtime_checkable

import safetensors.torch
import torch
from torch import Generator, Tensor, nn

from scoresde.errors.kinds import ConfigError, DTypeError, ShapeError, SolverError
from scoresde.errors.tensors import check_floating, check_samples, check_values
from scoresde.errors.values import check_callable
from scoresde.models.networks import bare_network, describe_network, network_state
from scoresde.models.prediction import in_mode
from scoresde.noise import SampleNoise, check_seed, normal
from scoresde.ops import Array, Rows, accept_rows, chunks, parts
from scoresde.transforms.affine import Affine
from scoresde.transforms.base import Transform, check_transform

__all__ = ["Coder", "EncoderDecoder", "Latent", "is_same_transform"]

CHUNK = 256  # samples that are decoded, or encoded, at once


@runtime_checkable
class Coder(Protocol):
    """An autoencoder, as ``nn.Autoencoder`` is one."""

    @property
    def variational(self) -> bool:
        """Whether the encoder gives a law of codes."""
        ...

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the codes of data (B, *), or the mean and the log variance of their laws."""
        ...

    def decode(self, z: Tensor) -> Tensor:
        """Return data (B, *) given codes."""
        ...


class EncoderDecoder(nn.Module):
    """Any encoder and decoder, taken for a deterministic autoencoder; modules among them are saved with a model.

    Args:
        encoder: a function or module, data (B, *) -> codes (B, *).
        decoder: a function or module, codes -> data.

    Raises:
        DTypeError: not functions.
    """

    variational = False

    def __init__(self, encoder: Callable[[Tensor], Tensor], decoder: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        for name, function in (("encoder", encoder), ("decoder", decoder)):
            check_callable(function, name, "or a module", optional=False)
        self.encoder, self.decoder = encoder, decoder

    def posterior(self, x: Tensor) -> tuple[Tensor, None]:
        """Return the codes."""
        return _check_answer(self.encoder(check_floating(x)), x, "encoder"), None

    def decode(self, z: Tensor) -> Tensor:
        """Return data given codes."""
        return _check_answer(self.decoder(check_floating(z, "z")), z, "decoder")


def _check_answer(out: object, of: Tensor, name: str) -> Tensor:
    if not isinstance(out, Tensor) or not out.is_floating_point() or out.ndim < 2 or len(out) != len(of):
        got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise ShapeError(
            f"the {name} must return a floating tensor of shape ({len(of)}, *), got {got}; of a record that it returns "
            "take the tensor, e.g. lambda x: vae.encode(x).latent_dist.mean"
        )
    return out


class Latent(nn.Module):
    """The transform of a model of codes: y = T(z) with z the code of x, and back x = D(T^{-1}(y)).

    ``fit(model, data, transform=Latent.standardise(autoencoder, data))`` encodes every batch anew, with a fresh draw of
    q(z | x) where there is one. To encode once, train on ``latent.encode(data, seed=0)`` and set ``model.transform``.

    Args:
        autoencoder: an ``nn.Autoencoder``, an ``EncoderDecoder`` of your own, or any object with the methods of
            ``Coder``. It is used in evaluation mode, and no gradient reaches its weights from here.
        then: T, from codes to the model's coordinates; None for the codes themselves.

    Raises:
        DTypeError: no autoencoder, or no transform.
    """

    def __init__(self, autoencoder: Coder, then: Transform | None = None) -> None:
        super().__init__()
        if isinstance(autoencoder, type) or not isinstance(autoencoder, Coder):
            raise DTypeError(
                f"autoencoder must be an nn.Autoencoder, got {type(autoencoder).__name__}; two functions make one: "
                "EncoderDecoder(encoder, decoder)"
            )
        self.autoencoder, self.then = autoencoder, check_transform(then)

    @classmethod
    def standardise(cls, autoencoder: Coder, data: Array | Rows, *, seed: int = 0) -> Latent:
        """Measure the codes of data (N, *), each drawn by ``seed`` where it has a law, and bring them to unit variance.

        Mean and standard deviation are those of each leading coordinate (channel) of the codes.
        """
        bare = cls(autoencoder)
        return cls(autoencoder, Affine.standardise(bare.encode(data, seed=seed)))

    @property
    def random(self) -> bool:
        """Whether ``forward`` draws from q(z | x)."""
        return self.autoencoder.variational

    def forward(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        """Map data (B, *) to the model's coordinates: a draw by the generator, the mean of q(z | x) without one."""
        return self._code(x, None if generator is None else lambda like: normal(like.shape, generator))

    def encode(self, x: Array | Rows, *, seed: int | None = None) -> Tensor:
        """Return data (N, *) in the model's coordinates, on the CPU: the means, or draws of q(z | x) by a seed.

        What is drawn for sample k is its own, keyed (seed, k).
        """
        rows, done, found = accept_rows(x, "x"), 0, []
        seed = None if seed is None else check_seed(seed)
        for part in parts(rows):
            found.append(self._code(part, None if seed is None else _Own(seed, done)).cpu())
            done += len(part)
        return torch.cat(found)

    def _code(self, x: Tensor, draw: Callable[[Tensor], Tensor] | None) -> Tensor:
        found = []
        check_values(check_floating(x, "data"), "data")
        check_samples(x)
        with in_mode(self, training=False), torch.no_grad():
            for rows in _rows(x):
                mean, log_variance = self.autoencoder.posterior(self.place(x[rows]))
                if log_variance is not None and draw is not None:
                    mean = mean + (0.5 * log_variance).exp() * draw(mean).to(mean)
                found.append(mean.to(x))
        z = torch.cat(found)
        # A training step on a device waits for nothing; there the loss says what is not finite.
        if draw is None or not z.is_cuda:
            _check_finite(z, "code", "the encoder's")
        return z if self.then is None else self.then.forward(z)

    def inverse(self, y: Tensor) -> Tensor:
        """Map the model's coordinates (B, *) to data, with the graph to y where it has one."""
        check_values(check_floating(y, "y"), "y")
        z = y if self.then is None else self.then.inverse(y)
        keep = torch.is_grad_enabled() and y.requires_grad
        with in_mode(self, training=False), torch.set_grad_enabled(keep):
            x = torch.cat([self.autoencoder.decode(self.place(z[rows])).to(y) for rows in _rows(z)])
        return x if keep else _check_finite(x, "decoded sample", "the decoder's")

    def place(self, values: Tensor) -> Tensor:
        """Return values where the autoencoder's weights are, in their type; ConfigError where these have no values."""
        weight = next((p for p in self.parameters() if p.is_floating_point()), None)
        if weight is None:
            return values
        check_values(weight, "the autoencoder")
        return values.to(weight)

    def log_abs_det(self, x: Tensor, generator: Generator | None = None) -> Never:
        """Raise ConfigError: a decoder is no change of variables."""
        raise ConfigError(
            "a density of the codes is none of the data: the decoder is no change of variables",
            cure=(
                "latent_elbo(model, x) bounds log p(x)"
                if self.random
                else "take a variational autoencoder and latent_elbo(model, x); the density of the codes is "
                "log_likelihood(model.in_its_own_coordinates(), transform.encode(x))"
            ),
        )

    def to_dict(self) -> dict[str, object]:
        """Return a JSON-able description: what the autoencoder is, a digest of its weights, and T."""
        state = network_state(self.autoencoder) if isinstance(self.autoencoder, nn.Module) else {}
        for name, value in state.items():
            check_values(value, f"{name} of the autoencoder")
        plain = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in state.items()}
        return {
            "kind": "Latent",
            "autoencoder": describe_autoencoder(self.autoencoder),
            "weights": hashlib.sha256(safetensors.torch.save(plain)).hexdigest(),
            "then": None if self.then is None else self.then.to_dict(),
        }

    def __repr__(self) -> str:
        inner = self.autoencoder
        name = describe_network(inner) if isinstance(inner, nn.Module) else type(inner).__name__
        return f"Latent({name}{'' if self.then is None else f', {self.then!r}'})"


def _check_finite(values: Tensor, what: str, whose: str) -> Tensor:
    """Return values (B, *); SolverError, with the share, where any is no number. A traced graph has none to look at."""
    if not torch.compiler.is_compiling() and not bool(torch.isfinite(values).all()):
        share = float((~torch.isfinite(values)).flatten(1).any(1).double().mean())
        raise SolverError(f"the {what} is not finite in {share:.1%} of the samples, since {whose} answer is not")
    return values


def _rows(x: Tensor) -> list[slice]:
    """Return chunks of the samples; no samples are one chunk of none, which has a shape."""
    return list(chunks(len(x), CHUNK)) or [slice(0, 0)]


class _Own:
    """Noise of each sample's own, from number ``first`` on, chunk by chunk."""

    def __init__(self, seed: int, first: int) -> None:
        self.seed, self.first = seed, first

    def __call__(self, like: Tensor) -> Tensor:
        z = torch.empty(like.shape, dtype=torch.float32, device="cpu")
        SampleNoise(self.seed, self.first).fill(z)
        self.first += len(z)
        return z


def is_same_transform(one: Transform | None, other: Transform | None) -> bool:
    """Say whether two transforms are one map; of an ``nn.Autoencoder`` two copies are, which its description tells."""
    if not isinstance(one, Latent) or not isinstance(other, Latent) or one is other:
        return one == other
    # What JSON cannot rebuild may differ where its weights do not.
    return describe_autoencoder(one.autoencoder)["config"] is not None and one.to_dict() == other.to_dict()


def describe_autoencoder(autoencoder: Coder) -> dict[str, object]:
    """Return an autoencoder's class name, with its config where it is ``nn.Autoencoder``."""
    from scoresde.nn.autoencoder import Autoencoder

    inner = bare_network(autoencoder) if isinstance(autoencoder, nn.Module) else autoencoder
    known = type(inner) is Autoencoder
    return {"kind": type(inner).__name__, "config": inner.config if known else None}  # type: ignore[attr-defined]
