/** What the page computes with, for its tests too: ``window.scoresde``. */

import type { Table } from "./table";

export { addPoint } from "./brush";
export { knotAt, placeOf, pointAt, stateAt } from "./canvas";
export { DIFFUSIONS } from "./diffusions";
export { GRIDS } from "./grids";
export { readNetwork } from "./files";
export { logDensities, startState } from "./live";
export { rms, sliced, slope } from "./measures";
export { floats, NetworkModel } from "./network";
export { binned } from "./panels";
export { chain, samplersOf } from "./samplers";
export { buildTable, SOLVERS } from "./solvers";
export { FIRST, fromHash, toHash } from "./state";
export { normal, run } from "./table";
export { edited, readWeight } from "./tableview";
export { ExactModel, TARGETS } from "./targets";

/** The table as ``Tableau.from_json`` of the Python library reads it; what its draws are on a path is not said. */
export function toDocument(table: Table): object {
  return {
    format: 1,
    name: table.name,
    prediction: table.prediction,
    rows: table.rows.map((row) => ({ ...row, increment: null, restart: false, spread: null })),
    start: table.start,
    end: table.end,
    prior_std: table.prior_std,
    lift: table.lift ?? [1, 0],
    order: { deterministic: null, strong: null, weak: null },
  };
}
