/** The pictures of a course: particles on the plane, paths on a line, each with histograms; pictures as pictures. */

import { knotAt, type Look, placeOf, planeBox, prepare, REACH, scaleAt, stateAt } from "./canvas";
import type { Course } from "./table";
import type { ExactModel } from "./targets";

export interface Panel {
  title: string;
  course: Course;
  colour: string;
}

/** What lies beneath the particles and beside them: nothing of it where the density is not known. */
export interface Beneath {
  image: HTMLCanvasElement | null;
  /** The law of each coordinate, for the curve over its histogram. */
  laws: ExactModel[];
  lines: boolean;
}

export const LINES = 48; // particles whose way is drawn
const BINS = 60;
const GAP = 5; // pixels between a picture and its histogram
const TICKS = [-2, -1, 0, 1, 2];

export function drawPlane(canvas: HTMLCanvasElement, panel: Panel, share: number, look: Look, under: Beneath): void {
  const { pen, width, height } = prepare(canvas);
  const { left, top, side } = planeBox(width, height);
  const px = (x: number): number => placeOf(x, 0, width, height)[0];
  const py = (y: number): number => placeOf(0, y, width, height)[1];
  const { states, at } = panel.course;
  const now = stateAt(panel.course, share);
  pen.save();
  pen.beginPath();
  pen.rect(left, top, side, side);
  pen.clip();
  if (under.image) pen.drawImage(under.image, left, top, side, side);
  if (under.lines) {
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
  pen.restore();
  pen.fillStyle = pen.strokeStyle = look.grey;
  pen.strokeRect(left + 0.5, top + 0.5, side - 1, side - 1);
  tickMarks(pen, look, "x", px, top + side);
  tickMarks(pen, look, "y", py, left);
  for (const axis of [0, 1]) {
    const strip: Strip =
      axis === 0
        ? { place: px, out: (h) => top - GAP - h * (top - GAP - 2), along: "x" }
        : { place: py, out: (h) => left + side + GAP + h * (width - 2 * left - side - GAP - 2), along: "y" };
    drawHistogram(pen, now, axis, 2, strip, panel, share, look, under.laws[axis]);
  }
}

export function drawLine(canvas: HTMLCanvasElement, panel: Panel, share: number, look: Look, under: Beneath): void {
  const { pen, width, height } = prepare(canvas);
  const strip = Math.max(56, 0.2 * width);
  const wide = width - strip;
  if (under.image) pen.drawImage(under.image, 0, 0, wide, height);
  const py = (y: number): number => (height * (1 - y / REACH)) / 2;
  const { states, at } = panel.course;
  const now = stateAt(panel.course, share);
  const last = states.length - 1;
  if (under.lines) {
    pen.strokeStyle = look.ink;
    pen.globalAlpha = 0.4;
    pen.lineWidth = 1;
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
  pen.strokeStyle = look.grey;
  pen.strokeRect(0.5, 0.5, wide - 1, height - 1);
  tickMarks(pen, look, "y", py, 0);
  pen.fillStyle = look.ink;
  pen.textAlign = "right";
  pen.fillText("noise \u2192 data", wide - 8, height - 8);
  const out = (h: number): number => wide + GAP + h * (strip - GAP - 3);
  drawHistogram(pen, now, 0, 1, { place: py, out, along: "y" }, panel, share, look, under.laws[0]);
}

/** Short marks with their numbers, inside the picture's lower or left side. */
function tickMarks(
  pen: CanvasRenderingContext2D,
  look: Look,
  along: "x" | "y",
  place: (v: number) => number,
  side: number,
): void {
  pen.save();
  pen.font = "10px system-ui, sans-serif";
  pen.fillStyle = look.ink;
  pen.globalAlpha = 0.75;
  pen.textAlign = along === "x" ? "center" : "left";
  for (const v of TICKS) {
    if (along === "x") {
      pen.fillRect(place(v), side - 5, 1, 5);
      if (v !== TICKS[0]) pen.fillText(String(v), place(v), side - 8);
    } else {
      pen.fillRect(side, place(v), 5, 1);
      if (v !== TICKS[0]) pen.fillText(String(v), side + 8, place(v) + 3.5);
    }
  }
  pen.restore();
}

/** Where a histogram stands: the axis that it shares with the picture, and how far out a height of 0 to 1 reaches. */
interface Strip {
  place(v: number): number;
  out(height: number): number;
  along: "x" | "y";
}

/** How many of each coordinate's values fall into each bin of [-REACH, REACH], as a density. */
export function binned(now: Float64Array, axis: number, dim: number): Float64Array {
  const counts = new Float64Array(BINS);
  for (let i = axis; i < now.length; i += dim) {
    const k = Math.floor((BINS * (now[i]! / REACH + 1)) / 2);
    if (k >= 0 && k < BINS) counts[k]!++;
  }
  const each = ((now.length / dim) * (2 * REACH)) / BINS;
  return counts.map((c) => c / each);
}

/** A coordinate's histogram, and over it the density that it should have. */
function drawHistogram(
  pen: CanvasRenderingContext2D,
  now: Float64Array,
  axis: number,
  dim: number,
  strip: Strip,
  panel: Panel,
  share: number,
  look: Look,
  law: ExactModel | undefined,
): void {
  const heights = binned(now, axis, dim);
  const at = knotAt(panel.course, share);
  const r = Math.hypot(at.alpha, at.sigma);
  const places = Float64Array.from({ length: 200 }, (_, i) => REACH * ((2 * i) / 199 - 1));
  const exact = law
    ? law
        .logDensity(
          places.map((y) => r * y),
          { ...at, sigma: Math.max(at.sigma, 1e-3) },
        )
        .map((v) => r * Math.exp(v))
    : new Float64Array();
  let most = 1e-9;
  for (const v of heights) most = Math.max(most, v);
  for (const v of exact) most = Math.max(most, v);
  const width = (2 * REACH) / BINS;
  pen.fillStyle = panel.colour;
  pen.globalAlpha = 0.55;
  heights.forEach((d, k) => {
    const [a, b] = [strip.place(-REACH + k * width), strip.place(-REACH + (k + 0.9) * width)];
    const [c, e] = [strip.out(0), strip.out(d / most)];
    if (strip.along === "x") pen.fillRect(a, e, b - a, c - e);
    else pen.fillRect(c, b, e - c, a - b);
  });
  pen.globalAlpha = 1;
  if (exact.length === 0) return;
  pen.strokeStyle = look.ink;
  pen.lineWidth = 1.5;
  pen.beginPath();
  places.forEach((v, i) => {
    const [a, e] = [strip.place(v), strip.out(exact[i]! / most)];
    const [x, y] = strip.along === "x" ? [a, e] : [e, a];
    if (i === 0) pen.moveTo(x, y);
    else pen.lineTo(x, y);
  });
  pen.stroke();
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
