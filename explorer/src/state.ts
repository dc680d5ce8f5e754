/** What the page shows, as numbers and words; a link carries all of it behind its #. */

import { DIFFUSIONS } from "./diffusions";
import { GRIDS } from "./grids";
import { SOLVERS } from "./solvers";
import { TARGETS } from "./targets";

export interface State {
  /** A key of ``TARGETS``, "drawn", "network" (the page's own), "checkpoint" (served) or "file" (opened). */
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
  target: [...Object.keys(TARGETS), "drawn", "network", "checkpoint", "file"],
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
  bent: [0, 3],
  bend: [-0.5, 0.5],
  time: [0, 1],
};
const WHOLE: readonly (keyof State)[] = ["steps", "particles", "seed", "bent"];
/** The most that a weight of a table, or a coordinate of a drawn point, may be: beyond it only overflow is seen. */
export const LARGEST_WEIGHT = 1000;
const LARGEST_PLACE = 5;
export const MOST_POINTS = 200;

/** Write what differs from the first state. */
export function toHash(state: State): string {
  const changed = KEYS.filter((key) => JSON.stringify(state[key]) !== JSON.stringify(FIRST[key]));
  return changed.map((key) => `${key}=${encodeURIComponent(JSON.stringify(state[key]))}`).join("&");
}

/** Read a link. What is no value of its kind is left at its first one, and ``complaints`` say so, a line for each. */
export function fromHash(hash: string): { state: State; complaints: string[] } {
  const state: State = structuredClone(FIRST);
  const complaints: string[] = [];
  for (const part of hash.replace(/^#/, "").split("&").filter(Boolean)) {
    const cut = part.indexOf("=");
    const [name, text] = cut < 0 ? [part, ""] : [part.slice(0, cut), part.slice(cut + 1)];
    const key = KEYS.find((one) => one === name);
    if (key === undefined) {
      complaints.push(`the link's ${brief(name)} is nothing that the explorer knows; it was left out`);
      continue;
    }
    const value = parse(text);
    if (fits(key, value)) Object.assign(state, { [key]: value });
    else {
      const kept =
        key === "drawn" || key === "edits" || key === "eta"
          ? "it is left out"
          : `${String(FIRST[key])} is taken in its place`;
      complaints.push(`the link's ${key} must be ${wanted(key)}, not ${brief(text)}; ${kept}`);
    }
  }
  const most = SOLVERS[state.solver]!.eta?.[1];
  if (state.eta !== null && most !== undefined && state.eta > most) {
    complaints.push(`the link's eta must be a number from 0 to ${most} for ${state.solver}; it is left out`);
    state.eta = null;
  }
  return { state, complaints };
}

function parse(text: string): unknown {
  try {
    return JSON.parse(decodeURIComponent(text));
  } catch {
    return undefined;
  }
}

/** What a person typed, short enough for a line. */
export function brief(text: string): string {
  let plain = text;
  try {
    plain = decodeURIComponent(text);
  } catch {
    // It is shown as it came.
  }
  return plain === "" ? "nothing" : `\u201c${plain.length > 24 ? `${plain.slice(0, 24)}\u2026` : plain}\u201d`;
}

function wanted(key: keyof State): string {
  const [choices, range] = [CHOICES[key], RANGES[key]];
  if (choices) return `one of ${choices.join(", ")}`;
  if (range) return `a ${WHOLE.includes(key) ? "whole number" : "number"} from ${range[0]} to ${range[1]}`;
  if (key === "drawn") return `at most ${MOST_POINTS} points, x and y from -${LARGEST_PLACE} to ${LARGEST_PLACE}`;
  if (key === "edits") return `row.place with weights from -${LARGEST_WEIGHT} to ${LARGEST_WEIGHT}`;
  return "true or false";
}

function fits(key: keyof State, value: unknown): boolean {
  const [choices, range] = [CHOICES[key], RANGES[key]];
  if (choices) return typeof value === "string" && choices.includes(value);
  if (key === "eta" && value === null) return true;
  if (range) return within(value, range[0], range[1]) && (Number.isInteger(value) || !WHOLE.includes(key));
  if (key === "drawn")
    return (
      Array.isArray(value) &&
      value.length <= 2 * MOST_POINTS &&
      value.length % 2 === 0 &&
      value.every((v) => within(v, -LARGEST_PLACE, LARGEST_PLACE))
    );
  if (key === "edits")
    return (
      typeof value === "object" &&
      value !== null &&
      Object.entries(value).every(([k, v]) => /^\d+\.\d+$/.test(k) && within(v, -LARGEST_WEIGHT, LARGEST_WEIGHT))
    );
  return typeof value === "boolean";
}

function within(value: unknown, low: number, high: number): value is number {
  return typeof value === "number" && value >= low && value <= high;
}
