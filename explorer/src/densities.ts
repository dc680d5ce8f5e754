/** The density beneath the particles, p_t of the Fokker-Planck equation, as images: exact for a mixture. */

import { knotAt, type Look, REACH } from "./canvas";
import type { Knot } from "./diffusions";
import type { Course } from "./table";
import type { ExactModel } from "./targets";

const SIDE = 84; // pixels of the plane, and of the line's axis
const COLUMNS = 160; // of a line's course
const SLICES = 48; // of the share of the noise

/** Densities as images, kept for each model and time slice. */
export class Densities {
  private readonly kept = new Map<string, HTMLCanvasElement>();
  private model: ExactModel | null = null;
  private look: Look | null = null;

  plane(model: ExactModel, at: Knot, look: Look): HTMLCanvasElement {
    // Slices even in the share of the noise: what lies between looks the same.
    const slice = Math.round(SLICES * (at.sigma / (at.alpha + at.sigma)));
    const share = Math.max(slice / SLICES, 1e-4);
    return this.keep(`plane ${slice}`, model, look, () => {
      const [alpha, sigma] = [1 - share, share];
      const r = Math.hypot(alpha, sigma);
      const up = Float64Array.from({ length: SIDE }, (_, i) => r * REACH * ((2 * (i + 0.5)) / SIDE - 1));
      return paint(
        model.logDensityOn(up, up.slice().reverse(), { t: 0, alpha, sigma }).map((v) => 0.6 * v),
        SIDE,
        SIDE,
        look,
      );
    });
  }

  line(model: ExactModel, course: Course, look: Look, name: string): HTMLCanvasElement {
    return this.keep(`line ${name}`, model, look, () => {
      const image = new Float64Array(COLUMNS * SIDE);
      for (let c = 0; c < COLUMNS; c++) {
        const at = knotAt(course, (c + 0.5) / COLUMNS);
        const r = Math.hypot(at.alpha, at.sigma);
        const y = Float64Array.from({ length: SIDE }, (_, i) => -r * REACH * ((2 * (i + 0.5)) / SIDE - 1));
        const density = model.logDensity(y, { ...at, sigma: Math.max(at.sigma, 1e-3) });
        const top = Math.max(...density);
        density.forEach((v, i) => (image[i * COLUMNS + c] = 0.6 * (v - top)));
      }
      return paint(image, COLUMNS, SIDE, look);
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
    const share = Math.exp(v - top);
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = look.low[c]! + share * (look.high[c]! - look.low[c]!);
    image.data[4 * i + 3] = 255;
  });
  pen.putImageData(image, 0, 0);
  return canvas;
}
