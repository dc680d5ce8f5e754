/** What the page shows, as numbers and words; a link carries all of it behind its #. */

import { DIFFUSIONS } from "./diffusions";
import { GRIDS } from "./grids";
import { SOLVERS } from "./solvers";
import { TARGETS } from "./targets";

export interface State {
  /** A key of ``TARGETS``, "drawn", "network" or "checkpoint". */
  target: string;
  /** The points of a drawn target, x and y one after the other. */
  drawn: number[];
  /** Standard deviation around each of them. */
  brush: number;
  sde: string;
  solver: string;
  /** A key of ``GRIDS``, or "own" for the solver's. */
  grid: string;
  steps: number;
  eta: number | null;
  particles: number;
  seed: number;
  /** Whether the chain, the SDE and the flow stand side by side. */
  beside: boolean;
  density: boolean;
  lines: boolean;
  /** The weight of every row that is multiplied by 1 + bend: its place in the row, from 0. */
  bent: number;
  bend: number;
  /** Edited weights of the table, "row.place" -> value; noise weights have places from 100 on. */
  edits: Record<string, number>;
  /** Share of the way from noise to data. */
  time: number;
}

export const FIRST: State = {
  target: "ring",
  drawn: [],
  brush: 0.12,
  sde: "vp",
  solver: "flow_abm",
  grid: "own",
  steps: 10,
  eta: null,
  particles: 1000,
  seed: 1,
  beside: false,
  density: true,
  lines: true,
  bent: 1,
  bend: 0,
  edits: {},
  time: 1,
};

const KEYS = Object.keys(FIRST) as (keyof State)[];
const CHOICES: Partial<Record<keyof State, readonly string[]>> = {
  target: [...Object.keys(TARGETS), "drawn", "network", "checkpoint"],
  sde: Object.keys(DIFFUSIONS),
  solver: Object.keys(SOLVERS),
  grid: ["own", ...Object.keys(GRIDS)],
};
const RANGES: Partial<Record<keyof State, [number, number]>> = {
  brush: [0.02, 1],
  steps: [1, 100],
  eta: [0, 2],
  particles: [1, 4000],
  seed: [0, 1e9],
  bent: [0, 4],
  bend: [-0.5, 0.5],
  time: [0, 1],
};

/** Write what differs from the first state. */
export function toHash(state: State): string {
  const changed = KEYS.filter((key) => JSON.stringify(state[key]) !== JSON.stringify(FIRST[key]));
  return changed.map((key) => `${key}=${encodeURIComponent(JSON.stringify(state[key]))}`).join("&");
}

/** Read a link; what is no value of its kind is left at its first one. */
export function fromHash(hash: string): State {
  const state: State = structuredClone(FIRST);
  for (const part of hash.replace(/^#/, "").split("&")) {
    const [name, text] = part.split("=", 2);
    const key = KEYS.find((one) => one === name);
    if (key === undefined || text === undefined) continue;
    let value: unknown;
    try {
      value = JSON.parse(decodeURIComponent(text));
    } catch {
      continue;
    }
    if (fits(key, value)) Object.assign(state, { [key]: value });
  }
  if (state.target === "drawn" && state.drawn.length === 0) state.target = FIRST.target;
  return state;
}

function fits(key: keyof State, value: unknown): boolean {
  const [choices, range] = [CHOICES[key], RANGES[key]];
  if (choices) return typeof value === "string" && choices.includes(value);
  if (key === "eta" && value === null) return true;
  if (range) return isNumber(value) && value >= range[0] && value <= range[1];
  if (key === "drawn")
    return Array.isArray(value) && value.length <= 400 && value.length % 2 === 0 && value.every(isNumber);
  if (key === "edits") return typeof value === "object" && value !== null && Object.values(value).every(isNumber);
  return typeof value === "boolean";
}

function isNumber(value: unknown): value is number {
  return typeof value === "number" && Number.isFinite(value);
}
