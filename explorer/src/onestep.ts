/**
 * One-step methods: ancestral sampling, DDIM, reverse diffusion, and Runge-Kutta methods on the reverse family in a
 * variable; the Python library's ``solvers/ancestral.py``, ``runge_kutta.py`` and ``one_step.py`` have the formulas.
 */

import { type Diffusion, type Knot, knot, lambda } from "./diffusions";
import { linear } from "./multistep";
import type { Kind, Row } from "./table";

type Weights = (late: Knot, early: Knot, gap: number) => [number, number, number];

/** A method x <- a x + b D + c z on each interval; ``gap`` is the fall of log_snr, at most 0. */
function onData(sde: Diffusion, times: number[], weights: Weights): Row[] {
  return times.slice(0, -1).map((t, i) => {
    const s = times[i + 1]!;
    const [late, early] = [knot(sde, t), knot(sde, s)];
    const [a, b, c] = weights(late, early, sde.logSnr(t) - (early.sigma === 0 ? Infinity : sde.logSnr(s)));
    return { at: late, state: [a, b], anchor: null, noise: c !== 0 ? [c] : [], anchor_noise: [] };
  });
}

/** Bayes' posterior with the data prediction in the place of x_0; eta = 1 is DDPM's step with the small variance. */
export function ancestralRows(eta: number, sde: Diffusion, times: number[]): Row[] {
  return onData(sde, times, (late, early, gap) => {
    const h = -0.5 * gap;
    const grown = eta === 0 ? 0 : eta * eta * h;
    return [
      (early.sigma / late.sigma) * Math.exp(-grown),
      early.alpha * -Math.expm1(-h - grown),
      early.sigma === 0 || eta === 0 ? 0 : early.sigma * Math.sqrt(-Math.expm1(-2 * grown)),
    ];
  });
}

/** DDIM with its own eta, which scales the posterior's standard deviation. */
export function ddimRows(eta: number, sde: Diffusion, times: number[]): Row[] {
  return onData(sde, times, (late, early, gap) => {
    const drawn = eta === 0 ? 0 : -Math.expm1(gap);
    const share = 0.5 * gap + 0.5 * Math.log1p(-eta * eta * drawn);
    const kept = eta === 0 ? 1 : 1 - eta * eta + eta * eta * Math.exp(gap);
    return [
      (early.sigma / late.sigma) * Math.sqrt(kept),
      early.alpha * -Math.expm1(share),
      eta * early.sigma * Math.sqrt(drawn),
    ];
  });
}

/** One call in a step: what it multiplies is a x + b P; then the state that follows it. */
interface Stage {
  at: Knot;
  value: [number, number];
  onX: number;
  onValues: number[];
  onDraw: number;
}

/** Write a step's stages as rows, whose states are linear in its first state x and in P_1, P_2, ... */
export function writeStages(stages: Stage[]): Row[] {
  const size = stages.length + 1;
  let state = unit(0, size);
  const values: number[][] = [];
  return stages.map((stage, j) => {
    const own = unit(j + 1, size);
    values.push(own.map((e, k) => stage.value[0] * state[k]! + stage.value[1] * e));
    state = unit(0, size).map(
      (e, k) => stage.onX * e + stage.onValues.reduce((sum, w, i) => sum + w * values[i]![k]!, 0),
    );
    return {
      at: stage.at,
      state: [state[0]!, ...state.slice(1, j + 2).reverse()],
      anchor: j + 1 === stages.length ? null : [1],
      noise: stage.onDraw !== 0 ? [stage.onDraw] : [],
      anchor_noise: [],
    };
  });
}

function unit(k: number, size: number): number[] {
  return Array.from({ length: size }, (_, i) => (i === k ? 1 : 0));
}

/** (a, b) with D = a x + b P, and the same for the noise and the flow. */
export function express(wanted: Kind, prediction: Kind, p: Knot): [number, number] {
  if (wanted === prediction) return [0, 1];
  const pair: Record<Kind, [number, number]> = { data: [1, 0], noise: [0, 1], flow: [-1, 1] };
  const [[a, b], [c, d]] = [pair[prediction], pair[wanted]];
  const delta = p.alpha * b - p.sigma * a;
  if (delta === 0)
    throw new Error(`at alpha = ${p.alpha} the ${prediction} says nothing of the ${wanted}; take another solver`);
  return [(c * b - d * a) / delta, (p.alpha * d - p.sigma * c) / delta];
}

/** The step where lambda is infinite: of first order, with the data prediction frozen. */
function limiting(prediction: Kind, eta: number, sde: Diffusion, late: Knot, early: Knot): Stage {
  const h = lambdaOf(sde, early) - lambdaOf(sde, late);
  const [onX, onDraw] = linear("data", late, early, h, eta);
  const frozen = early.alpha - (late.alpha * early.sigma) / late.sigma;
  return { at: late, value: express("data", prediction, late), onX, onValues: [frozen], onDraw };
}

function lambdaOf(sde: Diffusion, p: Knot): number {
  return p.sigma === 0 ? Infinity : lambda(sde, p.t);
}

/** The forward transition run backwards. */
export function reverseDiffusionRows(eta: number, sde: Diffusion, times: number[]): { prediction: Kind; rows: Row[] } {
  const prediction: Kind = sde.alpha(sde.tMax) === 0 ? "flow" : "noise";
  const rows = times.slice(0, -1).flatMap((t, i) => {
    const [late, early] = [knot(sde, t), knot(sde, times[i + 1]!)];
    if (late.alpha === 0 || early.alpha === 0) return writeStages([limiting(prediction, eta, sde, late, early)]);
    const gap = 2 * (lambdaOf(sde, late) - lambdaOf(sde, early));
    const variance = late.sigma ** 2 * -Math.expm1(gap);
    return writeStages([
      {
        at: late,
        value: express("noise", prediction, late),
        onX: 2 - late.alpha / early.alpha,
        onValues: [(-0.5 * (1 + eta * eta) * variance) / late.sigma],
        onDraw: eta * Math.sqrt(variance),
      },
    ]);
  });
  return { prediction, rows };
}

export interface Butcher {
  stages: number[][];
  weights: number[];
}

export const EULER: Butcher = { stages: [[]], weights: [1] };
export const HEUN: Butcher = { stages: [[], [1]], weights: [0.5, 0.5] };
export const MIDPOINT: Butcher = { stages: [[], [0.5]], weights: [0, 1] };
export const RK4: Butcher = { stages: [[], [0.5], [0, 0.5], [0, 0, 1]], weights: [1 / 6, 1 / 3, 1 / 3, 1 / 6] };

/** A Runge-Kutta method on the probability flow in u = sigma/(alpha + sigma), where the field is the flow itself. */
export function rectifiedRows(method: Butcher, sde: Diffusion, times: number[]): Row[] {
  const nodes = method.stages.map((row) => row.reduce((a, b) => a + b, 0));
  return times.slice(0, -1).flatMap((t, i) => {
    const [late, early] = [knot(sde, t), knot(sde, times[i + 1]!)];
    if (early.sigma === 0 && nodes.includes(1)) return writeStages([limiting("flow", 0, sde, late, early)]);
    const [v, w] = [late, early].map((p) => p.sigma / (p.alpha + p.sigma)) as [number, number];
    const place = (c: number): Knot => {
      if (c === 0) return late;
      if (c === 1) return early;
      const u = v + c * (w - v);
      return knot(sde, sde.time(2 * (Math.log1p(-u) - Math.log(u))));
    };
    const scale = (p: Knot): number => p.alpha + p.sigma;
    return writeStages(
      nodes.map((c, j) => {
        const last = j + 1 === nodes.length;
        const to = scale(last ? early : place(nodes[j + 1]!));
        const weights = last ? method.weights : method.stages[j + 1]!;
        return {
          at: place(c),
          value: [0, 1],
          onX: to / scale(late),
          onValues: weights.map((b) => b * (w - v) * to),
          onDraw: 0,
        };
      }),
    );
  });
}

/** Euler-Maruyama in t on the reverse family of index eta, written in the flow prediction. */
export function eulerMaruyamaRows(eta: number, sde: Diffusion, times: number[]): Row[] {
  return times.slice(0, -1).flatMap((t, i) => {
    const [late, early] = [knot(sde, t), knot(sde, times[i + 1]!)];
    if (early.sigma === 0 ? false : late.alpha === 0 && eta > 0)
      return writeStages([limiting("flow", eta, sde, late, early)]);
    const h = early.t - late.t;
    const [alphaRate, sigmaRate, width] = [sde.alphaRate(t), sde.sigmaRate(t), late.alpha + late.sigma];
    const square = 2 * late.sigma * (sigmaRate - (late.sigma * alphaRate) / late.alpha); // g^2
    const lambdaRate = late.alpha === 0 ? 0 : (-0.5 * square) / late.sigma ** 2;
    const extra = eta === 0 ? 0 : (-eta * eta * lambdaRate * late.sigma) / width;
    const value: [number, number] = [
      (alphaRate + sigmaRate) / width + extra,
      (late.alpha * sigmaRate - late.sigma * alphaRate) / width + extra * late.alpha,
    ];
    const onDraw = eta === 0 ? 0 : eta * Math.sqrt(square * -h);
    return writeStages([{ at: late, value, onX: 1, onValues: [h], onDraw }]);
  });
}

/** The last interval in two calls, none of them near sigma = 0; one out of alpha = 0 or where nu/2 is below the end. */
export function closeInTwo(prediction: Kind, sde: Diffusion, late: Knot): Row[] {
  const level = 2 * lambdaOf(sde, late) + 2 * Math.log(2);
  if (late.alpha === 0 || level > sde.logSnr(sde.tMin)) return [jump(prediction, late)];
  const middle = knot(sde, sde.time(level));
  const half = 0.5 * middle.alpha;
  return writeStages([
    { at: late, value: express("data", prediction, late), onX: half / late.alpha, onValues: [half], onDraw: 0 },
    { at: middle, value: express("data", prediction, middle), onX: 0, onValues: [-1, 2], onDraw: 0 },
  ]);
}

/** The jump to clean data: x <- the data prediction. */
export function jump(prediction: Kind, at: Knot): Row {
  return { at, state: express("data", prediction, at), anchor: null, noise: [], anchor_noise: [] };
}
