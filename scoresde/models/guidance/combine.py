r"""Products of models and classifier-free guidance: weighted sums of noise predictions.

Terms k, each a model asked under conditions of its own, with powers w_k:

    E(x_t) = sum_k w_k noise_k(x_t),    that is    score = sum_k w_k grad log p_k(x_t):

at every noise level the score of prod_k p_{k,t}^{w_k}. These products are *not* the laws that a diffusion of
prod_k p_k would pass through (Du et al. 2023, arXiv:2302.11552): what is drawn by following E is in general not the
product. ``sampling.particles.correct`` weighs and resamples, so that it is.

*Classifier-free guidance* (Ho and Salimans 2022, arXiv:2207.12598) has the terms p_t(x|y), of power w, and p_t(x), of
power 1 - w:

    noise = noise(x, null) + w (noise(x, y) - noise(x, null)),

so w = 1 is the conditional model, w = 0 the unconditional one. (Papers that write 1 + w mean this w less 1.) With a
weaker model in the place of the unconditional one it is autoguidance (Karras et al. 2024, arXiv:2406.02507); with
another condition in the place of none, a negative condition. On an interval of noise levels (Kynkaanniemi et al. 2024,
arXiv:2404.07724) the model is conditional elsewhere. *Rescaling* by phi (Lin et al. 2023, arXiv:2305.08891) brings the
spread of the data prediction D, over a sample's coordinates, back to that of the conditional one:

    D <- D (phi std(D_cond)/std(D) + 1 - phi).

Terms of one model are asked in one call, on a batch that is as many times as long.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from scoresde.diffusions.point import Point
from scoresde.diffusions.sde import GaussianSDE
from scoresde.diffusions.targets import target
from scoresde.errors.kinds import ConfigError, DTypeError, ShapeError, TrainingWarning, show
from scoresde.errors.values import check_mapping, check_number, check_sequence
from scoresde.models import checkpoint
from scoresde.models.checks import check_model
from scoresde.models.latent import is_same_transform
from scoresde.models.prediction import Condition, Predictor, Prepared, Readout
from scoresde.models.score_model import ScoreModel
from scoresde.ops import flat

__all__ = [
    "SCALE",
    "CombinedModel",
    "PreparedCombination",
    "Term",
    "check_combined",
    "guided",
    "product",
    "sum_weighted",
]

SCALE = "guidance_scale"  # the condition with a scale of each sample's own

Values = Mapping[str, float | Sequence[float]]
Power = float | Tensor


@dataclass(frozen=True)
class Term:
    """One factor of a product.

    Args:
        part: which of the models.
        told: "asked" for the conditions of the call, "null" for none, or values that stand for all samples in the place
            of those conditions.
    """

    part: int
    told: str | Values = "asked"

    def condition(self, model: Predictor, cond: Condition, batch: int, device: torch.device) -> dict[str, Tensor]:
        """Return what the model is told for a batch of which the call's conditions are ``cond``."""
        if self.told == "null":
            return dict(model.null_condition(cond or {}))
        told = dict(cond or {})
        if not isinstance(self.told, str):
            for name, value in self.told.items():
                one = torch.as_tensor(value, device=device)
                told[name] = one.expand(batch, *one.shape)
        return told


def guided(
    model: Predictor,
    scale: float | Tensor,
    *,
    interval: tuple[float, float] | None = None,
    rescale: float = 0.0,
    weak: Predictor | None = None,
    negative: Values | None = None,
) -> CombinedModel:
    """Return a model under classifier-free guidance, or autoguidance.

    ``sample(guided(model, 3.0), 64, cond={"label": labels})``; ``cond={"label": labels, "guidance_scale": scales}``
    gives every sample a scale of its own.

    Args:
        model: a model trained with conditions, some of them dropped.
        scale: w, a number, or a tensor that broadcasts against the event; 1 is the conditional model.
        interval: the noise levels sigma/alpha, lowest and highest, between which w holds; elsewhere it is 1.
        rescale: phi in [0, 1], a share of the spread that is taken back.
        weak: the model to lead away from, asked under the same conditions.
        negative: the conditions to lead away from, in the place of none, one value for all: ``{"label": 3}``.

    Warns:
        TrainingWarning: the model was trained without dropping conditions, so that it does not know its unconditional
            score.

    Raises:
        DTypeError: no model, an interval that is no pair. DomainError: a scale that is not finite, an interval or a
            rescaling out of range. ConfigError: a weak model and negative conditions. When asked: no conditions, or a
            network that does not say what none is.
    """
    inner = check_model(model)
    if weak is not None and negative is not None:
        raise ConfigError("weak= leads away from a model, negative= from conditions; pass one of them")
    dropout = inner.dropout if isinstance(inner, ScoreModel) else None
    if weak is None and negative is None and dropout == {}:
        warnings.warn(
            "the model was trained without dropping conditions, so its prediction without them was never learned, and "
            "guidance leads away from it: train with fit(..., label_dropout=0.1) or cond_dropout={...}, or pass weak=",
            TrainingWarning,
            stacklevel=2,
        )
    if not isinstance(scale, Tensor):
        scale = check_number(scale, "scale")
    if interval is not None:
        interval = check_sequence(interval, "interval", "two noise levels")
        if len(interval) != 2:
            raise ConfigError(f"interval must be (low, high), got {show(interval)}", parameter="interval")
        low = check_number(interval[0], "interval[0]", 0.0)
        interval = low, check_number(interval[1], "interval[1]", low)
    away = Term(1) if weak is not None else Term(0, "null" if negative is None else _own(negative, "negative"))
    return CombinedModel(
        [inner] if weak is None else [inner, check_model(weak)],
        (Term(0), away),
        powers=None,
        scale=scale,
        interval=interval,
        rescale=check_number(rescale, "rescale", 0.0, 1.0),
    )


def _check_power(power: object) -> float:
    return check_number(power, "powers")


def _own(values: object, name: str) -> dict[str, Any]:
    """Return a copy of conditions."""
    return dict(check_mapping(values, name, "values"))


def product(
    models: Sequence[Predictor], powers: Sequence[float] | None = None, conds: Sequence[Values | None] | None = None
) -> CombinedModel:
    """Return the model whose score is the weighted sum of others': prod_k p_{k,t}^{w_k} at every noise level.

    A negative power leads away ("not"). One model may stand several times, under several conditions: "3 and not 7" is
    ``product([m, m, m], [1, 1, -1], [{"label": -1}, {"label": 3}, {"label": 7}])``. Powers that do not add up to 1
    start from another prior: N(alpha m, (alpha^2 C + sigma^2)/sum w) where all have one; pass ``prior=`` to ``sample``.

    Args:
        models: K models on one SDE, with one transform.
        powers: w, K numbers; 1 for each by default.
        conds: for each the values that it is told, for all samples, or None for the conditions of the call.

    Raises:
        DTypeError, ConfigError: no models, models under several SDEs or transforms, other numbers of powers or
            conditions. DomainError: a power that is not finite.
    """
    known = [check_model(model) for model in check_sequence(models, "models", "models")]
    if not known:
        raise ConfigError("a product needs at least one model, got none")
    given = (
        [1.0] * len(known) if powers is None else list(map(_check_power, check_sequence(powers, "powers", "numbers")))
    )
    told = [None] * len(known) if conds is None else list(check_sequence(conds, "conds", "dicts"))
    if len(given) != len(known) or len(told) != len(known):
        raise ConfigError(f"{len(known)} models need as many powers and conds, got {len(given)} and {len(told)}")
    parts = list({id(model): model for model in known}.values())
    places = {id(model): place for place, model in enumerate(parts)}
    terms = tuple(
        Term(places[id(model)], "asked" if one is None else _own(one, "conds"))
        for model, one in zip(known, told, strict=True)
    )
    return CombinedModel(parts, terms, powers=tuple(given))


class CombinedModel(Predictor):
    """A product of models, made by ``guided`` or ``product``.

    Args:
        parts: the models; the first gives the SDE, the moments and the transform.
        terms: what is asked of them.
        powers: one for each term; None where ``scale`` gives those of two.
        scale: w, for the powers w and 1 - w.
        interval: noise levels sigma/alpha between which w holds.
        rescale: phi.
    """

    def __init__(
        self,
        parts: Sequence[Predictor],
        terms: Sequence[Term],
        *,
        powers: Sequence[float] | None = None,
        scale: Power = 1.0,
        interval: tuple[float, float] | None = None,
        rescale: float = 0.0,
    ) -> None:
        first = parts[0]
        for part in parts[1:]:
            if repr(part.sde) != repr(first.sde):
                raise ConfigError(f"the models are under {first.sde!r} and {part.sde!r}; use with_sde on one of them")
            if not is_same_transform(part.transform, first.transform):
                raise ConfigError("the models have different transforms, so their states mean different data")
        whole = powers is None or abs(sum(powers) - 1) < 1e-9
        moments = first.moments if whole else None
        super().__init__(first.sde, moments=moments, transform=first.transform, variance=first.variance)
        self.parts, self.terms = nn.ModuleList(parts), tuple(terms)
        self.powers = None if powers is None else tuple(powers)
        self.scale, self.interval, self.rescale = scale, interval, rescale
        self.groups, self.training = first.groups, first.training

    @property
    def first(self) -> Predictor:
        """The first of the models."""
        part = self.parts[0]
        assert isinstance(part, Predictor)
        return part

    def prepare(self, point: Point, x: Tensor, cond: Condition = None) -> PreparedCombination:
        """Prepare each model for all its terms at once; see ``Predictor.prepare``."""
        return PreparedCombination(self, point, x, dict(cond or {}))

    def with_sde(self, sde: GaussianSDE) -> CombinedModel:
        """Return the same product under another SDE."""
        other = self._share()
        other.parts = nn.ModuleList([part.with_sde(sde) for part in self.parts if isinstance(part, Predictor)])
        other.sde = other.first.sde
        return other

    def null_condition(self, cond: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what the first model calls no condition."""
        return self.first.null_condition({name: value for name, value in cond.items() if name != SCALE})

    def save(self, folder: str | PathLike[str]) -> None:
        """Write the model as its parts, in one folder, atomically; ``CombinedModel.load`` reads it.

        Raises:
            CheckpointError: the folder holds other files or cannot be written. ConfigError: a part that JSON cannot
                hold, a network, SDE or autoencoder of your own among them, or a scale that is a tensor.
        """
        from scoresde.models.saving_parts import take_apart_whole

        checkpoint.write(folder, *take_apart_whole(self))

    @staticmethod
    def load(folder: str | PathLike[str]) -> CombinedModel:
        """Read what ``save`` wrote; CheckpointError where it is damaged, or another kind of model."""
        from scoresde.models.saving_parts import load_whole

        return load_whole(folder, CombinedModel)

    def __repr__(self) -> str:
        how = f"powers={self.powers}" if self.powers is not None else f"scale={_show(self.scale)}"
        how += "" if self.interval is None else f", interval={self.interval}"
        how += f", rescale={self.rescale:g}" if self.rescale else ""
        return f"CombinedModel({', '.join([*(repr(part) for part in self.parts), how])})"


class PreparedCombination(Prepared):
    """A product at n points.

    Where all terms are one network's and the powers add up to 1, its raw outputs are summed: every view is affine in
    them. Else their noise predictions are.
    """

    def __init__(self, combined: CombinedModel, point: Point, x: Tensor, cond: dict[str, Tensor]) -> None:
        self.combined, batch = combined, len(x)
        self.powers = _Powers(combined, point, x, cond.pop(SCALE, None))
        if not cond and any(term.told == "null" for term in combined.terms):
            raise ConfigError('guidance needs conditions to lead to: pass cond={"label": labels}')
        if combined.rescale and x.shape[1:].numel() < 2:
            raise ShapeError(
                f"rescale= compares spreads over a sample's coordinates, and the event {tuple(x.shape[1:])} has one; "
                "leave it out"
            )
        # Everything in one call where guidance is on somewhere; the first term alone where it is off.
        self.calls = []
        for place, part in enumerate(combined.parts):
            assert isinstance(part, Predictor)
            held = [k for k, term in enumerate(combined.terms) if term.part == place]
            told = [combined.terms[k].condition(part, cond, batch, x.device) for k in held]
            self.calls.append((held, _prepare_many(part, point, x, told)))
        own = combined.terms[0].condition(combined.first, cond, batch, x.device)
        self.alone = combined.first.prepare(point, x, own or None) if self.powers.switched_off else None
        readouts = [_first_rows(prepared.readout, point) for _, prepared in self.calls]
        self.summed = len(self.calls) == 1 and self.powers.whole
        whole = readouts[0] if self.summed else replace(readouts[0], pair=target("noise", point))
        learned = self.calls[0][1].learned
        super().__init__(replace(whole, pair=target("data", point)) if combined.rescale else whole, x, learned=learned)
        self.views = [tuple(map(self._spread, readout.weights("noise"))) for readout in readouts]
        self.to_data = tuple(map(self._spread, whole.weights("data"))) if combined.rescale else ()

    def _spread(self, values: Tensor) -> Sequence[float | Tensor]:
        """Return one number for each point, or a column where every sample has points of its own."""
        shape = self.readout.point.t.shape
        return self._column(values) if len(shape) == 2 else values.expand(shape).tolist()

    def terms(self, i: int, x: Tensor) -> tuple[list[Tensor], Tensor | None]:
        """Return each term's raw output, where these are summed, else its noise prediction; and the first term's v."""
        found: list[Tensor] = [x] * len(self.combined.terms)
        fraction = None
        for place, (held, prepared) in enumerate(self.calls):
            out, learned = prepared.outputs(i, x.repeat(len(held), *(1,) * (x.ndim - 1)))
            if 0 in held and learned is not None:
                fraction = learned.chunk(len(held))[held.index(0)]
            a, b = (numbers[i] for numbers in self.views[place])
            for k, part in zip(held, out.chunk(len(held)), strict=True):
                found[k] = part.to(x) if self.summed else a * x + b * part.to(x)
        return found, fraction

    def noises(self, i: int, x: Tensor) -> list[Tensor]:
        """Return the noise prediction of every term at point i, (B, *)."""
        found, _ = self.terms(i, x)
        if not self.summed:
            return found
        a, b = (numbers[i] for numbers in self.views[0])
        return [a * x + b * raw for raw in found]

    def outputs(self, i: int, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the weighted sum at point i, and the first term's v where the variance is learned."""
        if self.alone is not None and self.powers.is_off(i):
            out, fraction = self.alone.outputs(i, x)
            if self.summed:
                return (out if not self.combined.rescale else self._to_data(i, x, out.to(x))), fraction
            a, b = (numbers[i] for numbers in self.views[0])
            noise = a * x + b * out.to(x)
            return (noise if not self.combined.rescale else self._to_data(i, x, noise)), fraction
        found, fraction = self.terms(i, x)
        total = sum_weighted(self.powers.at(i), found)
        phi = self.combined.rescale
        if not phi:
            return total, fraction
        mine, first = self._to_data(i, x, total), self._to_data(i, x, found[0])
        spread, wanted = (flat(data).std(1).reshape(-1, *(1,) * (x.ndim - 1)) for data in (mine, first))
        return mine * (phi * wanted / spread + 1 - phi), fraction

    def _to_data(self, i: int, x: Tensor, output: Tensor) -> Tensor:
        a, b = (numbers[i] for numbers in self.to_data)
        return a * x + b * output


class _Powers:
    """The powers of the terms at each point: numbers, or tensors that broadcast against the state."""

    def __init__(self, combined: CombinedModel, point: Point, x: Tensor, own: Tensor | None) -> None:
        self.fixed = combined.powers
        self.whole = self.fixed is None or abs(sum(self.fixed) - 1) < 1e-9
        scale = combined.scale
        if own is not None:
            if self.fixed is not None:
                raise ConfigError(f"cond has {SCALE!r}, and a product has powers; leave it out")
            if own.shape != (len(x),):
                raise ShapeError(
                    f"{SCALE} must have shape ({len(x)},), a scale for each sample, got {tuple(own.shape)}"
                )
            scale = own.reshape(-1, *(1,) * (x.ndim - 1))
        self.scale = scale.to(x) if isinstance(scale, Tensor) else float(scale)
        if isinstance(self.scale, Tensor) and own is None:
            try:
                self.scale.expand(x.shape[1:])
            except RuntimeError as error:
                raise ShapeError(
                    f"scale of shape {tuple(self.scale.shape)} does not broadcast against the event "
                    f"{tuple(x.shape[1:])}; for a scale of each sample's own pass cond={{{SCALE!r}: scales}}"
                ) from error
        on = torch.ones_like(point.alpha, dtype=torch.bool)
        if combined.interval is not None:
            level = torch.exp(-0.5 * point.log_snr)
            on = (level >= combined.interval[0]) & (level <= combined.interval[1])
        self.on: list[bool] | list[Tensor] = (
            on.tolist() if on.ndim == 1 else list(on.to(x).reshape(*on.shape, *(1,) * (x.ndim - 1)).unbind(0))
        )

    @property
    def switched_off(self) -> bool:
        """Whether there are points at which the first term stands alone for all samples."""
        return self.fixed is None and any(on is False for on in self.on)

    def is_off(self, i: int) -> bool:
        """Whether the first term stands alone at point i, for all samples."""
        return self.fixed is None and self.on[i] is False

    def at(self, i: int) -> Sequence[Power]:
        """Return the powers at point i."""
        if self.fixed is not None:
            return self.fixed
        on = self.on[i]
        more = (self.scale - 1) * (float(on) if isinstance(on, bool) else on)
        return 1 + more, -more


def _prepare_many(model: Predictor, point: Point, x: Tensor, told: Sequence[Mapping[str, Tensor]]) -> Prepared:
    """Prepare a model for a batch that holds x once under each of several conditions."""
    count = len(told)
    names = {name for one in told for name in one}
    for name in names:
        if any(name not in one for one in told):
            raise ConfigError(f"condition {name!r} is given to some terms of a product and not to others; give all one")
    cond = {name: torch.cat([one[name] for one in told]) for name in names}
    like = x[:1].expand(count * len(x), *x.shape[1:])
    if point.t.ndim == 2:
        t, alpha, sigma, log_snr = (c.repeat(1, count) for c in point.numbers)
        point = Point(t, alpha, sigma, log_snr, point.owner)
    return model.prepare(point, like, cond or None)


def _first_rows(readout: Readout, point: Point) -> Readout:
    """Return how the outputs of the first of several terms are read, at the points of a batch that holds x once."""
    whole, shape = readout.point.t.shape, point.t.shape

    def cut(values: Tensor) -> Tensor:
        return values.expand(whole)[..., : shape[-1]] if whole != shape else values

    p, q = map(cut, readout.pair)
    return Readout(point, (p, q), cut(readout.c_in), cut(readout.c_noise))


def sum_weighted(powers: Sequence[Power], parts: Sequence[Tensor]) -> Tensor:
    """Return the weighted sum of tensors (B, *)."""
    total = powers[0] * parts[0]
    for power, part in zip(powers[1:], parts[1:], strict=True):
        total = total + power * part
    return total


def _show(scale: Power) -> str:
    if isinstance(scale, Tensor):
        return f"a tensor of shape {tuple(scale.shape)}"
    return f"{scale:g}"


def check_combined(model: object) -> CombinedModel:
    """Return a product of models; DTypeError for anything else."""
    if not isinstance(model, CombinedModel):
        raise DTypeError(f"this needs guided(...) or product(...), got {type(model).__name__}")
    return model
