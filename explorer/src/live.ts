/** What is measured while a person looks on: errors against evaluations, and log density along a course. */

import { DASHES, type Look } from "./canvas";
import type { Curve } from "./charts";
import * as measures from "./measures";
import { type Sampler, samplersOf, sdeOf } from "./samplers";
import { ServedModel } from "./served";
import type { State } from "./state";
import type { Subject } from "./subject";
import { breathe, type Course, normal, run } from "./table";
import { ExactModel } from "./targets";

/** The start state of n samples: one noise for all samplers, scaled to the diffusion's prior. */
export function startState(subject: Subject, state: State, n: number, seed: number): Float64Array {
  const size = subject.shape ? subject.shape.reduce((a, b) => a * b) : subject.model.dim;
  const z = new Float64Array(n * size);
  normal(seed)(z);
  const sde = sdeOf(state);
  if (subject.model instanceof ExactModel) {
    const { mean, std } = subject.model.prior(sde);
    return z.map((v, i) => mean[i % size]! + std[i % size]! * v);
  }
  return z.map((v) => sde.priorStd(sde.tMax) * v);
}

/** At each state of a course, the mean of log p_t over the particles less that over exact samples at the same time. */
export async function logDensities(exact: ExactModel, course: Course): Promise<[number, number][]> {
  const n = 400;
  const clean = exact.sample(n, 5);
  const z = new Float64Array(clean.length);
  normal(6)(z);
  const mean = (v: Float64Array): number => v.reduce((a, b) => a + b, 0) / v.length;
  const points: [number, number][] = [];
  for (const [k, x] of course.states.entries()) {
    await breathe();
    const at = course.at[k]!;
    const right = clean.map((c, i) => at.alpha * c + at.sigma * z[i]!);
    const excess = mean(exact.logDensity(x.subarray(0, n * exact.dim), at)) - mean(exact.logDensity(right, at));
    points.push([k / (course.states.length - 1), excess]);
  }
  return points;
}

/** Why there are no errors to show, if so. */
export function noErrors(subject: Subject): string {
  return subject.model instanceof ServedModel ? "errors are measured on targets and networks in the page" : "";
}

/** Curves of error against evaluations, anew after each point; the last one is of the table as it was, if it is bent. */
export async function* errorCurves(subject: Subject, state: State, look: Look): AsyncGenerator<Curve[]> {
  if (noErrors(subject)) return;
  const [now, straight] = [samplersOf(state), state.bend !== 0 && !state.beside ? samplersOf(state, 0) : []];
  const curves: Curve[] = [];
  for (const [k, one] of [...now, ...straight].entries()) {
    const bare = k >= now.length;
    const curve: Curve = {
      label: "",
      colour: bare ? look.grey : look.colours[k]!,
      dash: DASHES[k]!,
      mark: k,
      points: [],
    };
    const name = bare ? "as it was" : one.short;
    for await (const _ of extend(curve, name, one, subject, state)) {
      if (!curves.includes(curve)) curves.push(curve);
      yield curves;
    }
  }
}

async function* extend(curve: Curve, name: string, one: Sampler, subject: Subject, state: State): AsyncGenerator<void> {
  const { exact } = subject;
  const noisy = measures.isNoisy(one.table(3));
  if (noisy && !exact) return;
  const starts = noisy
    ? startState(subject, state, 1000, 78)
    : startState(subject, state, subject.model instanceof ExactModel ? 400 : 100, 77);
  const truth = noisy ? exact!.sample(1000, 71) : await flow(subject, state, starts);
  const least = noisy ? measures.floor(exact!, 1000) : 0;
  for (const steps of measures.COUNTS) {
    await breathe();
    try {
      const { states, nfe } = await run(one.table(steps), subject.model, starts, normal(79));
      const end = states.at(-1)!;
      const error = noisy ? measures.sliced(end, truth, exact!.dim) : measures.rms(end, truth);
      if (Number.isFinite(error)) curve.points.push([nfe, error]);
    } catch {
      continue; // a number of steps that the method cannot make
    }
    const order = measures.slope(curve.points, least);
    curve.label = noisy
      ? `${name}, of the law (two exact sets: ${least.toPrecision(2)})`
      : `${name}, to the exact flow${order === null ? "" : `, slope ${order.toFixed(1)}`}`;
    yield;
  }
}

let flowKept: { subject: Subject; sde: string; count: number; x: Float64Array } | null = null;

/** Where the exact flow takes these states, kept while the target and the diffusion stay. */
async function flow(subject: Subject, state: State, x: Float64Array): Promise<Float64Array> {
  const { sde } = state;
  const known = flowKept?.subject === subject && flowKept.sde === sde && flowKept.count === x.length;
  if (known) return flowKept!.x;
  const found = await measures.flowFrom(subject.model, sdeOf(state), x);
  flowKept = { subject, sde, count: x.length, x: found };
  return found;
}
