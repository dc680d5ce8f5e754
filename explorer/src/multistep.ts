/**
 * Linear multistep methods with exact integrating factors: the Python library's ``solvers/multistep.py``, whose
 * docstring has the formulas. An interval is an exact linear part and an integral of the prediction, which is replaced
 * by the polynomial through its last values; a corrector reads the prediction at the new point too.
 */

import { type Diffusion, type Knot, knot, lambda, sigmoid } from "./diffusions";
import { integrate, onInterval } from "./quadrature";
import type { Kind, Row } from "./table";

export type Variable = "log_snr" | "nu" | "rectified" | "t";
export type Rounding = "exact" | "midpoint" | "bh2" | "constant";

export interface Multistep {
  prediction: Kind;
  variable: Variable;
  order: number;
  corrector: number;
  eta: number;
  rounding: Rounding;
  firstAlone: boolean;
}

const LARGEST = 10;
const EVEN_STEPS = [[], [1], [3 / 2, -1 / 2], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24]];

export function inVariable(variable: Variable, sde: Diffusion, lam: number): number {
  switch (variable) {
    case "log_snr":
      return lam;
    case "nu":
      return Math.exp(-lam);
    case "rectified":
      return sigmoid(-lam);
    case "t":
      return sde.time(2 * lam);
  }
}

/** Weights of x_t and of the draw. */
export function linear(kind: Kind, late: Knot, early: Knot, h: number, eta: number): [number, number] {
  if (kind === "flow") return [(early.alpha + early.sigma) / (late.alpha + late.sigma), 0];
  if (kind === "noise")
    return [
      early.alpha / late.alpha,
      eta === 0 || early.sigma === 0 ? 0 : eta * early.sigma * Math.sqrt(Math.expm1(2 * h)),
    ];
  if (early.sigma === 0) return [0, 0];
  const exponent = eta === 0 ? 0 : -eta * eta * h;
  return [(early.sigma / late.sigma) * Math.exp(exponent), early.sigma * Math.sqrt(-Math.expm1(2 * exponent))];
}

/** What multiplies the prediction under the integral: nodes in lambda and weights there. */
function measure(kind: Kind, early: Knot, start: number, end: number, eta: number): { lam: number[]; on: number[] } {
  if (kind === "flow") {
    const { nodes, weights } = onInterval(sigmoid(-start), sigmoid(-end));
    return {
      lam: nodes.map((u) => Math.log1p(-u) - Math.log(u)),
      on: weights.map((w) => (early.alpha + early.sigma) * w),
    };
  }
  const { nodes, weights } = onInterval(start, end);
  const factor = 1 + eta * eta;
  const on = weights.map((w, i) =>
    kind === "data"
      ? early.alpha * factor * Math.exp(-factor * (end - nodes[i]!)) * w
      : -factor * early.sigma * Math.exp(end - nodes[i]!) * w,
  );
  return { lam: nodes, on };
}

/** The weight of a frozen prediction in a step into sigma = 0 or out of alpha = 0. */
function closing(kind: Kind, late: Knot, early: Knot): number {
  return kind === "data"
    ? early.alpha - (late.alpha * early.sigma) / late.sigma
    : early.sigma - (early.alpha * late.sigma) / late.alpha;
}

/** How many predictions each interval's predictor and corrector use; 0 where there is none of it. */
function count(method: Multistep, late: Knot[], early: Knot[], clock: [number, number][]): [number[], number[]] {
  const infinite = method.prediction !== "flow";
  const last = late.length - 1;
  const fromNoise = late[0]!.alpha === 0;
  const skip = method.firstAlone || (fromNoise && infinite) || !Number.isFinite(clock[0]![0]) ? 1 : 0;
  const [intoData, intoNoise] = [early[last]!.sigma === 0, early[last]!.alpha === 0];
  const [predict, correct]: [number[], number[]] = [[], []];
  late.forEach((_, i) => {
    const atEnd = infinite && ((i === 0 && fromNoise) || (i === last && (intoData || intoNoise)));
    predict.push(atEnd ? 0 : Math.max(1, Math.min(method.order, i + 1 - skip)));
    correct.push(i < skip || i === last ? 0 : Math.min(method.corrector, i + 2 - skip));
  });
  if (intoData && predict[last]! > 1) {
    const length = Math.abs(clock[last]![1] - clock[last]![0]);
    const before = Math.abs(clock[last]![0] - clock[last - 1]![0]);
    const reach = [4, 3, 2].find((k) => (length / before) ** (k - 1) <= LARGEST) ?? 1;
    predict[last] = Math.min(predict[last]!, reach);
  }
  return [predict, correct];
}

function weigh(method: Multistep, nodes: number[], values: number[], on: number[], ends: [number, number]): number[] {
  const whole = on.reduce((a, b) => a + b, 0);
  if (method.rounding === "constant") return EVEN_STEPS[nodes.length]!.map((share) => whole * share);
  const rounded = method.rounding === "midpoint" || method.rounding === "bh2";
  if (!rounded || nodes.length !== 2) return integrate(nodes, values, on);
  const reach = 0.5 * whole * (ends[1] - ends[0]);
  return nodes.map((node, k) => (whole * (ends[0] - nodes[1 - k]!) + reach) / (node - nodes[1 - k]!));
}

/** The rows of the steps on decreasing times. */
export function multistepRows(method: Multistep, sde: Diffusion, times: number[]): Row[] {
  const points = times.map((t) => knot(sde, t));
  const [late, early] = [points.slice(0, -1), points.slice(1)];
  if (late.length === 0) return [];
  if (method.prediction === "noise" && late.some((p) => p.alpha === 0))
    throw new Error("from alpha = 0 the noise prediction says nothing of the data; take another solver");
  const lam = points.map((p) => (p.sigma === 0 ? Infinity : lambda(sde, p.t)));
  const clock = late.map((_, i): [number, number] => [
    at(method.variable, sde, lam[i]!, late[i]!.t),
    at(method.variable, sde, lam[i + 1]!, early[i]!.t),
  ]);
  const [predict, correct] = count(method, late, early, clock);
  const predicted: number[][] = [];
  const corrected: number[][] = [];
  const first: [number, number][] = [];
  late.forEach((from, i) => {
    const to = early[i]!;
    const [start, end] = [lam[i]!, lam[i + 1]!];
    first.push(linear(method.prediction, from, to, end - start, method.eta));
    if (predict[i] === 0) {
      predicted.push([closing(method.prediction, from, to)]);
      corrected.push([]);
      return;
    }
    const { lam: nodes, on } = measure(method.prediction, to, start, end, method.eta);
    const values = nodes.map((l) => inVariable(method.variable, sde, l));
    const history = Array.from({ length: i + 1 }, (_, k) => clock[i - k]![0]);
    const ends: [number, number] = [start, end];
    predicted.push(weigh(method, history.slice(0, predict[i]), values, on, ends));
    const seen = [clock[i]![1], ...history].slice(0, correct[i]);
    corrected.push(seen.length > 0 ? weigh(method, seen, values, on, ends) : []);
  });
  return writeRows(late, first, predicted, corrected);
}

function at(variable: Variable, sde: Diffusion, lam: number, t: number): number {
  return variable === "t" ? t : inVariable(variable, sde, lam);
}

function writeRows(knots: Knot[], first: [number, number][], predicted: number[][], corrected: number[][]): Row[] {
  const rows: Row[] = [];
  let [base, baseNoise]: [number[], number] = [[1], 0];
  knots.forEach((here, i) => {
    const [onX, drawn] = first[i]!;
    const ahead = [0, ...predicted[i]!];
    const state = Array.from(
      { length: Math.max(base.length, ahead.length) },
      (_, k) => onX * (base[k] ?? 0) + (ahead[k] ?? 0),
    );
    const again = onX * baseNoise;
    const fix = corrected[i]!.length > 0;
    rows.push({
      at: here,
      state,
      anchor: fix ? (base.length > 1 ? base : [1, 0]) : null,
      noise: again !== 0 ? [drawn, again] : drawn !== 0 ? [drawn] : [],
      anchor_noise: fix && baseNoise !== 0 ? [0, baseNoise] : [],
    });
    [base, baseNoise] = fix ? [[onX, ...corrected[i]!], drawn] : [[1], 0];
  });
  return rows;
}
