/** What a course ended in, in words: below its picture, and for who cannot see it. */

import { REACH } from "./canvas";
import type { Panel } from "./panels";
import type { Subject } from "./subject";

/** A caption, and a description that stands in the place of the picture. */
export function describeEnd(panel: Panel, subject: Subject): { short: string; long: string } {
  const { nfe, states } = panel.course;
  const end = states.at(-1)!;
  const size = subject.shape ? subject.shape.reduce((a, b) => a * b) : subject.model.dim;
  const count = end.length / size;
  let [outside, lost] = [0, 0];
  for (let i = 0; i < end.length; i += size) {
    const values = end.subarray(i, i + size);
    if (!values.every(Number.isFinite)) lost++;
    else if (!subject.shape && values.some((v) => Math.abs(v) > REACH)) outside++;
  }
  const about = `${panel.title}: ${nfe} evaluation${nfe === 1 ? "" : "s"}`;
  const more = [
    ...(outside > 0 ? [`${outside} of ${count} end outside the picture`] : []),
    ...(lost > 0 ? [`${lost} of ${count} overflowed; press \"as it was\" or take another grid`] : []),
  ];
  const short = [about, ...more].join("; ");
  if (subject.shape) return { short, long: `${short}. ${count} pictures.` };
  const things = size === 1 ? "numbers" : "points of the plane";
  const spread = Array.from({ length: size }, (_, j) => {
    const values = end.filter((_, i) => i % size === j);
    const mean = values.reduce((a, b) => a + b, 0) / count;
    const std = Math.sqrt(values.reduce((a, b) => a + (b - mean) ** 2, 0) / count);
    return `mean ${mean.toFixed(2)}, standard deviation ${std.toFixed(2)}`;
  });
  return { short, long: `${short}. ${count} ${things}: ${spread.join("; ")}.` };
}
