/** A network from a file: what ``scoresde explore --checkpoint FOLDER --out network.json`` writes, checked. */

import { floats, type NetworkDocument, PREDICTIONS } from "./network";
import { DIFFUSIONS } from "./diffusions";

const CURE = "write one with scoresde explore --checkpoint FOLDER --out network.json";
const MOST_BYTES = 20_000_000;
const FREQUENCIES = 64;

/** Read a file's text; an Error says in a line what is wrong with it. */
export function readNetwork(name: string, text: string): NetworkDocument {
  const refuse = (why: string): never => {
    throw new Error(`${name} is no network for the explorer, ${why}; ${CURE}`);
  };
  if (text.length > MOST_BYTES) refuse(`it has more than ${MOST_BYTES / 1e6} MB`);
  let found: unknown;
  try {
    found = JSON.parse(text);
  } catch {
    return refuse("it holds no JSON");
  }
  if (typeof found !== "object" || found === null) return refuse("it holds no JSON object");
  const document = found as Partial<NetworkDocument>;
  const { predicts, sigma_data, width, depth, dim, weights } = document;
  if (!predicts || !PREDICTIONS.includes(predicts)) refuse(`its "predicts" is none of ${PREDICTIONS.join(", ")}`);
  if (typeof sigma_data !== "number" || !(sigma_data > 0)) refuse('its "sigma_data" is no number above 0');
  if (dim !== 1 && dim !== 2) return refuse('its "dim" is neither 1 nor 2');
  if (!isCount(width, 1024)) return refuse('its "width" is no whole number from 1 to 1024');
  if (!isCount(depth, 64)) return refuse('its "depth" is no whole number from 1 to 64');
  if (typeof weights !== "object" || weights === null) return refuse('it has no "weights"');
  const kept = weights; // narrowed for the functions below
  for (const [layer, shape] of shapes(width, depth, dim)) {
    const given = kept[layer];
    if (!given) refuse(`the weights ${layer} are missing`);
    const size = shape.reduce((a, b) => a * b, 1);
    const values = decode(given!.values);
    if (String(given!.shape) !== String(shape) || values?.length !== size)
      refuse(`the weights ${layer} are not of shape (${shape.join(", ")})`);
    if (!values!.every(Number.isFinite)) refuse(`the weights ${layer} are not all finite`);
  }
  const sde = typeof document.sde === "string" && document.sde in DIFFUSIONS ? document.sde : null;
  const points = document.points;
  if (points !== undefined && !(decode(points)?.every(Number.isFinite) ?? false)) refuse('its "points" are no numbers');
  return { ...(document as NetworkDocument), name: typeof document.name === "string" ? document.name : name, sde };
}

/** The layers of ``nn.MLP``, and their shapes. */
function shapes(width: number, depth: number, dim: number): [string, number[]][] {
  const layers: [string, number, number][] = [
    ["conditioning.features", width, FREQUENCIES],
    ["conditioning.mix", width, width],
    ["modulation", 2 * (depth + 1) * width, width],
    ["skip", 1, width],
    ["input", width, dim],
    ["output", dim, width],
  ];
  for (let k = 0; k < depth; k++) layers.push([`first.${k}`, width, width], [`second.${k}`, width, width]);
  return layers.flatMap(([name, outputs, inputs]): [string, number[]][] => [
    [`${name}.weight`, [outputs, inputs]],
    [`${name}.bias`, [outputs]],
  ]);
}

function isCount(value: unknown, most: number): value is number {
  return typeof value === "number" && Number.isInteger(value) && value >= 1 && value <= most;
}

function decode(values: unknown): Float32Array | null {
  try {
    return typeof values === "string" ? floats(values) : null;
  } catch {
    return null;
  }
}
