/** The canvases: particles over the density on the plane, paths over it on a line, pictures, and charts. */

import type { Knot } from "./diffusions";
import type { Course } from "./table";
import type { ExactModel } from "./targets";

export interface Look {
  ink: string;
  grey: string;
  ground: string;
  colours: string[];
  /** Red, green, blue of the ground and of the densest place. */
  low: [number, number, number];
  high: [number, number, number];
}

export const DASHES: number[][] = [[], [7, 4], [2, 3]];
const REACH = 2.7; // the plane and the line are shown from -REACH to REACH, in units of sqrt(alpha^2 + sigma^2)
const SIDE = 84;

/** Set a canvas to its size on the screen; return what draws on it in CSS pixels. */
export function prepare(canvas: HTMLCanvasElement): { pen: CanvasRenderingContext2D; width: number; height: number } {
  const ratio = Math.min(2, window.devicePixelRatio || 1);
  const { clientWidth: width, clientHeight: height } = canvas;
  const [w, h] = [Math.round(width * ratio), Math.round(height * ratio)];
  if (canvas.width !== w || canvas.height !== h) [canvas.width, canvas.height] = [w, h];
  const pen = canvas.getContext("2d")!;
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  pen.font = "12px system-ui, sans-serif";
  return { pen, width, height };
}

function scaleAt(at: Knot): number {
  return 1 / Math.hypot(at.alpha, at.sigma);
}

/** The state at a share of the way, between the rows, in units of sqrt(alpha^2 + sigma^2). */
export function stateAt(course: Course, share: number): Float64Array {
  const place = share * (course.states.length - 1);
  const k = Math.min(Math.floor(place), course.states.length - 2);
  const [a, b] = [course.states[k]!, course.states[k + 1]!];
  const [sa, sb] = [scaleAt(course.at[k]!), scaleAt(course.at[k + 1]!)];
  const w = place - k;
  return a.map((v, i) => (1 - w) * v * sa + w * b[i]! * sb);
}

export function knotAt(course: Course, share: number): Knot {
  const place = share * (course.at.length - 1);
  const k = Math.min(Math.floor(place), course.at.length - 2);
  const [a, b, w] = [course.at[k]!, course.at[k + 1]!, place - k];
  const mix = (p: number, q: number): number => (1 - w) * p + w * q;
  // Levels are mixed by their logarithm where they can be.
  const sigma =
    a.sigma > 0 && b.sigma > 0 ? Math.exp(mix(Math.log(a.sigma), Math.log(b.sigma))) : mix(a.sigma, b.sigma);
  return { t: mix(a.t, b.t), alpha: mix(a.alpha, b.alpha), sigma };
}

/** Densities as images, kept for each model and time slice. */
export class Densities {
  private readonly kept = new Map<string, HTMLCanvasElement>();
  private model: ExactModel | null = null;
  private look: Look | null = null;

  plane(model: ExactModel, at: Knot, look: Look): HTMLCanvasElement {
    // Slices even in the share of the noise: what lies between looks the same.
    const slice = Math.round(48 * (at.sigma / (at.alpha + at.sigma)));
    const share = Math.max(slice / 48, 1e-4);
    return this.keep(`plane ${slice}`, model, look, () => {
      const [alpha, sigma] = [1 - share, share];
      const r = Math.hypot(alpha, sigma);
      const x = new Float64Array(2 * SIDE * SIDE);
      for (let i = 0; i < SIDE; i++)
        for (let j = 0; j < SIDE; j++) {
          x[2 * (i * SIDE + j)] = r * REACH * ((2 * (j + 0.5)) / SIDE - 1);
          x[2 * (i * SIDE + j) + 1] = -r * REACH * ((2 * (i + 0.5)) / SIDE - 1);
        }
      return paint(model.logDensity(x, { t: 0, alpha, sigma }), SIDE, SIDE, look);
    });
  }

  line(model: ExactModel, course: Course, look: Look, name: string): HTMLCanvasElement {
    return this.keep(`line ${name}`, model, look, () => {
      const columns = 160;
      const image = new Float64Array(columns * SIDE);
      for (let c = 0; c < columns; c++) {
        const at = knotAt(course, (c + 0.5) / columns);
        const r = Math.hypot(at.alpha, at.sigma);
        const y = Float64Array.from({ length: SIDE }, (_, i) => -r * REACH * ((2 * (i + 0.5)) / SIDE - 1));
        const density = model.logDensity(y, { ...at, sigma: Math.max(at.sigma, 1e-3) });
        const top = Math.max(...density);
        density.forEach((v, i) => (image[i * columns + c] = v - top));
      }
      return paint(image, columns, SIDE, look);
    });
  }

  private keep(key: string, model: ExactModel, look: Look, make: () => HTMLCanvasElement): HTMLCanvasElement {
    if (this.model !== model || this.look !== look) this.kept.clear();
    [this.model, this.look] = [model, look];
    const found = this.kept.get(key) ?? make();
    this.kept.set(key, found);
    return found;
  }

  forget(): void {
    this.kept.clear();
  }
}

function paint(log: Float64Array, width: number, height: number, look: Look): HTMLCanvasElement {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width, height];
  const pen = canvas.getContext("2d")!;
  const image = pen.createImageData(width, height);
  let top = -Infinity;
  for (const v of log) top = Math.max(top, v);
  log.forEach((v, i) => {
    const share = Math.exp(0.6 * (v - top));
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = look.low[c]! + share * (look.high[c]! - look.low[c]!);
    image.data[4 * i + 3] = 255;
  });
  pen.putImageData(image, 0, 0);
  return canvas;
}

export interface Panel {
  title: string;
  course: Course;
  colour: string;
}

const LINES = 48;

export function drawPlane(
  canvas: HTMLCanvasElement,
  panel: Panel,
  share: number,
  look: Look,
  beneath: HTMLCanvasElement | null,
  lines: boolean,
): void {
  const { pen, width, height } = prepare(canvas);
  const side = Math.min(width, height);
  const [left, top] = [(width - side) / 2, (height - side) / 2];
  if (beneath) {
    pen.imageSmoothingEnabled = true;
    pen.drawImage(beneath, left, top, side, side);
  }
  const px = (x: number): number => left + (side * (x / REACH + 1)) / 2;
  const py = (y: number): number => top + (side * (1 - y / REACH)) / 2;
  const { states, at } = panel.course;
  const now = stateAt(panel.course, share);
  if (lines) {
    pen.strokeStyle = look.ink;
    pen.globalAlpha = 0.35;
    pen.lineWidth = 1;
    const upTo = Math.floor(share * (states.length - 1));
    pen.beginPath();
    for (let i = 0; i < Math.min(LINES, now.length / 2); i++) {
      for (let k = 0; k <= upTo; k++) {
        const s = scaleAt(at[k]!);
        const [x, y] = [px(s * states[k]![2 * i]!), py(s * states[k]![2 * i + 1]!)];
        if (k === 0) pen.moveTo(x, y);
        else pen.lineTo(x, y);
      }
      pen.lineTo(px(now[2 * i]!), py(now[2 * i + 1]!));
    }
    pen.stroke();
    pen.globalAlpha = 1;
  }
  pen.fillStyle = panel.colour;
  const dot = now.length > 4000 ? 1.6 : 2.2;
  for (let i = 0; i < now.length; i += 2) pen.fillRect(px(now[i]!) - dot / 2, py(now[i + 1]!) - dot / 2, dot, dot);
}

export function drawLine(
  canvas: HTMLCanvasElement,
  panel: Panel,
  share: number,
  look: Look,
  model: ExactModel | null,
  beneath: HTMLCanvasElement | null,
  lines: boolean,
): void {
  const { pen, width, height } = prepare(canvas);
  const strip = Math.max(60, 0.2 * width);
  const wide = width - strip;
  if (beneath) pen.drawImage(beneath, 0, 0, wide, height);
  const py = (y: number): number => (height * (1 - y / REACH)) / 2;
  const { states, at } = panel.course;
  const now = stateAt(panel.course, share);
  const last = states.length - 1;
  if (lines) {
    pen.strokeStyle = look.ink;
    pen.globalAlpha = 0.4;
    pen.beginPath();
    for (let i = 0; i < Math.min(LINES, now.length); i++) {
      for (let k = 0; k <= Math.floor(share * last); k++) {
        const [x, y] = [(wide * k) / last, py(scaleAt(at[k]!) * states[k]![i]!)];
        if (k === 0) pen.moveTo(x, y);
        else pen.lineTo(x, y);
      }
      pen.lineTo(wide * share, py(now[i]!));
    }
    pen.stroke();
    pen.globalAlpha = 1;
  }
  pen.fillStyle = panel.colour;
  for (const y of now) pen.fillRect(wide * share - 1, py(y) - 1, 2, 2);
  drawHistogram(pen, now, wide, strip, height, py, panel, share, look, model);
}

/** The particles' histogram on the right, and the density that it should have. */
function drawHistogram(
  pen: CanvasRenderingContext2D,
  now: Float64Array,
  left: number,
  strip: number,
  height: number,
  py: (y: number) => number,
  panel: Panel,
  share: number,
  look: Look,
  model: ExactModel | null,
): void {
  const bins = 60;
  const counts = new Float64Array(bins);
  for (const y of now) {
    const k = Math.floor((bins * (y / REACH + 1)) / 2);
    if (k >= 0 && k < bins) counts[k]!++;
  }
  const each = (2 * REACH) / bins;
  const heights = counts.map((c) => c / (now.length * each));
  const at = knotAt(panel.course, share);
  const r = Math.hypot(at.alpha, at.sigma);
  const ys = Float64Array.from({ length: 240 }, (_, i) => REACH * ((2 * i) / 239 - 1));
  const exact =
    model
      ?.logDensity(
        ys.map((y) => r * y),
        at,
      )
      .map((v) => r * Math.exp(v)) ?? new Float64Array();
  const most = 1.05 * Math.max(...heights, ...exact, 1e-9);
  const px = (d: number): number => left + 6 + ((strip - 10) * d) / most;
  pen.fillStyle = panel.colour;
  pen.globalAlpha = 0.55;
  heights.forEach((d, k) => {
    const top = py(-REACH + (k + 1) * each);
    pen.fillRect(left + 6, top, px(d) - left - 6, (height / bins) * 0.9);
  });
  pen.globalAlpha = 1;
  if (exact.length > 0) {
    pen.strokeStyle = look.ink;
    pen.lineWidth = 1.5;
    pen.beginPath();
    ys.forEach((y, i) => (i === 0 ? pen.moveTo(px(exact[i]!), py(y)) : pen.lineTo(px(exact[i]!), py(y))));
    pen.stroke();
  }
}

/** Pictures (C, H, W) of a model of images, the first as many as fit. */
export function drawPictures(canvas: HTMLCanvasElement, panel: Panel, share: number, shape: number[]): void {
  const { pen, width, height } = prepare(canvas);
  const [channels, rows, columns] = shape as [number, number, number];
  const now = stateAt(panel.course, share);
  const size = channels * rows * columns;
  const count = now.length / size;
  const across = Math.ceil(Math.sqrt((count * width) / height));
  const cell = Math.min(width / across, height / Math.ceil(count / across));
  pen.imageSmoothingEnabled = false;
  const one = document.createElement("canvas");
  [one.width, one.height] = [columns, rows];
  const ink = one.getContext("2d")!;
  for (let n = 0; n < count; n++) {
    const image = ink.createImageData(columns, rows);
    for (let i = 0; i < rows * columns; i++)
      for (let c = 0; c < 4; c++) {
        const value = now[n * size + (channels === 3 ? Math.min(c, 2) : 0) * rows * columns + i]!;
        image.data[4 * i + c] = c === 3 ? 255 : 127.5 * (value + 1);
      }
    ink.putImageData(image, 0, 0);
    pen.drawImage(one, (n % across) * cell + 1, Math.floor(n / across) * cell + 1, cell - 2, cell - 2);
  }
}

export interface Curve {
  label: string;
  colour: string;
  dash: number[];
  points: [number, number][];
  marks?: boolean;
}

export interface Axes {
  x: string;
  y: string;
  logX: boolean;
  logY: boolean;
  /** A place on the x axis to mark. */
  at?: number;
}

/** A chart of curves with labels beside a line of their own look. */
export function drawChart(canvas: HTMLCanvasElement, curves: Curve[], axes: Axes, look: Look, note = ""): void {
  const { pen, width, height } = prepare(canvas);
  const [left, bottom, top, right] = [52, 34, 16 + 16 * curves.length, 12];
  const all = curves
    .flatMap((c) => c.points)
    .filter(([x, y]) => Number.isFinite(x) && Number.isFinite(y) && (!axes.logY || y > 0));
  pen.fillStyle = look.ink;
  if (all.length < 2) {
    pen.fillText(note || "computing ...", left, height / 2);
    return;
  }
  const fx = axes.logX ? Math.log10 : (v: number): number => v;
  const fy = axes.logY ? Math.log10 : (v: number): number => v;
  const span = (values: number[]): [number, number] => {
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const pad = 0.05 * (high - low) || 0.5;
    return [low - pad, high + pad];
  };
  const [x0, x1] = span(all.map(([x]) => fx(x)));
  const [y0, y1] = span(all.map(([, y]) => fy(y)));
  const px = (x: number): number => left + ((width - left - right) * (fx(x) - x0)) / (x1 - x0);
  const py = (y: number): number => height - bottom - ((height - bottom - top) * (fy(y) - y0)) / (y1 - y0);
  pen.strokeStyle = pen.fillStyle = look.grey;
  pen.lineWidth = 1;
  pen.textAlign = "center";
  for (const x of ticks(x0, x1, axes.logX)) {
    pen.globalAlpha = 0.3;
    line(pen, px(x), top, px(x), height - bottom);
    pen.globalAlpha = 1;
    pen.fillText(short(x), px(x), height - bottom + 14);
  }
  pen.textAlign = "right";
  for (const y of ticks(y0, y1, axes.logY)) {
    pen.globalAlpha = 0.3;
    line(pen, left, py(y), width - right, py(y));
    pen.globalAlpha = 1;
    pen.fillText(short(y), left - 5, py(y) + 4);
  }
  pen.fillStyle = look.ink;
  pen.textAlign = "center";
  pen.fillText(axes.x, (left + width - right) / 2, height - 4);
  pen.textAlign = "left";
  pen.fillText(axes.y, 4, 12);
  if (axes.at !== undefined) {
    pen.strokeStyle = look.ink;
    pen.setLineDash([3, 3]);
    line(pen, px(axes.at), top, px(axes.at), height - bottom);
  }
  curves.forEach((curve, k) => {
    pen.strokeStyle = pen.fillStyle = curve.colour;
    pen.lineWidth = 2;
    pen.setLineDash(curve.dash);
    const y = 28 + 16 * k;
    line(pen, left, y - 4, left + 26, y - 4);
    pen.beginPath();
    curve.points.forEach(([a, b], i) => (i === 0 ? pen.moveTo(px(a), py(b)) : pen.lineTo(px(a), py(b))));
    pen.stroke();
    pen.setLineDash([]);
    if (curve.marks !== false) for (const [a, b] of curve.points) pen.fillRect(px(a) - 2.5, py(b) - 2.5, 5, 5);
    pen.fillStyle = look.ink;
    pen.fillText(curve.label, left + 32, y);
  });
}

function line(pen: CanvasRenderingContext2D, a: number, b: number, c: number, d: number): void {
  pen.beginPath();
  pen.moveTo(a, b);
  pen.lineTo(c, d);
  pen.stroke();
}

function ticks(low: number, high: number, log: boolean): number[] {
  if (log) {
    const whole = Array.from({ length: Math.floor(high) - Math.ceil(low) + 1 }, (_, k) => Math.ceil(low) + k);
    const places =
      high - low < 2.5
        ? whole.concat(Math.floor(low)).flatMap((k) => [k, k + Math.log10(2), k + Math.log10(5)])
        : whole;
    const kept = places.filter((v) => v >= low && v <= high);
    const every = Math.ceil(kept.length / 7);
    return kept.filter((_, i) => i % every === 0).map((v) => 10 ** v);
  }
  const rough = (high - low) / 5;
  const unit = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * unit).find((s) => s >= rough)!;
  const first = Math.ceil(low / step);
  return Array.from({ length: Math.floor(high / step) - first + 1 }, (_, k) => (first + k) * step);
}

function short(v: number): string {
  if (v === 0) return "0";
  const size = Math.abs(v);
  return size >= 1e-3 && size < 1e4 ? String(Number(v.toPrecision(3))) : v.toExponential(0);
}
