/** The page: controls to state, state to tables and courses, courses to pictures; all else is in the other files. */

import { DIFFUSIONS, type Diffusion, knot } from "./diffusions";
import * as draw from "./draw";
import * as engine from "./engine";
import * as measures from "./measures";
import { NetworkModel, type NetworkDocument } from "./network";
import { ancestralRows, jump } from "./onestep";
import { listen, showControls } from "./controls";
import { type Served, ServedModel } from "./served";
import { buildTable, SOLVERS } from "./solvers";
import { FIRST, fromHash, type State, toHash } from "./state";
import { breathe, normal, run, type Table } from "./table";
import { edited, showTable } from "./tableview";
import { makeSubject } from "./subject";
import { ExactModel } from "./targets";

const byId = <T extends HTMLElement>(id: string): T => document.getElementById(id) as T;
const read = <T>(id: string): T | null => JSON.parse(document.getElementById(id)?.textContent || "null") as T | null;

const network = read<NetworkDocument>("network");
const served = read<Served>("checkpoint");
const state: State = fromHash(location.hash);
if (served && !location.hash) [state.target, state.sde] = ["checkpoint", served.sde ?? state.sde];
if (!served && state.target === "checkpoint") state.target = FIRST.target;

interface Shown extends draw.Panel {
  table: Table;
  dash: number[];
}

const densities = new draw.Densities();
let subject = makeSubject(state, network, served);
let shown: Shown[] = [];
let course = 0; // counts what is computed, so that what is out of date is dropped
let playing = false;
let errors: { curves: draw.Curve[]; note: string } = { curves: [], note: "" };
let heights: draw.Curve[] = [];
let look = readLook();

const isExact = (): boolean => subject.model instanceof ExactModel;

function sde(): Diffusion {
  return DIFFUSIONS[state.sde]!;
}

function tableOf(solver: string, steps: number, eta = state.eta): Table {
  const grid = state.grid === "own" ? undefined : state.grid;
  const known = SOLVERS[solver]!.eta;
  return buildTable({ solver, sde: sde(), steps, grid, eta: known ? (eta ?? known[0]) : undefined });
}

/** The discrete chain of n steps: DDPM's knots i/n of the diffusion, its posterior step at each. */
function chain(steps: number): Table {
  const times = Array.from({ length: steps }, (_, i) => (sde().tMax * (steps - i)) / steps);
  const last = knot(sde(), times[steps - 1]!);
  const rows = [...ancestralRows(1, sde(), times), jump("data", last)];
  return {
    name: "chain",
    prediction: "data",
    rows,
    start: knot(sde(), times[0]!),
    end: { t: 0, alpha: 1, sigma: 0 },
    prior_std: sde().priorStd(times[0]!),
  };
}

function flowSolver(): string {
  return SOLVERS[state.solver]!.eta ? "flow_abm" : state.solver;
}

/** What stands on the page: (title, table for a number of steps). */
function samplers(): { title: string; short: string; table: (steps: number) => Table }[] {
  const bent = (table: Table): Table => edited(table, state.bent, state.bend, {});
  if (!state.beside) {
    const eta = SOLVERS[state.solver]!.eta;
    const title = `${state.solver}${eta ? `, eta = ${state.eta ?? eta[0]}` : ""}`;
    return [{ title, short: state.solver, table: (n) => bent(tableOf(state.solver, n)) }];
  }
  return [
    { title: "the chain (DDPM)", short: "chain", table: (n) => bent(chain(n)) },
    { title: "the SDE (Euler-Maruyama)", short: "SDE", table: (n) => bent(tableOf("euler_maruyama", n, 1)) },
    { title: `the flow (${flowSolver()})`, short: "flow", table: (n) => bent(tableOf(flowSolver(), n)) },
  ];
}

/** The start state: one noise for all, scaled to the diffusion's prior. */
function start(n: number, seed: number): Float64Array {
  const size = subject.shape ? subject.shape.reduce((a, b) => a * b) : subject.model.dim;
  const z = new Float64Array(n * size);
  normal(seed)(z);
  if (subject.exact && isExact()) {
    const { mean, std } = subject.exact.prior(sde());
    return z.map((v, i) => mean[i % size]! + std[i % size]! * v);
  }
  return z.map((v) => sde().priorStd(sde().tMax) * v);
}

async function compute(): Promise<void> {
  const mine = ++course;
  const count =
    subject.model instanceof ServedModel
      ? Math.min(state.particles, 36)
      : subject.model instanceof NetworkModel
        ? Math.min(state.particles, 600)
        : state.particles;
  const x = start(count, state.seed);
  const next: Shown[] = [];
  try {
    for (const [k, one] of samplers().entries()) {
      const table =
        k === 0 && !state.beside ? edited(one.table(state.steps), 0, 0, state.edits) : one.table(state.steps);
      const found = await run(table, subject.model, x, normal(state.seed + 1000003));
      if (mine !== course) return;
      next.push({ title: one.title, table, course: found, colour: look.colours[k]!, dash: draw.DASHES[k]! });
    }
    say("");
  } catch (error) {
    if (mine !== course) return;
    say(error instanceof Error ? error.message : String(error));
    next.length = 0;
  }
  shown = next;
  densities.forget();
  layOut();
  heights = [];
  paint();
  await measureHeights(mine);
  await measureErrors(mine);
}

/** The mean of log p_t over the particles less that over exact samples at the same time. */
async function measureHeights(mine: number): Promise<void> {
  const { exact } = subject;
  if (!exact) return;
  const n = 400;
  const clean = exact.sample(n, 5);
  const z = new Float64Array(clean.length);
  normal(6)(z);
  const mean = (v: Float64Array): number => v.reduce((a, b) => a + b, 0) / v.length;
  const found: draw.Curve[] = [];
  for (const panel of shown) {
    const points: [number, number][] = [];
    for (const [k, x] of panel.course.states.entries()) {
      await breathe();
      if (mine !== course) return;
      const at = panel.course.at[k]!;
      const right = mean(
        exact.logDensity(
          clean.map((c, i) => at.alpha * c + at.sigma * z[i]!),
          at,
        ),
      );
      points.push([
        k / (panel.course.states.length - 1),
        mean(exact.logDensity(x.subarray(0, n * exact.dim), at)) - right,
      ]);
    }
    found.push({ label: panel.title, colour: panel.colour, dash: panel.dash, points });
  }
  heights = found;
  paintCharts();
}

/** Measure the error of each sampler at many numbers of evaluations, a piece at a time between frames. */
async function measureErrors(mine: number): Promise<void> {
  errors = { curves: [], note: "" };
  const { exact } = subject;
  if (subject.model instanceof ServedModel) {
    errors.note = "errors are measured on targets and networks in the page";
    return paint();
  }
  const n = isExact() ? 400 : 100;
  const x = start(n, 77);
  const curves: draw.Curve[] = [];
  for (const [k, one] of samplers().entries()) {
    const noisy = measures.isNoisy(one.table(3));
    if (noisy && !exact) continue;
    const [starts, truth] = noisy ? [start(1000, 78), exact!.sample(1000, 71)] : [x, await flow(x)];
    const least = noisy ? measures.floor(exact!, 1000) : 0;
    const curve: draw.Curve = { label: "", colour: look.colours[k]!, dash: draw.DASHES[k]!, points: [] };
    curves.push(curve);
    for (const steps of measures.COUNTS) {
      await breathe();
      if (mine !== course) return;
      try {
        const { states, nfe } = await run(one.table(steps), subject.model, starts, normal(79));
        const end = states.at(-1)!;
        const error = noisy ? measures.sliced(end, truth, exact!.dim) : measures.rms(end, truth);
        if (Number.isFinite(error)) curve.points.push([nfe, error]);
      } catch {
        continue; // a number of steps that the method cannot make
      }
      const order = measures.slope(curve.points, least);
      const kind = noisy
        ? `of the law (two exact sets: ${least.toPrecision(2)})`
        : `to the exact flow${order === null ? "" : `, slope ${order.toFixed(1)}`}`;
      curve.label = `${one.short}, ${kind}`;
      errors = { curves, note: "" };
      paintCharts();
    }
  }
}

let flowKept: { key: string; x: Float64Array } | null = null;

async function flow(x: Float64Array): Promise<Float64Array> {
  const key = JSON.stringify([state.target, state.drawn, state.brush, state.sde, x.length]);
  if (flowKept?.key !== key) flowKept = { key, x: await measures.flowFrom(subject.model, sde(), x) };
  return flowKept.x;
}

function say(text: string): void {
  byId("said").textContent = text;
}

// --- pictures -------------------------------------------------------------------------------------------------------

function readLook(): draw.Look {
  const style = getComputedStyle(document.documentElement);
  const value = (name: string): string => style.getPropertyValue(name).trim();
  const rgb = (name: string): [number, number, number] =>
    value(name).split(",").map(Number) as [number, number, number];
  return {
    ink: value("--ink"),
    grey: value("--grey"),
    ground: value("--ground"),
    colours: [1, 2, 3].map((k) => value(`--curve-${k}`)),
    low: rgb("--density-low"),
    high: rgb("--density-high"),
  };
}

function layOut(): void {
  const box = byId("panels");
  while (box.children.length > shown.length) box.lastElementChild!.remove();
  while (box.children.length < shown.length) {
    const figure = document.createElement("figure");
    figure.append(document.createElement("canvas"), document.createElement("figcaption"));
    box.append(figure);
  }
  box.className = shown.length > 1 ? "three" : subject.model.dim === 1 && !subject.shape ? "wide" : "one";
  shown.forEach((panel, k) => {
    const caption = box.children[k]!.querySelector("figcaption")!;
    caption.textContent = `${panel.title}: ${panel.course.nfe} evaluations`;
    caption.style.borderLeftColor = panel.colour;
  });
  showTable(byId("table"), shown.length === 1 ? shown[0]!.table : null, state.edits, (edits) => {
    state.edits = edits;
    changed();
  });
}

function paint(): void {
  const box = byId("panels");
  shown.forEach((panel, k) => {
    const canvas = box.children[k]?.querySelector("canvas");
    if (!canvas) return;
    const beneath = state.density ? subject.exact : null;
    const at = draw.knotAt(panel.course, state.time);
    if (subject.shape) draw.drawPictures(canvas, panel, state.time, subject.shape);
    else if (subject.model.dim === 1)
      draw.drawLine(
        canvas,
        panel,
        state.time,
        look,
        subject.exact,
        beneath && densities.line(beneath, panel.course, look, String(k)),
        state.lines,
      );
    else if (subject.model.dim === 2)
      draw.drawPlane(canvas, panel, state.time, look, beneath && densities.plane(beneath, at, look), state.lines);
  });
  const at = shown[0] && draw.knotAt(shown[0].course, state.time);
  byId("where").textContent = at
    ? `t = ${at.t.toPrecision(3)}, signal ${at.alpha.toPrecision(3)}, noise ${at.sigma.toPrecision(3)}`
    : "";
  byId<HTMLInputElement>("time").value = String(state.time);
  paintCharts();
}

function paintCharts(): void {
  const nfe = shown[0]?.course.nfe;
  draw.drawChart(
    byId("errors"),
    errors.curves.filter((c) => c.points.length > 1),
    { x: "evaluations of the model", y: "error", logX: true, logY: true, ...(nfe ? { at: nfe } : {}) },
    look,
    errors.note,
  );
  draw.drawChart(
    byId("heights"),
    heights,
    {
      x: "from noise to data",
      y: "mean log density, less exact samples' (nats)",
      logX: false,
      logY: false,
      at: state.time,
    },
    look,
    subject.exact ? "" : "the density of this target is not known",
  );
}

// --- changes ---------------------------------------------------------------------------------------------------------

let waiting = 0;

/** Something that the courses depend on has changed. */
function changed(): void {
  showControls(state);
  remember();
  cancelAnimationFrame(waiting);
  waiting = requestAnimationFrame(() => void compute());
}

let remembering = 0;

function remember(): void {
  clearTimeout(remembering);
  remembering = window.setTimeout(() => history.replaceState(null, "", `#${toHash(state)}`), 200);
}

function saveTable(table: Table): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(engine.toDocument(table))], { type: "application/json" }));
  link.download = `${table.name}.json`;
  link.click();
}

function play(go: boolean): void {
  playing = go;
  byId("play").textContent = go ? "Pause" : "Play";
  if (!go) return;
  if (state.time >= 1) state.time = 0;
  let before = performance.now();
  const frame = (now: number): void => {
    if (!playing) return;
    state.time = Math.min(1, state.time + (now - before) / 5000);
    before = now;
    paint();
    if (state.time < 1) requestAnimationFrame(frame);
    else {
      play(false);
      remember();
    }
  };
  requestAnimationFrame(frame);
}

/** Another target, or another link. */
function retarget(): void {
  subject = makeSubject(state, network, served);
  changed();
}

listen(
  state,
  { network: network?.name, checkpoint: served?.name },
  {
    changed,
    retarget,
    redrawn: () => {
      remember();
      paint();
    },
    scrubbed: () => {
      play(false);
      remember();
      paint();
    },
    play: () => play(!playing),
    link: () => {
      history.replaceState(null, "", `#${toHash(state)}`);
      void navigator.clipboard?.writeText(location.href).then(() => say("the link is copied"));
    },
    save: () => shown[0] && saveTable(shown[0].table),
  },
);
addEventListener("resize", () => paint());
addEventListener("hashchange", () => {
  Object.assign(state, fromHash(location.hash));
  retarget();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  look = readLook();
  changed();
});
showControls(state);
void compute();
Object.assign(window, { scoresde: { ...engine, state, compute, shown: () => shown, errors: () => errors } });
