/** The form beside the picture: from what a person does to the state, and back. */

import { listenToBrush } from "./brush";
import { DIFFUSIONS } from "./diffusions";
import { GRIDS } from "./grids";
import { SOLVERS } from "./solvers";
import type { State } from "./state";
import { TARGETS } from "./targets";

/** What the page does when the state has changed. */
export interface Actions {
  /** Something that the courses depend on. */
  changed(): void;
  /** The target. */
  retarget(): void;
  /** What is drawn, not what is computed. */
  redrawn(): void;
  scrubbed(): void;
  play(): void;
  link(): void;
  save(): void;
  /** A file of the reader's was chosen. */
  open(file: File): void;
  say(text: string): void;
}

/** What the page's own network, the checkpoint and the opened file are called; undefined where there is none. */
export interface Names {
  network: string | undefined;
  checkpoint: string | undefined;
  file: string | undefined;
}

const byId = <T extends HTMLElement>(id: string): T => document.getElementById(id) as T;

function fill(select: HTMLSelectElement, options: [string, string][]): void {
  select.replaceChildren(...options.map(([value, label]) => new Option(label, value)));
}

/** Show the state in the controls. */
export function showControls(state: State): void {
  const solver = SOLVERS[state.solver]!;
  byId<HTMLSelectElement>("target").value = state.target;
  for (const id of ["sde", "solver", "grid"] as const) byId<HTMLSelectElement>(id).value = state[id];
  byId("eta-row").hidden = !solver.eta || state.beside;
  const eta = byId<HTMLInputElement>("eta");
  if (solver.eta) [eta.max, eta.value] = [String(solver.eta[1]), String(state.eta ?? solver.eta[0])];
  byId("eta-value").textContent = eta.value;
  for (const id of ["steps", "particles", "bend", "brush"] as const) {
    byId<HTMLInputElement>(id).value = String(state[id]);
    byId(`${id}-value`).textContent = id === "bend" ? `${(100 * state[id]).toFixed(0)} %` : String(state[id]);
  }
  for (const id of ["beside", "density", "lines"] as const) byId<HTMLInputElement>(id).checked = state[id];
  byId<HTMLSelectElement>("bent").value = String(state.bent);
  byId("brush-row").hidden = state.target !== "drawn";
  byId("draw-hint").hidden = state.target !== "drawn";
  byId("panels").classList.toggle("drawing", state.target === "drawn");
  byId("reset").hidden = Object.keys(state.edits).length === 0 && state.bend === 0;
}

/** List the targets that there are. */
export function listTargets(names: Names): void {
  const more: [string, string | undefined][] = [
    ["network", names.network],
    ["checkpoint", names.checkpoint],
    ["file", names.file],
  ];
  fill(byId("target"), [
    ...Object.entries(TARGETS).map(([key, { label }]): [string, string] => [key, label]),
    ["drawn", "draw your own"],
    ...more.filter((one): one is [string, string] => one[1] !== undefined),
  ]);
}

/** Tie the controls to the state. */
export function listen(state: State, names: Names, act: Actions): void {
  listTargets(names);
  fill(
    byId("sde"),
    Object.entries(DIFFUSIONS).map(([key, one]) => [key, one.label]),
  );
  fill(
    byId("solver"),
    Object.entries(SOLVERS).map(([key, one]) => [key, one.label]),
  );
  fill(byId("grid"), [
    ["own", "the solver's own"],
    ...Object.entries(GRIDS).map(([key, one]): [string, string] => [key, one.label]),
  ]);
  const on = (id: string, use: (input: HTMLInputElement) => void): void =>
    byId(id).addEventListener("input", (event) => use(event.target as HTMLInputElement));
  on("target", ({ value }) => {
    state.target = value;
    if (value === "drawn" && state.drawn.length === 0) state.drawn = [-1, 0.6, -0.4, -0.5, 0.3, 0.9, 1.1, -0.3];
    state.edits = {};
    act.retarget();
  });
  for (const id of ["sde", "solver", "grid"] as const)
    on(id, ({ value }) => {
      Object.assign(state, { [id]: value, eta: id === "solver" ? null : state.eta, edits: {} });
      act.changed();
    });
  for (const id of ["steps", "particles", "eta", "bend", "brush"] as const)
    on(id, ({ value }) => {
      Object.assign(state, { [id]: Number(value), ...(id === "steps" || id === "eta" ? { edits: {} } : {}) });
      if (id === "brush") act.retarget();
      else act.changed();
    });
  on("bent", ({ value }) => {
    state.bent = Number(value);
    act.changed();
  });
  on("beside", ({ checked }) => {
    state.beside = checked;
    act.changed();
  });
  for (const id of ["density", "lines"] as const)
    on(id, ({ checked }) => {
      state[id] = checked;
      act.redrawn();
    });
  on("time", ({ value }) => {
    state.time = Number(value);
    act.scrubbed();
  });
  byId("play").addEventListener("click", act.play);
  byId("link").addEventListener("click", act.link);
  byId("save").addEventListener("click", act.save);
  byId("noise").addEventListener("click", () => {
    state.seed += 1;
    act.changed();
  });
  byId("reset").addEventListener("click", () => {
    [state.edits, state.bend] = [{}, 0];
    act.changed();
  });
  const file = byId<HTMLInputElement>("file");
  byId("open").addEventListener("click", () => file.click());
  file.addEventListener("change", () => {
    if (file.files?.[0]) act.open(file.files[0]);
    file.value = ""; // so that the same file may be opened again
  });
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    if (event.dataTransfer?.files[0]) act.open(event.dataTransfer.files[0]);
  });
  listenToBrush(state, byId("panels"), act);
}
