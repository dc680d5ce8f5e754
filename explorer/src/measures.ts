/** Errors of a sampler: the distance to the exact flow where it draws nothing, else that of its law to the target's. */

import type { Diffusion } from "./diffusions";
import { buildTable } from "./solvers";
import { type Model, normal, run, type Table } from "./table";
import type { ExactModel } from "./targets";

export const COUNTS = [1, 2, 3, 4, 5, 6, 8, 10, 13, 16, 20, 26, 33, 42, 54, 70, 100];
const DIRECTIONS = 24;

export function isNoisy(table: Table): boolean {
  return table.rows.some((row) => row.noise.some((w) => w !== 0));
}

/** Where the exact probability flow takes these states: 300 steps of the classical Runge-Kutta method. */
export async function flowFrom(model: Model, sde: Diffusion, x: Float64Array): Promise<Float64Array> {
  const table = buildTable({ solver: "rk4", sde, grid: "diffused", steps: 300 });
  return (await run(table, model, x, normal(0))).states.at(-1)!;
}

export function rms(a: Float64Array, b: Float64Array): number {
  return Math.sqrt(a.reduce((sum, v, i) => sum + (v - b[i]!) ** 2, 0) / a.length);
}

/** Sliced Wasserstein-2 distance of n samples each (on a line: Wasserstein-2). */
export function sliced(a: Float64Array, b: Float64Array, dim: number): number {
  const count = dim === 1 ? 1 : DIRECTIONS;
  let total = 0;
  for (let k = 0; k < count; k++) {
    const angle = (Math.PI * k) / count;
    const along = [Math.cos(angle), Math.sin(angle)];
    const [p, q] = [a, b].map((x) => {
      const out = new Float64Array(x.length / dim);
      for (let i = 0; i < out.length; i++)
        out[i] = dim === 1 ? x[i]! : along[0]! * x[2 * i]! + along[1]! * x[2 * i + 1]!;
      return out.sort();
    }) as [Float64Array, Float64Array];
    total += rms(p, q) ** 2;
  }
  return Math.sqrt(total / count);
}

/** The distance of two exact sets of n samples: the least that a sampler can show. */
export function floor(model: ExactModel, n: number): number {
  return sliced(model.sample(n, 71), model.sample(n, 72), model.dim);
}

/** The slope of log error against log evaluations over the last half of the points that still fall. */
export function slope(points: [number, number][], least: number): number | null {
  const used = points.filter(([, e]) => e > 2 * least && e > 1e-12);
  const last = used.slice(Math.floor(used.length / 2));
  if (last.length < 3) return null;
  const [x, y] = [last.map(([n]) => Math.log(n)), last.map(([, e]) => Math.log(e))];
  const [mx, my] = [x, y].map((v) => v.reduce((a, b) => a + b, 0) / v.length) as [number, number];
  const top = x.reduce((s, v, i) => s + (v - mx) * (y[i]! - my), 0);
  return -top / x.reduce((s, v) => s + (v - mx) ** 2, 0);
}
