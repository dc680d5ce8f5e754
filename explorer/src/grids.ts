/** Time grids: shares of the way from noise to data -> decreasing times, the Python library's formulas. */

import { type Diffusion, sigmoid, softplus } from "./diffusions";

const FIRST = -10; // log_snr where a grid in log_snr begins, if alpha is 0 at t_max
const LAST = 14; // and where it ends, if a jump to clean data follows

type Rule = (sde: Ends, share: number) => number;

/** A diffusion between two times. */
interface Ends {
  sde: Diffusion;
  tMax: number;
  tMin: number;
  /** log_snr at both, finite. */
  low: number;
  high: number;
}

export interface Grid {
  readonly label: string;
  readonly rule: Rule;
  /** Whether it ends at log_snr = 14 where a jump to clean data follows. */
  readonly stops: boolean;
}

function between(from: number, to: number, share: number): number {
  return from + (to - from) * share;
}

function clamp(value: number, low: number, high: number): number {
  return Math.min(high, Math.max(low, value));
}

function even(): Grid {
  return {
    label: "even in t",
    stops: false,
    rule: (e, share) => {
      // Where t is the noise level itself, steps of one length would nearly all fall on large noise.
      const isLevel = e.sde.alpha(e.tMax) === 1 && e.sde.sigma(e.tMax) === e.tMax && e.sde.sigma(e.tMin) === e.tMin;
      return isLevel ? diffused(2).rule(e, share) : between(e.tMax, e.tMin, share);
    },
  };
}

function logSnr(middle = 0, width?: number): Grid {
  return {
    label: width === undefined ? "even in log-SNR" : "log-SNR, centred at 3",
    stops: true,
    rule: (e, share) => {
      if (width === undefined) return e.sde.time(between(e.low, e.high, share));
      const [a, b] = [e.low, e.high].map((end) => Math.asinh((end - middle) / width)) as [number, number];
      return e.sde.time(middle + width * Math.sinh(between(a, b, share)));
    },
  };
}

function karras(rho = 7): Grid {
  return {
    label: "Karras",
    stops: true,
    rule: (e, share) => {
      const [a, b] = [e.low, e.high].map((end) => Math.exp((-0.5 / rho) * end)) as [number, number];
      return e.sde.time(-2 * rho * Math.log(between(a, b, share)));
    },
  };
}

function rectified(power = 1): Grid {
  return {
    label: power === 1 ? "even in u" : `u, power ${power}`,
    stops: false,
    rule: (e, share) => {
      const ends = [e.sde.logSnr(e.tMax), e.sde.logSnr(e.tMin)];
      const [a, b] = ends.map((end) => sigmoid(-0.5 * end) ** (1 / power)) as [number, number];
      const u = between(a, b, share) ** power;
      return e.sde.time(clamp(2 * (Math.log1p(-u) - Math.log(u)), ends[0]!, ends[1]!));
    },
  };
}

function diffused(power: number): Grid {
  return {
    label: `diffused, power ${power}`,
    stops: false,
    rule: (e, share) => {
      const [first, last] = [softplus(-e.low), softplus(-e.high)];
      const b = last + (first - last) * (1 - share) ** power;
      return e.sde.time(clamp(-Math.log(Math.expm1(b)), e.low, e.high));
    },
  };
}

export const GRIDS: Record<string, Grid> = {
  even: even(),
  log_snr: logSnr(),
  asinh: logSnr(3, 4.5),
  karras: karras(),
  rectified: rectified(),
  "rectified 1.25": rectified(1.25),
  "rectified 1.5": rectified(1.5),
  "diffused 3.9": diffused(3.9),
  diffused: diffused(4),
};

/** steps + 1 times from t_max down to t_min, or to log_snr = 14 where the grid stops there and a jump follows. */
export function times(grid: Grid, sde: Diffusion, steps: number, jumps: boolean): number[] {
  const further = jumps && grid.stops && sde.logSnr(sde.tMin) > LAST;
  const tMin = further ? sde.time(LAST) : sde.tMin;
  const first = sde.logSnr(sde.tMax);
  const ends: Ends = { sde, tMax: sde.tMax, tMin, low: first === -Infinity ? FIRST : first, high: sde.logSnr(tMin) };
  const found = Array.from({ length: steps + 1 }, (_, k) => grid.rule(ends, k / Math.max(steps, 1)));
  if (steps > 0) found[steps] = tMin;
  found[0] = sde.tMax;
  return found;
}
