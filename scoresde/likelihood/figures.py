"""How results tell their figures: one line, and a table in notebooks."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

__all__ = ["Figures", "PerSample"]


class Figures(ABC):
    """A result that is told by a few figures."""

    @abstractmethod
    def _figures(self) -> dict[str, str]:
        """Return the figures by name."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {', '.join(f'{name} {text}' for name, text in self._figures().items())}>"

    def _repr_html_(self) -> str:
        cells = (f"<tr><th>{name}</th><td>{text}</td></tr>" for name, text in self._figures().items())
        return f"<table>{''.join(cells)}</table>"


@dataclass(frozen=True, eq=False, repr=False)
class PerSample(Figures):
    """A result that has one number for each sample, in nats, and is their mean.

    Args:
        per_sample: (B,), float64.
    """

    per_sample: Tensor

    @property
    def total(self) -> float:
        """The mean over the samples."""
        return float(self.per_sample.mean())

    @property
    def standard_error(self) -> float:
        """Of ``total`` as the mean over all data: from the spread over the samples; NaN for a single one."""
        count = len(self.per_sample)
        return float(self.per_sample.std()) / math.sqrt(count) if count > 1 else math.nan
