/** What is sampled: an exact mixture, a network in the page, or a model that another process runs. */

import { floats, type NetworkDocument, NetworkModel } from "./network";
import { type Served, ServedModel } from "./served";
import { FIRST, type State } from "./state";
import type { Model } from "./table";
import { ExactModel, type Mixture, TARGETS } from "./targets";

/** What the target is: its model, and the exact one of its density where that is known. */
export interface Subject {
  model: Model;
  exact: ExactModel | null;
  /** Sizes (C, H, W) where its samples are pictures. */
  shape: number[] | null;
}

/** Where a target may come from, besides the list and the brush. */
export interface Sources {
  /** The page's own network. */
  network: NetworkDocument | null;
  /** The model that the process which serves the page was given. */
  served: Served | null;
  /** A network that was opened from a file. */
  file: NetworkDocument | null;
}

/** The target that the state names. */
export function makeSubject(state: State, { network, served, file }: Sources): Subject {
  if (state.target === "checkpoint" && served) {
    const model = served.network ? new NetworkModel(served.network) : new ServedModel(served);
    const shape = served.network || served.shape.length !== 3 ? null : served.shape;
    return { model, exact: fromPoints(served.network ?? null), shape };
  }
  const document = state.target === "network" ? network : state.target === "file" ? file : null;
  if (document) return { model: new NetworkModel(document), exact: fromPoints(document), shape: null };
  const mixture =
    state.target === "drawn" ? fromDrawn(state) : (TARGETS[state.target] ?? TARGETS[FIRST.target]!).mixture;
  const exact = new ExactModel(mixture);
  return { model: exact, exact, shape: null };
}

/** The density of data points, each a narrow Gaussian: what the network has learned from, noised exactly. */
function fromPoints(document: NetworkDocument | null): ExactModel | null {
  if (!document?.points) return null;
  const values = floats(document.points);
  const means = Array.from({ length: values.length / document.dim }, (_, k) => [
    ...values.slice(k * document.dim, (k + 1) * document.dim),
  ]);
  const mixture: Mixture = {
    dim: document.dim as 1 | 2,
    means,
    weights: means.map(() => 1 / means.length),
    stds: means.map(() => 0.06),
  };
  return new ExactModel(mixture);
}

/** A Gaussian of the brush's width at each drawn point; before the first, one in the middle. */
function fromDrawn({ drawn, brush }: State): Mixture {
  const count = Math.max(1, drawn.length / 2);
  const means = Array.from({ length: count }, (_, k) => [drawn[2 * k] ?? 0, drawn[2 * k + 1] ?? 0]);
  return { dim: 2, means, weights: means.map(() => 1 / count), stds: means.map(() => brush) };
}
