"""How results tell their figures: one line, and a table in notebooks."""

from __future__ import annotations

from abc import ABC, abstractmethod

__all__ = ["Figures"]


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
