/** A model that another process runs: ``scoresde explore --checkpoint``, on this machine. */

import type { Knot } from "./diffusions";
import type { NetworkDocument } from "./network";
import type { Model } from "./table";

export interface Served {
  name: string;
  /** The diffusion that it was trained under, if the page has it. */
  sde: string | null;
  /** Sizes of a sample. */
  shape: number[];
  /** The network itself where the page can run it. */
  network?: NetworkDocument;
}

export class ServedModel implements Model {
  readonly dim: number;
  constructor(served: Served) {
    this.dim = served.shape.reduce((a, b) => a * b, 1);
  }

  async data(x: Float64Array, at: Knot, out: Float64Array): Promise<void> {
    const answer = await fetch(`data?t=${at.t}&alpha=${at.alpha}&sigma=${at.sigma}`, {
      method: "POST",
      headers: { "Content-Type": "application/octet-stream" },
      body: x.slice(),
    });
    if (!answer.ok) throw new Error(await answer.text());
    out.set(new Float64Array(await answer.arrayBuffer()));
  }
}
