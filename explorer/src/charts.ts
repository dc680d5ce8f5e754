/** Charts of curves. One is drawn anew when its curves change; while the page plays only the mark of the place moves. */

import { type Look, prepare } from "./canvas";

export interface Curve {
  label: string;
  colour: string;
  dash: number[];
  /** Its mark: 0 a square, 1 a disc, 2 a triangle, so that curves differ without colour too. */
  mark: number;
  points: [number, number][];
}

export interface Axes {
  name: string;
  x: string;
  y: string;
  logX: boolean;
  logY: boolean;
}

type Span = [number, number];

/** What a chart last drew, as an image, and where a place on its x axis stands. */
interface Kept {
  image: HTMLCanvasElement;
  key: unknown[];
  place: ((x: number) => number) | null;
  span: Span;
}

export class Chart {
  private curves: Curve[] = [];
  private note = "";
  private kept: Kept | null = null;

  constructor(
    private readonly canvas: HTMLCanvasElement,
    private readonly axes: Axes,
  ) {}

  /** Take other curves, or a line that says why there are none. */
  show(curves: Curve[], note: string): void {
    [this.curves, this.note, this.kept] = [curves, note, null];
    const words = curves.map(({ label, points }) => {
      const last = points.at(-1);
      return last ? `${label}: ${short(last[1])} at ${short(last[0])}` : label;
    });
    this.canvas.ariaLabel = `${this.axes.name}. ${words.join("; ") || note || "It is being computed."}`;
  }

  /** Draw, with a mark at a place of the x axis. */
  draw(look: Look, at: number | undefined): void {
    const { clientWidth, clientHeight } = this.canvas;
    const key = [look, clientWidth, clientHeight, window.devicePixelRatio];
    if (!this.kept || key.some((v, i) => v !== this.kept!.key[i])) this.kept = this.keep(look, key);
    const { pen } = prepare(this.canvas);
    const { image, place, span } = this.kept;
    pen.save();
    pen.resetTransform(); // pixel for pixel, else the words blur
    if (image.width > 0 && image.height > 0) pen.drawImage(image, 0, 0);
    pen.restore();
    if (at === undefined || !place) return;
    pen.strokeStyle = look.ink;
    pen.lineWidth = 1;
    pen.setLineDash([3, 3]);
    line(pen, place(at), span[0], place(at), span[1]);
    pen.setLineDash([]);
  }

  private keep(look: Look, key: unknown[]): Kept {
    const found = paint(this.canvas, this.curves, this.axes, look, this.note);
    const image = document.createElement("canvas");
    [image.width, image.height] = [this.canvas.width, this.canvas.height];
    if (image.width > 0 && image.height > 0) image.getContext("2d")!.drawImage(this.canvas, 0, 0);
    return { image, key, ...found };
  }
}

function paint(
  canvas: HTMLCanvasElement,
  curves: Curve[],
  axes: Axes,
  look: Look,
  note: string,
): { place: ((x: number) => number) | null; span: Span } {
  const { pen, width, height } = prepare(canvas);
  const [left, bottom, top, right] = [52, 36, 24 + 16 * curves.length, 12];
  const all = curves
    .flatMap((c) => c.points)
    .filter(([x, y]) => Number.isFinite(x) && Number.isFinite(y) && (!axes.logY || y > 0));
  pen.fillStyle = look.ink;
  if (all.length < 2) {
    pen.fillText(axes.y, 8, 16);
    pen.fillStyle = look.grey;
    pen.fillText(note || "computing \u2026", 8, height / 2);
    return { place: null, span: [0, 0] };
  }
  const fx = axes.logX ? Math.log10 : (v: number): number => v;
  const fy = axes.logY ? Math.log10 : (v: number): number => v;
  const span = (values: number[]): Span => {
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
  pen.fillText(axes.x, (left + width - right) / 2, height - 5);
  pen.textAlign = "left";
  pen.fillText(axes.y, 8, 16);
  curves.forEach((curve, k) => {
    const y = 34 + 16 * k;
    pen.strokeStyle = pen.fillStyle = curve.colour;
    pen.lineWidth = 2;
    pen.setLineDash(curve.dash);
    line(pen, left - 44, y - 4, left - 14, y - 4);
    pen.beginPath();
    const shown = curve.points.filter(([a, b]) => Number.isFinite(fx(a)) && Number.isFinite(fy(b)));
    shown.forEach(([a, b], i) => (i === 0 ? pen.moveTo(px(a), py(b)) : pen.lineTo(px(a), py(b))));
    pen.stroke();
    pen.setLineDash([]);
    mark(pen, curve.mark, left - 29, y - 4);
    for (const [a, b] of shown) mark(pen, curve.mark, px(a), py(b));
    pen.fillStyle = look.ink;
    pen.fillText(curve.label, left - 8, y, width - left);
  });
  return { place: px, span: [top, height - bottom] };
}

function mark(pen: CanvasRenderingContext2D, kind: number, x: number, y: number): void {
  if (kind === 0) return pen.fillRect(x - 2.5, y - 2.5, 5, 5);
  pen.beginPath();
  if (kind === 1) pen.arc(x, y, 3, 0, 2 * Math.PI);
  else {
    pen.moveTo(x, y - 4);
    pen.lineTo(x + 3.5, y + 3);
    pen.lineTo(x - 3.5, y + 3);
  }
  pen.fill();
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
