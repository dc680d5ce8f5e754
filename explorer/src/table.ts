/** Tables of numbers and the one loop that runs them: the format is that of ``Tableau.to_json`` in the Python library. */

import type { Knot } from "./diffusions";

export type Kind = "data" | "noise" | "flow";

export interface Row {
  at: Knot;
  state: number[];
  anchor: number[] | null;
  noise: number[];
  anchor_noise: number[];
}

export interface Table {
  name: string;
  prediction: Kind;
  rows: Row[];
  start: Knot;
  end: Knot;
  prior_std: number;
  lift?: [number, number];
}

/** What looks at a state and says what its clean data are: writes D(x) into ``out``; n samples of ``dim`` numbers. */
export interface Model {
  readonly dim: number;
  data(x: Float64Array, at: Knot, out: Float64Array): void | Promise<void>;
}

/** Where draws come from: fills an array with standard normal numbers. */
export type Source = (into: Float64Array) => void;

export interface Course {
  /** The states: at the start, and after each row. */
  states: Float64Array[];
  /** Where each state stands. */
  at: Knot[];
  nfe: number;
}

/** Let the page draw when this much time has passed since it last could, in milliseconds. */
const SLICE = 6; // of the 16 that a frame has
let since = 0;

export async function breathe(): Promise<void> {
  if (performance.now() - since < SLICE) return;
  await new Promise((go) => setTimeout(go, 0));
  since = performance.now();
}

/** Run a table from the start state x. The weights of a row stand for [anchor, predictions newest first], and draws. */
export async function run(table: Table, model: Model, x: Float64Array, draw: Source): Promise<Course> {
  const size = x.length;
  const fresh = (): Float64Array => {
    const z = new Float64Array(size);
    draw(z);
    return z;
  };
  let draws: Float64Array[] = [];
  const [scale, weight] = table.lift ?? [1, 0];
  if (weight !== 0) draws = [fresh()];
  x = weight === 0 && scale === 1 ? x : add([scale, weight], [x, ...draws]);
  let y = x;
  let past: Float64Array[] = [];
  const states = [x];
  const at = [table.start];
  const memory = Math.max(0, ...table.rows.map((r) => Math.max(r.state.length, r.anchor?.length ?? 0) - 1));
  for (const [i, row] of table.rows.entries()) {
    const prediction = new Float64Array(size);
    await breathe();
    await model.data(x, row.at, prediction);
    express(prediction, x, row.at, table.prediction);
    past = [prediction, ...past].slice(0, memory);
    const drawing = Boolean(row.noise[0] || row.anchor_noise[0]);
    if (drawing) draws = [fresh(), ...draws].slice(0, 4);
    const noises = drawing ? draws : [prediction, ...draws]; // a weight of 0 stands first where nothing is drawn
    const next = add([...row.state, ...row.noise], [y, ...past.slice(0, row.state.length - 1), ...noises]);
    if (row.anchor === null) y = next;
    else if (row.anchor.length > 1 || row.anchor[0] !== 1 || row.anchor_noise.length > 0)
      y = add([...row.anchor, ...row.anchor_noise], [y, ...past.slice(0, row.anchor.length - 1), ...noises]);
    x = next;
    states.push(x);
    at.push(table.rows[i + 1]?.at ?? table.end);
  }
  return { states, at, nfe: table.rows.length };
}

/** Turn predictions of the data into those of the noise or of the flow, noise - data, in place. */
function express(data: Float64Array, x: Float64Array, at: Knot, kind: Kind): void {
  if (kind === "data") return;
  for (let i = 0; i < x.length; i++) {
    const noise = (x[i]! - at.alpha * data[i]!) / at.sigma;
    data[i] = kind === "noise" ? noise : noise - data[i]!;
  }
}

function add(weights: number[], terms: Float64Array[]): Float64Array {
  const sum = new Float64Array(terms[0]!.length);
  weights.forEach((w, k) => {
    const term = terms[k];
    if (w === 0 || term === undefined) return;
    for (let i = 0; i < sum.length; i++) sum[i]! += w * term[i]!;
  });
  return sum;
}

/** A stream of standard normal numbers named by a seed (mulberry32, Box and Muller). */
export function normal(seed: number): Source {
  let state = (Math.imul(seed, 0x9e3779b1) ^ 0x5bf03635) >>> 0;
  const uniform = (): number => {
    state = (state + 0x6d2b79f5) >>> 0;
    let z = Math.imul(state ^ (state >>> 15), state | 1);
    z ^= z + Math.imul(z ^ (z >>> 7), z | 61);
    return ((z ^ (z >>> 14)) >>> 0) / 4294967296;
  };
  return (into) => {
    for (let i = 0; i < into.length; i += 2) {
      const radius = Math.sqrt(-2 * Math.log(1 - uniform()));
      const angle = 2 * Math.PI * uniform();
      into[i] = radius * Math.cos(angle);
      if (i + 1 < into.length) into[i + 1] = radius * Math.sin(angle);
    }
  };
}
