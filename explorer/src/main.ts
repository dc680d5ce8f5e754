/** The page: controls to state, state to tables and courses, courses to pictures; all else is in the other files. */

import { DASHES, knotAt, type Look } from "./canvas";
import { Chart, type Curve } from "./charts";
import { listen, listTargets, type Names, showControls } from "./controls";
import { Densities } from "./densities";
import * as engine from "./engine";
import { readNetwork } from "./files";
import { errorCurves, logDensities, noErrors, startState } from "./live";
import { type NetworkDocument, NetworkModel } from "./network";
import { drawLine, drawPictures, drawPlane, LINES, type Panel } from "./panels";
import { samplersOf } from "./samplers";
import { type Served, ServedModel } from "./served";
import { fromHash, FIRST, type State, toHash } from "./state";
import { makeSubject, type Sources } from "./subject";
import { normal, run, type Table } from "./table";
import { edited, showTable } from "./tableview";
import type { ExactModel } from "./targets";
import { describeEnd } from "./words";

const byId = <T extends HTMLElement>(id: string): T => document.getElementById(id) as T;
const read = <T>(id: string): T | null => JSON.parse(document.getElementById(id)?.textContent || "null") as T | null;

const MOST_SERVED = 36; // particles that are asked of another process,
const MOST_OF_A_NETWORK = 600; // and of a network in the page
const SECONDS = 5; // that the way from noise to data takes

const sources: Sources = { network: read<NetworkDocument>("network"), served: read<Served>("checkpoint"), file: null };
const state: State = structuredClone(FIRST);

interface Shown extends Panel {
  table: Table;
}

const densities = new Densities();
const charts = {
  errors: new Chart(byId("errors"), {
    name: "Error against evaluations",
    x: "evaluations of the model",
    y: "error (units of the data)",
    logX: true,
    logY: true,
  }),
  heights: new Chart(byId("heights"), {
    name: "Log density from noise to data",
    x: "share of the way from noise to data",
    y: "mean log density, less exact samples' (nats)",
    logX: false,
    logY: false,
  }),
};
let subject = makeSubject(state, sources);
let laws = lawsOf();
let shown: Shown[] = [];
let course = 0; // counts what is computed, so that what is out of date is dropped
let finished = 0; // the last of them that was computed and measured to its end
let playing = false;
let errors: Curve[] = [];
let heights: Curve[] = [];
let look = readLook();

// --- what is computed ------------------------------------------------------------------------------------------------

async function compute(): Promise<void> {
  const mine = ++course;
  const most =
    subject.model instanceof ServedModel
      ? MOST_SERVED
      : subject.model instanceof NetworkModel
        ? MOST_OF_A_NETWORK
        : Infinity;
  const x = startState(subject, state, Math.min(state.particles, most), state.seed);
  const next: Shown[] = [];
  try {
    for (const [k, one] of samplersOf(state).entries()) {
      const whole = one.table(state.steps);
      const table = k === 0 && !state.beside ? edited(whole, 0, 0, state.edits) : whole;
      const found = await run(table, subject.model, x, normal(state.seed + 1000003));
      if (mine !== course) return;
      next.push({ title: one.title, table, course: found, colour: look.colours[k]! });
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
  [heights, errors] = [[], []];
  showCurves();
  paint();
  await measure(mine);
  if (mine === course) finished = mine;
}

/** Fill the charts, a piece at a time between frames. */
async function measure(mine: number): Promise<void> {
  const { exact } = subject;
  const found: Curve[] = [];
  for (const [k, panel] of shown.entries()) {
    if (!exact) break;
    const points = await logDensities(exact, panel.course);
    if (mine !== course) return;
    found.push({ label: panel.title, colour: panel.colour, dash: DASHES[k]!, mark: k, points });
  }
  heights = found;
  showCurves();
  if (shown.length === 0) return;
  for await (const curves of errorCurves(subject, structuredClone(state), look)) {
    if (mine !== course) return;
    errors = curves;
    showCurves();
  }
}

// --- what is shown ---------------------------------------------------------------------------------------------------

/** Say what became of the computation; what a reader's own input led to is said by ``note``, until the next change. */
function say(text: string): void {
  byId("said").textContent = text;
}

function note(text: string): void {
  byId("noted").textContent = text;
}

function readLook(): Look {
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

/** A figure for each sampler, with what it ended in; and the table. */
function layOut(): void {
  const box = byId("panels");
  while (box.children.length > shown.length) box.lastElementChild!.remove();
  while (box.children.length < shown.length) {
    const [figure, frame] = [document.createElement("figure"), document.createElement("div")];
    frame.className = "frame";
    frame.append(document.createElement("canvas"));
    figure.append(frame, document.createElement("figcaption"));
    box.append(figure);
  }
  const isLine = subject.model.dim === 1 && !subject.shape;
  for (const [name, on] of [
    ["three", shown.length > 1],
    ["wide", shown.length === 1 && isLine],
  ] as const)
    box.classList.toggle(name, on);
  shown.forEach((panel, k) => {
    const figure = box.children[k]!;
    const { short, long } = describeEnd(panel, subject);
    const caption = figure.querySelector("figcaption")!;
    caption.textContent = short;
    caption.style.borderLeftColor = panel.colour;
    const canvas = figure.querySelector("canvas")!;
    canvas.setAttribute("role", "img");
    canvas.ariaLabel = long;
    // Only where keys draw does a picture stand in the order of the Tab key.
    if (state.target === "drawn") canvas.tabIndex = 0;
    else canvas.removeAttribute("tabindex");
  });
  byId("legend").textContent = subject.shape
    ? ""
    : `Dots: the particles, in units of √(signal² + noise²). ` +
      `Bars: their histogram${subject.exact ? "; over it, the exact density" : ""}.` +
      (state.lines ? ` Lines: the way of ${LINES} of them.` : "") +
      (state.density && subject.exact ? " Shade: the density p(x, t) of the Fokker-Planck equation." : "");
  showTable(
    byId("table"),
    shown.length === 1 ? shown[0]!.table : null,
    state.edits,
    (edits) => {
      state.edits = edits;
      changed();
    },
    note,
  );
}

/** The law of each coordinate, for its histogram. */
function lawsOf(): ExactModel[] {
  const { exact } = subject;
  return exact ? Array.from({ length: exact.dim }, (_, axis) => exact.marginal(axis)) : [];
}

function paint(): void {
  const box = byId("panels");
  shown.forEach((panel, k) => {
    const canvas = box.children[k]?.querySelector("canvas");
    if (!canvas) return;
    if (subject.shape) return drawPictures(canvas, panel, state.time, subject.shape);
    const beneath = state.density ? subject.exact : null;
    const { lines } = state;
    if (subject.model.dim === 1) {
      const image = beneath && densities.line(beneath, panel.course, look, String(k));
      drawLine(canvas, panel, state.time, look, { image, laws, lines });
    } else if (subject.model.dim === 2) {
      const image = beneath && densities.plane(beneath, knotAt(panel.course, state.time), look);
      drawPlane(canvas, panel, state.time, look, { image, laws, lines });
    }
  });
  const at = shown[0] && knotAt(shown[0].course, state.time);
  const place = at
    ? `t = ${at.t.toPrecision(3)}, signal ${at.alpha.toPrecision(3)}, noise ${at.sigma.toPrecision(3)}`
    : "";
  byId("where").textContent = place;
  const time = byId<HTMLInputElement>("time");
  time.value = String(state.time);
  time.setAttribute("aria-valuetext", place);
  paintCharts();
}

function showCurves(): void {
  charts.errors.show(
    errors.filter((curve) => curve.points.length > 1),
    noErrors(subject),
  );
  charts.heights.show(heights, subject.exact ? "" : "the density of this target is not known");
  paintCharts();
}

function paintCharts(): void {
  charts.errors.draw(look, shown[0]?.course.nfe);
  charts.heights.draw(look, state.time);
}

// --- changes ---------------------------------------------------------------------------------------------------------

let waiting = 0;

/** Something that the courses depend on has changed. */
function changed(): void {
  note("");
  recompute();
}

function recompute(): void {
  showControls(state);
  remember();
  cancelAnimationFrame(waiting);
  waiting = requestAnimationFrame(() => {
    waiting = 0;
    void compute();
  });
}

/** Wait until all that the state asks for is computed and measured. */
async function settled(): Promise<void> {
  while (waiting !== 0 || finished !== course) await new Promise((go) => setTimeout(go, 20));
}

let remembering = 0;

function remember(): void {
  clearTimeout(remembering);
  remembering = window.setTimeout(writeAddress, 200);
}

function writeAddress(): void {
  clearTimeout(remembering);
  history.replaceState(null, "", `#${toHash(state)}`);
}

function saveTable(table: Table): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(engine.toDocument(table))], { type: "application/json" }));
  link.download = `${table.name}.json`;
  link.click();
  URL.revokeObjectURL(link.href);
}

async function copyLink(): Promise<void> {
  writeAddress();
  try {
    await navigator.clipboard.writeText(location.href);
    note("the link is copied");
  } catch {
    note("the browser does not let the page copy; the address above is the link");
  }
}

function play(go: boolean): void {
  playing = go;
  byId("play").textContent = go ? "Pause" : "Play";
  if (!go) return;
  if (state.time >= 1) {
    state.time = 0;
    paint(); // a key that comes before the first frame finds the slider there
  }
  let before = performance.now();
  const frame = (now: number): void => {
    if (!playing) return;
    state.time = Math.min(1, state.time + Math.max(0, now - before) / (1000 * SECONDS));
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

function retarget(): void {
  subject = makeSubject(state, sources);
  laws = lawsOf();
}

function namesOf(): Names {
  const { network, served, file } = sources;
  return { network: network?.name, checkpoint: served?.name, file: file?.name };
}

/** Show the network of a reader's file; a file that holds none leaves all as it was. */
async function openNetwork(file: File): Promise<void> {
  try {
    const found = readNetwork(file.name, await file.text());
    sources.file = found;
    listTargets(namesOf());
    Object.assign(state, { target: "file", sde: found.sde ?? state.sde, edits: {} });
    retarget();
    changed();
  } catch (error) {
    note(error instanceof Error ? error.message : String(error));
  }
}

/** Take the state of the address, and say what of it could not be taken. */
function follow(): void {
  const { state: found, complaints } = fromHash(location.hash);
  const { served, file } = sources;
  if (served && !location.hash) [found.target, found.sde] = ["checkpoint", served.sde ?? found.sde];
  if ((found.target === "checkpoint" && !served) || (found.target === "file" && !file)) {
    complaints.push(`the link shows a model that is not in this page; open its network here (now: ${FIRST.target})`);
    found.target = FIRST.target;
  }
  Object.assign(state, found);
  note(complaints.join("\n"));
  retarget();
}

follow();
listen(state, namesOf(), {
  changed,
  retarget: () => {
    retarget();
    changed();
  },
  redrawn: () => {
    remember();
    layOut();
    paint();
  },
  scrubbed: () => {
    play(false);
    remember();
    paint();
  },
  play: () => play(!playing),
  link: () => void copyLink(),
  save: () => shown[0] && saveTable(shown[0].table),
  open: (file) => void openNetwork(file),
  say: note,
});
addEventListener("resize", () => paint());
addEventListener("hashchange", () => {
  follow();
  recompute();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  look = readLook();
  recompute();
});
showControls(state);
void compute();
Object.assign(window, {
  scoresde: { ...engine, state, compute, settled, shown: () => shown, errors: () => errors, heights: () => heights },
});
