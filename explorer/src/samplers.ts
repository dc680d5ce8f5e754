/** What stands on the page, as tables: the chosen solver, or the discrete chain, the SDE and the flow side by side. */

import { DIFFUSIONS, type Diffusion, knot } from "./diffusions";
import { ancestralRows, jump } from "./onestep";
import { buildTable, SOLVERS } from "./solvers";
import type { State } from "./state";
import type { Table } from "./table";
import { edited } from "./tableview";

export interface Sampler {
  title: string;
  short: string;
  /** Its table of so many steps, with the weight that the state bends. */
  table(steps: number): Table;
}

export function sdeOf(state: State): Diffusion {
  return DIFFUSIONS[state.sde]!;
}

/** The discrete chain of n steps: DDPM's knots i/n of the diffusion, its posterior step at each. */
export function chain(sde: Diffusion, steps: number): Table {
  const times = Array.from({ length: steps }, (_, i) => (sde.tMax * (steps - i)) / steps);
  const last = knot(sde, times[steps - 1]!);
  const rows = [...ancestralRows(1, sde, times), jump("data", last)];
  return {
    name: "chain",
    prediction: "data",
    rows,
    start: knot(sde, times[0]!),
    end: { t: 0, alpha: 1, sigma: 0 },
    prior_std: sde.priorStd(times[0]!),
  };
}

/** The samplers of a state; without bending, as they were. */
export function samplersOf(state: State, bend = state.bend): Sampler[] {
  const made = (solver: string, steps: number, eta = state.eta): Table => {
    const grid = state.grid === "own" ? undefined : state.grid;
    const known = SOLVERS[solver]!.eta;
    const table = buildTable({ solver, sde: sdeOf(state), steps, grid, eta: known ? (eta ?? known[0]) : undefined });
    return edited(table, state.bent, bend, {});
  };
  const { solver } = state;
  const eta = SOLVERS[solver]!.eta;
  if (!state.beside) {
    const title = `${solver}${eta ? `, eta = ${state.eta ?? eta[0]}` : ""}`;
    return [{ title, short: solver, table: (n) => made(solver, n) }];
  }
  const flow = eta ? "flow_abm" : solver; // a solver with an eta draws noise, which the flow does not
  return [
    {
      title: "the chain (DDPM)",
      short: "chain",
      table: (n) => edited(chain(sdeOf(state), n), state.bent, bend, {}),
    },
    { title: "the SDE (Euler-Maruyama)", short: "SDE", table: (n) => made("euler_maruyama", n, 1) },
    { title: `the flow (${flow})`, short: "flow", table: (n) => made(flow, n) },
  ];
}
