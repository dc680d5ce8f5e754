/** A small trained network in the browser: ``nn.MLP`` of the Python library, read by its ``ScoreModel``'s readout. */

import type { Knot } from "./diffusions";
import type { Model } from "./table";

/** What ``scoresde explore`` writes of a model: see ``scoresde/cli/explore.py``. */
export interface NetworkDocument {
  name: string;
  predicts: string;
  sigma_data: number;
  width: number;
  depth: number;
  dim: number;
  /** Name -> shape and base64 of little-endian float32. */
  weights: Record<string, { shape: number[]; values: string }>;
  /** Samples of the data in the model's coordinates, for the density beneath; base64 of float32, (n, dim). */
  points?: string;
  /** The diffusion that it was trained under, if the page has it. */
  sde?: string | null;
}

/** What a network may be trained to say; "velocity" is that of the rectified flow. */
export const PREDICTIONS = ["noise", "data", "v", "score", "edm", "velocity"];

const FREQUENCIES = 32;

export function floats(base64: string): Float32Array {
  const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  return new Float32Array(bytes.buffer);
}

interface Layer {
  outputs: number;
  inputs: number;
  weight: Float32Array;
  bias: Float32Array;
}

function silu(x: Float64Array): Float64Array {
  return x.map((v) => v / (1 + Math.exp(-v)));
}

function apply(layer: Layer, seen: Float64Array): Float64Array {
  const out = new Float64Array(layer.outputs);
  for (let o = 0; o < layer.outputs; o++) {
    let sum = layer.bias[o]!;
    const row = o * layer.inputs;
    for (let i = 0; i < layer.inputs; i++) sum += layer.weight[row + i]! * seen[i]!;
    out[o] = sum;
  }
  return out;
}

function norm(h: Float64Array, scale: Float64Array, shift: Float64Array): Float64Array {
  const mean = h.reduce((a, b) => a + b, 0) / h.length;
  const variance = h.reduce((a, b) => a + (b - mean) ** 2, 0) / h.length;
  const over = 1 / Math.sqrt(variance + 1e-5);
  return h.map((v, i) => shift[i]! + (v - mean) * over * (1 + scale[i]!));
}

export class NetworkModel implements Model {
  readonly dim: number;
  private readonly layers = new Map<string, Layer>();
  private readonly label: Float32Array | null;

  constructor(readonly document: NetworkDocument) {
    this.dim = document.dim;
    for (const [name, { shape, values }] of Object.entries(document.weights)) {
      if (!name.endsWith(".weight") || name === "conditioning.label.weight") continue;
      const stem = name.slice(0, -".weight".length);
      const bias = floats(document.weights[`${stem}.bias`]!.values);
      this.layers.set(stem, { outputs: shape[0]!, inputs: shape[1]!, weight: floats(values), bias });
    }
    const labels = document.weights["conditioning.label.weight"];
    this.label = labels ? floats(labels.values).slice(0, document.width) : null; // the null class
  }

  data(x: Float64Array, at: Knot, out: Float64Array): void {
    const { sigma_data: d, predicts } = this.document;
    const cIn = 1 / Math.hypot(at.alpha * d, at.sigma);
    const logSnr = at.sigma === 0 ? 40 : 2 * (Math.log(at.alpha) - Math.log(at.sigma));
    const terms = this.terms(Math.min(40, Math.max(-40, logSnr)));
    // F = p x_0 + q z, so that x_0 = (q x - sigma F)/(alpha q - sigma p), in the scale that the network was trained in.
    const [p, q] = this.target(predicts, d, at);
    const delta = at.alpha * q - at.sigma * p;
    const one = new Float64Array(this.dim);
    for (let i = 0; i < x.length; i += this.dim) {
      for (let j = 0; j < this.dim; j++) one[j] = cIn * x[i + j]!;
      const f = this.forward(one, terms);
      for (let j = 0; j < this.dim; j++) out[i + j] = (q * x[i + j]! - at.sigma * f[j]!) / delta;
    }
  }

  private target(predicts: string, d: number, { alpha, sigma }: Knot): [number, number] {
    const r = Math.hypot(alpha, sigma);
    const w = Math.hypot(sigma, d * alpha);
    switch (predicts) {
      case "noise":
        return [0, 1];
      case "data":
        return [1, 0];
      case "v":
        return [-sigma / r, alpha / r];
      case "score":
        return [0, -r / sigma];
      case "edm":
        return [sigma / (d * w), (-d * alpha) / w];
      case "velocity": // of the rectified flow
        return [-1, 1];
      default:
        throw new Error(`the explorer knows no prediction ${predicts}`);
    }
  }

  private terms(cNoise: number): { chunks: Float64Array[]; skip: number } {
    const features = new Float64Array(2 * FREQUENCIES);
    for (let k = 0; k < FREQUENCIES; k++) {
      const angle = cNoise * 2 ** (-6 + (8 * k) / (FREQUENCIES - 1));
      features[k] = Math.sin(angle);
      features[FREQUENCIES + k] = Math.cos(angle);
    }
    const layer = (name: string): Layer => this.layers.get(name)!;
    const told = apply(layer("conditioning.mix"), silu(apply(layer("conditioning.features"), features)));
    this.label?.forEach((v, i) => (told[i]! += v));
    const vector = silu(told);
    const all = apply(layer("modulation"), vector);
    const width = this.document.width;
    const chunks = Array.from({ length: all.length / width }, (_, k) => all.slice(k * width, (k + 1) * width));
    return { chunks, skip: apply(layer("skip"), vector)[0]! };
  }

  private forward(x: Float64Array, { chunks, skip }: { chunks: Float64Array[]; skip: number }): Float64Array {
    let h = apply(this.layers.get("input")!, x);
    for (let k = 0; k < this.document.depth; k++) {
      const inner = apply(this.layers.get(`first.${k}`)!, norm(h, chunks[2 * k]!, chunks[2 * k + 1]!));
      const more = apply(this.layers.get(`second.${k}`)!, silu(inner));
      h = h.map((v, i) => v + more[i]!);
    }
    const last = norm(h, chunks[chunks.length - 2]!, chunks[chunks.length - 1]!);
    return apply(this.layers.get("output")!, silu(last)).map((v, j) => v + skip * x[j]!);
  }
}
