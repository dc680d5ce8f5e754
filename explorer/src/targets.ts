/** Exact models: mixtures of round Gaussians, whose score under any diffusion is known in closed form. */

import type { Diffusion, Knot } from "./diffusions";
import { type Model, normal } from "./table";

export interface Mixture {
  dim: 1 | 2;
  weights: number[];
  /** dim numbers for each component. */
  means: number[][];
  stds: number[];
}

/** The model of a mixture: x_t is a mixture of N(alpha m_k, alpha^2 s_k^2 + sigma^2). */
export class ExactModel implements Model {
  readonly dim: number;
  constructor(readonly mixture: Mixture) {
    this.dim = mixture.dim;
  }

  data(x: Float64Array, at: Knot, out: Float64Array): void {
    const { weights, means, stds } = this.mixture;
    const d = this.dim;
    const variance = stds.map((s) => (at.alpha * s) ** 2 + at.sigma ** 2);
    const pull = stds.map((s, k) => (at.alpha * s * s) / variance[k]!);
    const height = weights.map((w, k) => Math.log(w) - 0.5 * d * Math.log(variance[k]!));
    const share = new Float64Array(weights.length);
    for (let i = 0; i < x.length; i += d) {
      let top = -Infinity;
      for (let k = 0; k < share.length; k++) {
        let square = 0;
        for (let j = 0; j < d; j++) square += (x[i + j]! - at.alpha * means[k]![j]!) ** 2;
        share[k] = height[k]! - (0.5 * square) / variance[k]!;
        if (share[k]! > top) top = share[k]!;
      }
      let total = 0;
      for (let k = 0; k < share.length; k++) total += share[k] = Math.exp(share[k]! - top);
      for (let j = 0; j < d; j++) {
        let mean = 0;
        for (let k = 0; k < share.length; k++) {
          const m = means[k]![j]!;
          mean += share[k]! * (m + pull[k]! * (x[i + j]! - at.alpha * m));
        }
        out[i + j] = mean / total;
      }
    }
  }

  /** log p_t of each sample. */
  logDensity(x: Float64Array, at: Knot): Float64Array {
    const { means } = this.mixture;
    const d = this.dim;
    const { variance, height } = this.terms(at);
    const out = new Float64Array(x.length / d);
    const term = new Float64Array(means.length);
    for (let i = 0; i < out.length; i++) {
      let top = -Infinity;
      for (let k = 0; k < term.length; k++) {
        let square = 0;
        for (let j = 0; j < d; j++) square += (x[i * d + j]! - at.alpha * means[k]![j]!) ** 2;
        term[k] = height[k]! - (0.5 * square) / variance[k]!;
        if (term[k]! > top) top = term[k]!;
      }
      let sum = 0;
      for (let k = 0; k < term.length; k++) sum += Math.exp(term[k]! - top);
      out[i] = top + Math.log(sum);
    }
    return out;
  }

  /** log p_t on the grid of these x and y, a row for each y: a round Gaussian is a product, so that few exp are taken. */
  logDensityOn(xs: Float64Array, ys: Float64Array, at: Knot): Float64Array {
    const { means } = this.mixture;
    const { variance, height } = this.terms(at);
    const out = new Float64Array(xs.length * ys.length);
    means.forEach((mean, k) => {
      const along = (values: Float64Array, m: number): Float64Array =>
        values.map((v) => Math.exp((-0.5 * (v - at.alpha * m) ** 2) / variance[k]!));
      const [px, py, scale] = [along(xs, mean[0]!), along(ys, mean[1]!), Math.exp(height[k]!)];
      for (let i = 0; i < ys.length; i++) {
        const row = scale * py[i]!;
        for (let j = 0; j < xs.length; j++) out[i * xs.length + j]! += row * px[j]!;
      }
    });
    return out.map(Math.log);
  }

  /** The law of one coordinate: the same mixture, on a line. */
  marginal(axis: number): ExactModel {
    const { weights, means, stds } = this.mixture;
    return new ExactModel({ dim: 1, weights, means: means.map((mean) => [mean[axis]!]), stds });
  }

  /** The components at a point of the diffusion: variances, and logarithms of their heights. */
  private terms(at: Knot): { variance: number[]; height: number[] } {
    const { weights, stds } = this.mixture;
    const variance = stds.map((s) => (at.alpha * s) ** 2 + at.sigma ** 2);
    const height = weights.map((w, k) => Math.log(w) - 0.5 * this.dim * Math.log(2 * Math.PI * variance[k]!));
    return { variance, height };
  }

  /** n samples of the data, from a seed. */
  sample(n: number, seed: number): Float64Array {
    const { weights, means, stds } = this.mixture;
    const d = this.dim;
    const z = new Float64Array(n * (d + 1));
    normal(seed)(z);
    const sums = weights.map((_, k) => weights.slice(0, k + 1).reduce((a, b) => a + b, 0));
    const out = new Float64Array(n * d);
    for (let i = 0; i < n; i++) {
      // Strata: sample i of n takes the component in whose share of [0, 1) its place falls.
      const u = ((i + 0.5) / n) * sums[sums.length - 1]!;
      const k = Math.max(
        0,
        sums.findIndex((sum) => u < sum),
      );
      for (let j = 0; j < d; j++) out[i * d + j] = means[k]![j]! + stds[k]! * z[i * d + j]!;
    }
    return out;
  }

  /** The standard deviation and mean of the start state, from the data's moments. */
  prior(sde: Diffusion): { mean: number[]; std: number[] } {
    const { weights, means, stds } = this.mixture;
    const total = weights.reduce((a, b) => a + b, 0);
    const [alpha, sigma] = [sde.alpha(sde.tMax), sde.sigma(sde.tMax)];
    const mean = Array.from({ length: this.dim }, (_, j) =>
      weights.reduce((s, w, k) => s + (w * means[k]![j]!) / total, 0),
    );
    const std = mean.map((m, j) => {
      const variance = weights.reduce((s, w, k) => s + (w * (stds[k]! ** 2 + (means[k]![j]! - m) ** 2)) / total, 0);
      return Math.sqrt(alpha ** 2 * variance + sigma ** 2);
    });
    return { mean: mean.map((m) => alpha * m), std };
  }
}

function equal(dim: 1 | 2, means: number[][], std: number): Mixture {
  return { dim, means, weights: means.map(() => 1 / means.length), stds: means.map(() => std) };
}

function around(count: number, place: (share: number) => [number, number]): number[][] {
  return Array.from({ length: count }, (_, k) => place(k / count));
}

export const TARGETS: Record<string, { label: string; mixture: Mixture }> = {
  ring: {
    label: "ring of eight",
    mixture: equal(
      2,
      around(8, (s) => [1.4 * Math.cos(2 * Math.PI * s), 1.4 * Math.sin(2 * Math.PI * s)]),
      0.12,
    ),
  },
  moons: {
    label: "two moons",
    mixture: equal(
      2,
      [
        ...around(24, (s) => [Math.cos((Math.PI * s * 24) / 23) - 0.5, Math.sin((Math.PI * s * 24) / 23) - 0.25]),
        ...around(24, (s) => [0.5 - Math.cos((Math.PI * s * 24) / 23), 0.25 - Math.sin((Math.PI * s * 24) / 23)]),
      ],
      0.08,
    ),
  },
  spiral: {
    label: "spiral",
    mixture: equal(
      2,
      around(56, (s) => {
        const angle = 3.2 * Math.PI * Math.sqrt(s + 0.03);
        return [0.17 * angle * Math.cos(angle), 0.17 * angle * Math.sin(angle)];
      }),
      0.07,
    ),
  },
  board: {
    label: "chess board",
    mixture: equal(
      2,
      Array.from({ length: 8 }, (_, k) => {
        const row = Math.floor(k / 2);
        return [0.9 * (2 * (k % 2) + (row % 2)) - 1.35, 0.9 * row - 1.35];
      }),
      0.2,
    ),
  },
  two: {
    label: "two modes on a line",
    mixture: { dim: 1, weights: [0.35, 0.65], means: [[-1], [0.8]], stds: [0.2, 0.3] },
  },
  three: {
    label: "three modes on a line",
    mixture: { dim: 1, weights: [0.5, 0.2, 0.3], means: [[-1.5], [0.1], [1.4]], stds: [0.12, 0.3, 0.06] },
  },
  one: { label: "one Gaussian on a line", mixture: { dim: 1, weights: [1], means: [[0.7]], stds: [0.5] } },
};
