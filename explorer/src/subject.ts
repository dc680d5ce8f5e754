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

/** The target that the state names. */
export function makeSubject(state: State, network: NetworkDocument | null, served: Served | null): Subject {
  if (state.target === "checkpoint" && served) {
    const model = served.network ? new NetworkModel(served.network) : new ServedModel(served);
    const shape = served.network || served.shape.length !== 3 ? null : served.shape;
    return { model, exact: fromPoints(served.network ?? null), shape };
  }
  if (state.target === "network" && network)
    return { model: new NetworkModel(network), exact: fromPoints(network), shape: null };
  const mixture =
    state.target === "drawn" && state.drawn.length > 0
      ? fromDrawn(state)
      : (TARGETS[state.target] ?? TARGETS[FIRST.target]!).mixture;
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

function fromDrawn(state: State): Mixture {
  const means = Array.from({ length: state.drawn.length / 2 }, (_, k) => [
    state.drawn[2 * k]!,
    state.drawn[2 * k + 1]!,
  ]);
  return { dim: 2, means, weights: means.map(() => 1 / means.length), stds: means.map(() => state.brush) };
}
