/** The named solvers of the explorer, and what makes their tables: the Python library's ``build_table``. */

import { CLEAN, type Diffusion, knot } from "./diffusions";
import { GRIDS, times } from "./grids";
import { type Multistep, multistepRows } from "./multistep";
import * as one from "./onestep";
import type { Kind, Row, Table } from "./table";

interface Written {
  prediction: Kind;
  rows: Row[];
}

export interface Solver {
  readonly label: string;
  readonly grid: string;
  /** Calls of the model in each step. */
  readonly calls: number;
  /** eta where it may be chosen: [default, largest]. */
  readonly eta?: [number, number];
  /** Whether its step into sigma = 0 is as good as its others, or that many calls stand in the place of the last. */
  readonly closes?: boolean;
  readonly leap?: number;
  write(eta: number, sde: Diffusion, times: number[]): Written;
}

function multistep(label: string, grid: string, options: Partial<Multistep>, eta?: [number, number]): Solver {
  const method: Multistep = {
    prediction: "data",
    variable: "log_snr",
    order: 2,
    corrector: 0,
    eta: 0,
    rounding: "exact",
    firstAlone: false,
    ...options,
  };
  const closes = method.prediction === "flow" && method.variable !== "log_snr";
  return {
    label,
    grid,
    calls: 1,
    closes,
    ...(eta === undefined ? {} : { eta }),
    write: (index, sde, at) => ({
      prediction: method.prediction,
      rows: multistepRows({ ...method, eta: eta === undefined ? 0 : index }, sde, at),
    }),
  };
}

function rungeKutta(label: string, grid: string, method: one.Butcher): Solver {
  const nodes = method.stages.map((row) => row.reduce((a, b) => a + b, 0));
  const leap = nodes.includes(1) ? 2 : 0;
  return {
    label,
    grid,
    calls: nodes.length,
    closes: leap === 0,
    leap,
    write: (_, sde, at) => ({ prediction: "flow", rows: one.rectifiedRows(method, sde, at) }),
  };
}

export const SOLVERS: Record<string, Solver> = {
  flow_abm: multistep("flow_abm, the default", "diffused 3.9", {
    prediction: "flow",
    variable: "rectified",
    order: 3,
    corrector: 4,
    firstAlone: true,
  }),
  ancestral: {
    label: "ancestral (DDPM)",
    grid: "even",
    calls: 1,
    eta: [1, 2],
    write: (eta, sde, at) => ({ prediction: "data", rows: one.ancestralRows(eta, sde, at) }),
  },
  ddim: {
    label: "ddim",
    grid: "even",
    calls: 1,
    eta: [0, 1],
    write: (eta, sde, at) => ({ prediction: "data", rows: one.ddimRows(eta, sde, at) }),
  },
  euler_maruyama: {
    label: "euler_maruyama",
    grid: "even",
    calls: 1,
    eta: [1, 2],
    write: (eta, sde, at) => ({ prediction: "flow", rows: one.eulerMaruyamaRows(eta, sde, at) }),
  },
  reverse_diffusion: {
    label: "reverse_diffusion",
    grid: "even",
    calls: 1,
    eta: [1, 2],
    write: (eta, sde, at) => one.reverseDiffusionRows(eta, sde, at),
  },
  dpmpp_2m: multistep("dpmpp_2m", "asinh", { rounding: "midpoint" }),
  dpmpp_2m_sde: multistep("dpmpp_2m_sde", "asinh", { rounding: "midpoint" }, [1, 2]),
  unipc: multistep("unipc", "asinh", { order: 3, corrector: 4, rounding: "bh2" }),
  sa_solver: multistep("sa_solver", "asinh", { order: 3, corrector: 4 }, [1, 2]),
  exponential_ab: multistep("exponential_ab", "asinh", { order: 3 }),
  deis: multistep("deis", "diffused", { prediction: "noise", variable: "t", order: 3 }),
  ipndm: multistep("ipndm", "rectified 1.5", { prediction: "noise", order: 4, rounding: "constant" }),
  euler: rungeKutta("euler, on the flow", "rectified", one.EULER),
  midpoint: rungeKutta("midpoint, on the flow", "rectified", one.MIDPOINT),
  heun: rungeKutta("heun, on the flow", "rectified 1.25", one.HEUN),
  rk4: rungeKutta("rk4, on the flow", "rectified", one.RK4),
};

export interface Settings {
  solver: string;
  sde: Diffusion;
  /** A name of ``GRIDS``; the solver's own where undefined. */
  grid?: string | undefined;
  steps: number;
  eta?: number | undefined;
}

/** The table of ``build_table(sde, solver, steps=steps, times=grid)``, which ends in clean data. */
export function buildTable({ solver: name, sde, grid: chosen, steps, eta }: Settings): Table {
  const solver = SOLVERS[name]!;
  const grid = GRIDS[chosen ?? solver.grid]!;
  const index = eta ?? solver.eta?.[0] ?? 0;
  const table = (at: number[], more?: (w: Written) => Row[]): Table => {
    const written = solver.write(index, sde, at);
    const end = knot(sde, at[at.length - 1]!);
    const extra = more?.(written) ?? [];
    return {
      name,
      prediction: written.prediction,
      rows: [...written.rows, ...extra],
      start: knot(sde, at[0]!),
      end: extra.length > 0 || end.sigma === 0 ? CLEAN : end,
      prior_std: sde.priorStd(at[0]!),
    };
  };
  if (solver.closes && sde.sigma(0) === 0) return table([...times(grid, sde, steps, false).slice(0, -1), 0]);
  if (solver.leap) {
    const at = times(grid, sde, steps, false).slice(0, -1);
    return table(at, (w) => one.closeInTwo(w.prediction, sde, knot(sde, at[at.length - 1]!)));
  }
  const at = times(grid, sde, steps - 1, true);
  return table(at, (w) => [one.jump(w.prediction, knot(sde, at[at.length - 1]!))]);
}
