"""Every kind of case, by name: a few lines of Python each."""

from __future__ import annotations

from collections.abc import Mapping

from fuzzing.equations import EQUATIONS
from fuzzing.library import LIBRARY
from fuzzing.newer import NEWER
from fuzzing.readers import READERS
from fuzzing.values import Case, Cases

__all__ = ["CASES", "Case", "Cases"]

CASES: Mapping[str, Cases] = {**LIBRARY, **READERS, **NEWER, **EQUATIONS}
