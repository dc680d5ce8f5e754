/** What every picture shares: its colours, its pixels, and the state and the place between two rows of a table. */

import type { Knot } from "./diffusions";
import type { Course } from "./table";

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
export const REACH = 2.7; // the plane and the line are shown from -REACH to REACH, in units of sqrt(alpha^2 + sigma^2)

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

export function scaleAt(at: Knot): number {
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

/** Where the plane lies on its canvas, the rest being for histograms: above it that of x, on its right that of y. */
export function planeBox(width: number, height: number): { left: number; top: number; side: number } {
  const side = 0.86 * Math.min(width, height);
  return { left: (width - Math.min(width, height)) / 2, top: height - side, side };
}

/** The point of the plane at a place of its canvas, in the units of the picture. */
export function pointAt(x: number, y: number, width: number, height: number): [number, number] {
  const { left, top, side } = planeBox(width, height);
  return [REACH * ((2 * (x - left)) / side - 1), REACH * (1 - (2 * (y - top)) / side)];
}

/** And the place of a point. */
export function placeOf(x: number, y: number, width: number, height: number): [number, number] {
  const { left, top, side } = planeBox(width, height);
  return [left + (side * (x / REACH + 1)) / 2, top + (side * (1 - y / REACH)) / 2];
}
