/** Gauss-Legendre nodes and weights on [-1, 1], by Newton's method on the Legendre polynomial. */

function legendre(n: number): { nodes: number[]; weights: number[] } {
  const nodes: number[] = [];
  const weights: number[] = [];
  for (let k = 1; k <= n; k++) {
    let x = -Math.cos((Math.PI * (k - 0.25)) / (n + 0.5));
    let slope = 1;
    for (let turn = 0; turn < 100; turn++) {
      let [before, value] = [1, x];
      for (let j = 2; j <= n; j++) [before, value] = [value, ((2 * j - 1) * x * value - (j - 1) * before) / j];
      slope = (n * (x * value - before)) / (x * x - 1);
      const step = value / slope;
      x -= step;
      if (Math.abs(step) < 1e-16) break;
    }
    nodes.push(x);
    weights.push(2 / ((1 - x * x) * slope * slope));
  }
  return { nodes, weights };
}

const RULE = legendre(48);

/** Nodes and weights on an interval. */
export function onInterval(start: number, end: number): { nodes: number[]; weights: number[] } {
  const half = 0.5 * (end - start);
  return { nodes: RULE.nodes.map((x) => start + half * (x + 1)), weights: RULE.weights.map((w) => half * w) };
}

/** Integrate the Lagrange basis through ``nodes`` against a measure at ``values``: a weight for each node. */
export function integrate(nodes: number[], values: number[], measure: number[]): number[] {
  return nodes.map((node, k) => {
    let sum = 0;
    values.forEach((v, i) => {
      let basis = measure[i]!;
      nodes.forEach((other, j) => {
        if (j !== k) basis *= (v - other) / (node - other);
      });
      sum += basis;
    });
    return sum;
  });
}
