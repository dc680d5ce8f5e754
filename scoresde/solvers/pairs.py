"""Embedded Runge-Kutta pairs: a solution, and how much it differs from one of lower order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["EMBEDDED", "Embedded", "EmbeddedName"]


@dataclass(frozen=True)
class Embedded:
    """An embedded pair whose last stage is the first of the next step (first same as last).

    Args:
        stages: rows of the stage matrix after the first; the last one is the solution.
        error: weights of the stages in solution minus embedded solution.
        order: of the solution.
        second: the same of a second embedded solution, of lower order, where there is one: with the sizes e and e' of
            the two errors, a step's counts as e^2/sqrt(e^2 + 0.01 e'^2).
    """

    stages: tuple[tuple[float, ...], ...]
    error: tuple[float, ...]
    order: int
    second: tuple[float, ...] | None = None

    @property
    def nodes(self) -> tuple[float, ...]:
        """Where in the step each stage after the first lies."""
        return tuple(map(sum, self.stages))


EmbeddedName = Literal["bosh3", "dopri5", "dop853"]
EMBEDDED: dict[EmbeddedName, Embedded] = {
    # Bogacki and Shampine 1989, "A 3(2) pair of Runge-Kutta formulas".
    "bosh3": Embedded(
        ((1 / 2,), (0.0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)), (2 / 9 - 7 / 24, 1 / 3 - 1 / 4, 4 / 9 - 1 / 3, -1 / 8), 3
    ),
    # Dormand and Prince 1980, "A family of embedded Runge-Kutta formulae".
    "dopri5": Embedded(
        (
            (1 / 5,),
            (3 / 40, 9 / 40),
            (44 / 45, -56 / 15, 32 / 9),
            (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
            (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
            (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
        ),
        (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40),
        5,
    ),
    # Hairer, Norsett and Wanner 1993, "Solving ordinary differential equations I", II.10; of Dormand and Prince.
    "dop853": Embedded(
        (
            (0.05260015195876773,),
            (0.0197250569845379, 0.0591751709536137),
            (0.02958758547680685, 0.0, 0.08876275643042054),
            (0.2413651341592667, 0.0, -0.8845494793282861, 0.924834003261792),
            (0.037037037037037035, 0.0, 0.0, 0.17082860872947386, 0.12546768756682242),
            (0.037109375, 0.0, 0.0, 0.17025221101954405, 0.06021653898045596, -0.017578125),
            (
                0.03709200011850479,
                0.0,
                0.0,
                0.17038392571223998,
                0.10726203044637328,
                -0.015319437748624402,
                0.008273789163814023,
            ),
            (
                0.6241109587160757,
                0.0,
                0.0,
                -3.3608926294469414,
                -0.868219346841726,
                27.59209969944671,
                20.154067550477894,
                -43.48988418106996,
            ),
            (
                0.47766253643826434,
                0.0,
                0.0,
                -2.4881146199716677,
                -0.590290826836843,
                21.230051448181193,
                15.279233632882423,
                -33.28821096898486,
                -0.020331201708508627,
            ),
            (
                -0.9371424300859873,
                0.0,
                0.0,
                5.186372428844064,
                1.0914373489967295,
                -8.149787010746927,
                -18.52006565999696,
                22.739487099350505,
                2.4936055526796523,
                -3.0467644718982196,
            ),
            (
                2.273310147516538,
                0.0,
                0.0,
                -10.53449546673725,
                -2.0008720582248625,
                -17.9589318631188,
                27.94888452941996,
                -2.8589982771350235,
                -8.87285693353063,
                12.360567175794303,
                0.6433927460157636,
            ),
            (
                0.054293734116568765,
                0.0,
                0.0,
                0.0,
                0.0,
                4.450312892752409,
                1.8915178993145003,
                -5.801203960010585,
                0.3111643669578199,
                -0.1521609496625161,
                0.20136540080403034,
                0.04471061572777259,
            ),
        ),
        (
            0.01312004499419488,
            0.0,
            0.0,
            0.0,
            0.0,
            -1.2251564463762044,
            -0.4957589496572502,
            1.6643771824549864,
            -0.35032884874997366,
            0.3341791187130175,
            0.08192320648511571,
            -0.022355307863886294,
            0.0,
        ),
        8,
        second=(
            -0.18980075407240762,
            0.0,
            0.0,
            0.0,
            0.0,
            4.450312892752409,
            1.8915178993145003,
            -5.801203960010585,
            -0.4226823213237919,
            -0.1521609496625161,
            0.20136540080403034,
            0.02265179219836082,
            0.0,
        ),
    ),
}
