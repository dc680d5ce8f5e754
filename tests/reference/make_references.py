"""Write the reference values of the tests: every formula as it is defined, evaluated with 60 digits.

    python tests/reference/make_references.py

Nothing here is rearranged against cancellation: 60 digits leave more than 40 where the worst loses 15. Derivatives are
numerical. Each number is stored as the nearest float64. Inputs are floats, and the references are of those floats.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from math import ceil, floor
from pathlib import Path

from mpmath import acos, cos, diff, exp, log, mp, mpf, pi, sqrt

mp.dps = 60
FOLDER = Path(__file__).resolve().parent
Curve = Callable[[mpf], mpf]

CASES = [
    ("VPSDE", {"beta_min": 0.1, "beta_max": 20.0}),
    ("VPSDE", {"beta_min": 0.0, "beta_max": 12.5}),
    ("VPSDE", {"beta_min": 3.0, "beta_max": 3.0}),
    ("SubVPSDE", {"beta_min": 0.1, "beta_max": 20.0}),
    ("VESDE", {"sigma_min": 0.01, "sigma_max": 50.0}),
    ("VESDE", {"sigma_min": 0.3, "sigma_max": 1348.0}),
]
# Curves only: their times, or their end, are not those of PAIRS.
MORE = [
    ("CosineVPSDE", {"offset": 0.008}),
    ("CosineVPSDE", {"offset": 0.0001}),
    ("EDMSDE", {}),
    ("RectifiedFlow", {}),
]
PAIRS = [(0.0, 1e-5), (0.0, 0.5), (1e-5, 1e-4), (1e-5, 1.0), (0.001, 0.002), (0.1, 0.7), (0.3, 0.3001), (0.9, 1.0)]
CHAINS = [
    *(("linear", n) for n in (1000, 25)),
    *(("cosine", n) for n in (1000, 50, 4)),
    *(("sigmoid", n) for n in (1000, 50)),
]


def curves(kind: str, options: dict[str, float]) -> tuple[Curve, Curve, Curve]:
    """Return alpha(t), sigma(t) and t(log_snr)."""
    if kind == "RectifiedFlow":
        return lambda t: 1 - t, lambda t: t, lambda log_snr: 1 / (1 + exp(log_snr / 2))
    if kind == "EDMSDE":
        return lambda t: mpf(1), lambda t: t, lambda log_snr: exp(-log_snr / 2)
    if kind == "CosineVPSDE":
        offset = mpf(options["offset"])

        def angle(t: mpf) -> mpf:
            return (t + offset) / (1 + offset) * pi / 2

        def cosine(t: mpf) -> mpf:
            return cos(angle(t)) / cos(angle(mpf(0)))

        def back(log_snr: mpf) -> mpf:
            value = acos(cos(angle(mpf(0))) / sqrt(1 + exp(-log_snr)))
            return value * 2 / pi * (1 + offset) - offset

        return cosine, lambda t: sqrt(1 - cosine(t) ** 2), back
    if kind == "VESDE":
        low, high = mpf(options["sigma_min"]), mpf(options["sigma_max"])

        def inverse(log_snr: mpf) -> mpf:
            return log(exp(-log_snr / 2) / low) / log(high / low)

        return lambda t: mpf(1), lambda t: low * (high / low) ** t, inverse
    start, slope = mpf(options["beta_min"]), mpf(options["beta_max"]) - mpf(options["beta_min"])

    def integral(t: mpf) -> mpf:
        return start * t + slope * t**2 / 2

    def time(b: mpf) -> mpf:
        return b / start if slope == 0 else (-start + sqrt(start**2 + 2 * slope * b)) / slope

    def alpha(t: mpf) -> mpf:
        return exp(-integral(t) / 2)

    if kind == "VPSDE":
        return alpha, lambda t: sqrt(1 - exp(-integral(t))), lambda log_snr: time(log(1 + exp(-log_snr)))

    def inverse(log_snr: mpf) -> mpf:
        # (1 - y^2)/y = nu with y = alpha.
        nu = exp(-log_snr / 2)
        return time(-2 * log((sqrt(nu**2 + 4) - nu) / 2))

    return alpha, lambda t: 1 - exp(-integral(t)), inverse


def single(number: float) -> float:
    return struct.unpack("f", struct.pack("f", number))[0]


def times() -> list[float]:
    """Four a decade from 1e-7 to 1, the same rounded to float32, and powers of two that bf16 and half hold."""
    decimal = [10 ** (k / 4) for k in range(-28, 0)]
    return sorted({*decimal, *map(single, decimal), *(2.0**-k for k in range(24)), 1e-5, 1e-3, 1e-2, 0.5, 0.75})


def schedules() -> list[dict[str, object]]:
    made = []
    for kind, options in CASES + MORE:
        alpha, sigma, inverse = curves(kind, options)
        rows: dict[str, list[float]] = {}
        # alpha is 0 at t = 1 of these two.
        last = kind in ("CosineVPSDE", "RectifiedFlow")
        for t in (mpf(t) for t in times() if not (last and t == 1)):
            a, s, da, ds = alpha(t), sigma(t), diff(alpha, t), diff(sigma, t)
            row = {
                "t": t,
                "alpha": a,
                "sigma": s,
                "log_snr": log(a**2 / s**2),
                "alpha_rate": da,
                "sigma_rate": ds,
                "drift_rate": da / a,
                "diffusion": sqrt(2 * s * (ds - s * da / a)),
            }
            for name, value in row.items():
                rows.setdefault(name, []).append(float(value))
        low, high = rows["log_snr"][-1], rows["log_snr"][0]
        log_snr = [k / 2 for k in range(ceil(2 * low), floor(2 * high) + 1)]
        inverses = {"log_snr": log_snr, "time": [float(inverse(mpf(value))) for value in log_snr]}
        made.append({"kind": kind, "options": options, "curves": rows, "inverse": inverses})
    return made


def bayes() -> list[dict[str, object]]:
    """Transitions a, b and posteriors of x_s from the product of the two normal densities."""
    made = []
    for kind, options in CASES:
        alpha, sigma, _ = curves(kind, options)
        for pair in PAIRS:
            s, t = map(mpf, pair)
            a = alpha(t) / alpha(s)
            variance = sigma(t) ** 2 - a**2 * sigma(s) ** 2
            row = {"kind": kind, "options": options, "s": pair[0], "t": pair[1]}
            row |= {"a": float(a), "b": float(sqrt(variance))}
            if sigma(s) == 0:
                weights = (mpf(0), alpha(s), mpf(0))
            else:
                precision = a**2 / variance + 1 / sigma(s) ** 2
                weights = (a / variance / precision, alpha(s) / sigma(s) ** 2 / precision, 1 / sqrt(precision))
            row |= dict(zip(("on_xt", "on_x0", "std"), map(float, weights), strict=True))
            made.append(row)
    return made


def betas(kind: str, n: int) -> list[mpf]:
    if kind == "linear":
        low, high = mpf("0.1") / n, mpf(20) / n
        return [low + (high - low) * i / (n - 1) for i in range(n)]
    if kind == "sigmoid":
        start, end, tau, clip = mpf(-3), mpf(3), mpf(1), mpf("1e-9")
        logistic = [1 / (1 + exp(-(start + (end - start) * i / n) / tau)) for i in range(n + 1)]
        bars = [max((logistic[-1] - s) / (logistic[-1] - logistic[0]), clip) for s in logistic]
        return [1 - bars[i + 1] / bars[i] for i in range(n)]
    offset, clip = mpf("0.008"), mpf("0.999")
    bars = [cos((mpf(i) / n + offset) / (1 + offset) * pi / 2) ** 2 for i in range(n + 1)]
    return [min(1 - bars[i + 1] / bars[i], clip) for i in range(n)]


def chains() -> list[dict[str, object]]:
    """Ho et al. 2020: alpha_bar, and the mean's weights and variance of q(x_{i-1} | x_i, x_0), their eq. 6 and 7."""
    made = []
    for kind, n in CHAINS:
        rows: dict[str, list[float]] = {}
        before = mpf(1)
        for i, beta in enumerate(betas(kind, n)):
            bar = before * (1 - beta)
            row = {
                "beta": beta,
                "alpha_bar": bar,
                "one_minus_alpha_bar": 1 - bar,
                "log_snr": log(bar / (1 - bar)),
                "posterior_variance": (1 - before) / (1 - bar) * beta,
                "on_x": sqrt(1 - beta) * (1 - before) / (1 - bar),
                "on_x0": sqrt(before) * beta / (1 - bar),
            }
            if n <= 50 or i in (0, 1, 10, 20, 500, n - 2, n - 1):
                rows.setdefault("index", []).append(i)
                for name, value in row.items():
                    rows.setdefault(name, []).append(float(value))
            before = bar
        made.append({"kind": kind, "n": n, **rows})
    return made


def preconditioning() -> list[dict[str, float]]:
    """Karras et al. 2022, table 1, at alpha = 1."""
    made = []
    for number in (0.5, 1.7):
        for sigma in (0.002, 0.1, 0.5, 3.0, 80.0):
            s, d = mpf(sigma), mpf(number)
            total = s**2 + d**2
            values = {"c_skip": d**2 / total, "c_out": s * d / sqrt(total), "c_in": 1 / sqrt(total)}
            made.append({"sigma": sigma, "sigma_data": number, **{k: float(v) for k, v in values.items()}})
    return made


TABLES = {"schedules": schedules, "bayes": bayes, "chains": chains, "preconditioning": preconditioning}


def main() -> None:
    """Write every table beside this script."""
    for name, make in TABLES.items():
        (FOLDER / f"{name}.json").write_text(json.dumps(make()) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
