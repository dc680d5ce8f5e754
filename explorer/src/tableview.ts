/** The table as a person reads it: a line for each row, whose weights may be changed. */

import { brief, LARGEST_WEIGHT } from "./state";
import type { Row, Table } from "./table";

const NOISE = 100; // places from here on are those of noise weights

/** The table with a weight of every row multiplied by 1 + bend, and with single weights replaced. */
export function edited(table: Table, bent: number, bend: number, edits: Record<string, number>): Table {
  if (bend === 0 && Object.keys(edits).length === 0) return table;
  const rows = table.rows.map((row, i): Row => {
    const state = row.state.map((w, k) => edits[`${i}.${k}`] ?? (k === bent ? w * (1 + bend) : w));
    const noise = row.noise.map((w, k) => edits[`${i}.${NOISE + k}`] ?? w);
    return { ...row, state, noise };
  });
  return { ...table, rows };
}

/** What a typed text says as a weight; an Error says in a line what is wrong with it. */
export function readWeight(text: string): number {
  const value = Number(text);
  if (text.trim() === "" || Number.isNaN(value))
    throw new Error(`${brief(text)} is no number, and the weight stays as it was; write it like 0.25 or -1e-3`);
  if (Math.abs(value) > LARGEST_WEIGHT)
    throw new Error(`the weight stays as it was; take one from -${LARGEST_WEIGHT} to ${LARGEST_WEIGHT}`);
  return value;
}

export function showTable(
  box: HTMLElement,
  table: Table | null,
  edits: Record<string, number>,
  onEdit: (edits: Record<string, number>) => void,
  say: (text: string) => void,
): void {
  if (!table) {
    box.replaceChildren('Take away "side by side" to see the table.');
    return;
  }
  const weights = Math.max(...table.rows.map((row) => row.state.length));
  const draws = Math.max(0, ...table.rows.map((row) => row.noise.length));
  const head = document.createElement("tr");
  const names = Array.from({ length: weights - 1 }, (_, k) =>
    k === 0 ? "this prediction" : k === 1 ? "the one before" : `${k} before`,
  );
  const drawn = Array.from({ length: draws }, (_, k) => (k === 0 ? "draw" : "draw before"));
  const weighed = ["anchor", ...names, ...drawn];
  for (const name of ["call", "t", "signal", "noise", ...weighed]) {
    const cell = document.createElement("th");
    cell.textContent = name;
    head.append(cell);
  }
  const body = document.createElement("table");
  body.append(head);
  table.rows.forEach((row, i) => {
    const line = document.createElement("tr");
    for (const value of [i, row.at.t, row.at.alpha, row.at.sigma])
      line.append(fixed(String(Number(value.toPrecision(4)))));
    for (let k = 0; k < weights; k++) line.append(cell(`${i}.${k}`, row.state[k], k));
    for (let k = 0; k < draws; k++) line.append(cell(`${i}.${NOISE + k}`, row.noise[k], weights + k));
    body.append(line);
  });
  box.replaceChildren(body);

  function cell(key: string, weight: number | undefined, place: number): HTMLTableCellElement {
    if (weight === undefined) return fixed("");
    const input = document.createElement("input");
    input.value = String(Number(weight.toPrecision(6)));
    input.inputMode = "decimal";
    input.ariaLabel = `call ${key.split(".")[0]}, ${weighed[place]}`;
    if (key in edits) input.className = "edited";
    input.addEventListener("change", () => {
      try {
        onEdit({ ...edits, [key]: readWeight(input.value) });
      } catch (error) {
        input.value = String(Number(weight.toPrecision(6)));
        say((error as Error).message);
      }
    });
    const found = document.createElement("td");
    found.append(input);
    return found;
  }
}

function fixed(text: string): HTMLTableCellElement {
  const cell = document.createElement("td");
  cell.textContent = text;
  return cell;
}
