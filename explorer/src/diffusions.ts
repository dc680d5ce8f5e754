/** Gaussian diffusions x_t = alpha(t) x_0 + sigma(t) z, as the two curves of the Python library with their inverse. */

export interface Diffusion {
  readonly label: string;
  readonly tMin: number;
  readonly tMax: number;
  alpha(t: number): number;
  sigma(t: number): number;
  alphaRate(t: number): number;
  sigmaRate(t: number): number;
  /** log(alpha^2/sigma^2). */
  logSnr(t: number): number;
  /** The time at which ``logSnr`` has this value. */
  time(logSnr: number): number;
  priorStd(t: number): number;
}

/** A point on a diffusion as numbers. */
export interface Knot {
  t: number;
  alpha: number;
  sigma: number;
}

export const CLEAN: Knot = { t: 0, alpha: 1, sigma: 0 };

export function knot(sde: Diffusion, t: number): Knot {
  return { t, alpha: sde.alpha(t), sigma: sde.sigma(t) };
}

/** lambda = log(alpha/sigma), half of log_snr; infinite where one of them is 0. */
export function lambda(sde: Diffusion, t: number): number {
  return 0.5 * sde.logSnr(t);
}

export function softplus(x: number): number {
  return x > 0 ? x + Math.log1p(Math.exp(-x)) : Math.log1p(Math.exp(x));
}

export function sigmoid(x: number): number {
  return x >= 0 ? 1 / (1 + Math.exp(-x)) : Math.exp(x) / (1 + Math.exp(x));
}

class LinearBeta {
  readonly tMin = 1e-5;
  readonly tMax = 1;
  constructor(
    readonly betaMin = 0.1,
    readonly betaMax = 20,
  ) {}
  beta(t: number): number {
    return this.betaMin + t * (this.betaMax - this.betaMin);
  }
  integral(t: number): number {
    return t * (this.betaMin + 0.5 * t * (this.betaMax - this.betaMin));
  }
  inverseIntegral(b: number): number {
    const slope = this.betaMax - this.betaMin;
    return b === 0 ? 0 : (2 * b) / (this.betaMin + Math.sqrt(this.betaMin ** 2 + 2 * slope * b));
  }
  alpha(t: number): number {
    return Math.exp(-0.5 * this.integral(t));
  }
  alphaRate(t: number): number {
    return -0.5 * this.beta(t) * this.alpha(t);
  }
  priorStd(): number {
    return 1;
  }
}

class VP extends LinearBeta implements Diffusion {
  readonly label = "VP, linear (DDPM)";
  sigma(t: number): number {
    return Math.sqrt(-Math.expm1(-this.integral(t)));
  }
  sigmaRate(t: number): number {
    return (0.5 * this.beta(t) * Math.exp(-this.integral(t))) / this.sigma(t);
  }
  logSnr(t: number): number {
    const b = this.integral(t);
    return -b - Math.log(-Math.expm1(-b));
  }
  time(logSnr: number): number {
    return this.inverseIntegral(softplus(-logSnr));
  }
}

class SubVP extends LinearBeta implements Diffusion {
  readonly label = "sub-VP";
  sigma(t: number): number {
    return -Math.expm1(-this.integral(t));
  }
  sigmaRate(t: number): number {
    return this.beta(t) * Math.exp(-this.integral(t));
  }
  logSnr(t: number): number {
    const b = this.integral(t);
    return -b - 2 * Math.log(-Math.expm1(-b));
  }
  time(logSnr: number): number {
    return this.inverseIntegral(2 * Math.asinh(0.5 * Math.exp(-0.5 * logSnr)));
  }
}

class CosineVP implements Diffusion {
  readonly label = "VP, cosine";
  readonly tMin = 1e-5;
  readonly tMax = 0.9946;
  private readonly speed = (0.5 * Math.PI) / 1.008;
  private readonly first = this.speed * 0.008;
  private squared(t: number): number {
    return Math.sin(this.speed * t) * Math.sin(this.speed * t + 2 * this.first);
  }
  alpha(t: number): number {
    return Math.sin(this.speed * (1 - t)) / Math.cos(this.first);
  }
  sigma(t: number): number {
    return Math.sqrt(this.squared(t)) / Math.cos(this.first);
  }
  alphaRate(t: number): number {
    return (-this.speed * Math.sin(this.first + this.speed * t)) / Math.cos(this.first);
  }
  sigmaRate(t: number): number {
    return (-this.alpha(t) * this.alphaRate(t)) / this.sigma(t);
  }
  logSnr(t: number): number {
    return 2 * Math.log(Math.sin(this.speed * (1 - t))) - Math.log(this.squared(t));
  }
  time(logSnr: number): number {
    const inner = Math.cos(this.first);
    const share = inner ** 2 * sigmoid(-logSnr);
    const theta = Math.atan2(Math.sqrt(Math.sin(this.first) ** 2 + share), inner * Math.sqrt(sigmoid(logSnr)));
    if (theta - this.first >= 0.5) return (theta - this.first) / this.speed;
    // theta - theta_0 anew, without cancellation at small t.
    return Math.asin(Math.min(1, share === 0 ? 0 : share / Math.sin(theta + this.first))) / this.speed;
  }
  priorStd(): number {
    return 1;
  }
}

class VE implements Diffusion {
  readonly label = "VE";
  readonly tMin = 1e-5;
  readonly tMax = 1;
  private readonly low = 0.01;
  private readonly ratio = Math.log(50 / 0.01);
  alpha(): number {
    return 1;
  }
  sigma(t: number): number {
    return this.low * Math.exp(t * this.ratio);
  }
  alphaRate(): number {
    return 0;
  }
  sigmaRate(t: number): number {
    return this.sigma(t) * this.ratio;
  }
  logSnr(t: number): number {
    return -2 * (Math.log(this.low) + t * this.ratio);
  }
  time(logSnr: number): number {
    return (-0.5 * logSnr - Math.log(this.low)) / this.ratio;
  }
  priorStd(t: number): number {
    return this.sigma(t);
  }
}

class EDM implements Diffusion {
  readonly label = "EDM";
  readonly tMin = 0.002;
  readonly tMax = 80;
  alpha(): number {
    return 1;
  }
  sigma(t: number): number {
    return t;
  }
  alphaRate(): number {
    return 0;
  }
  sigmaRate(): number {
    return 1;
  }
  logSnr(t: number): number {
    return -2 * Math.log(t);
  }
  time(logSnr: number): number {
    return Math.exp(-0.5 * logSnr);
  }
  priorStd(t: number): number {
    return t;
  }
}

class Rectified implements Diffusion {
  readonly label = "rectified flow";
  readonly tMin = 1e-5;
  readonly tMax = 1;
  alpha(t: number): number {
    return 1 - t;
  }
  sigma(t: number): number {
    return t;
  }
  alphaRate(): number {
    return -1;
  }
  sigmaRate(): number {
    return 1;
  }
  logSnr(t: number): number {
    return 2 * (Math.log1p(-t) - Math.log(t));
  }
  time(logSnr: number): number {
    return sigmoid(-0.5 * logSnr);
  }
  priorStd(t: number): number {
    return t;
  }
}

export const DIFFUSIONS: Record<string, Diffusion> = {
  vp: new VP(),
  cosine: new CosineVP(),
  subvp: new SubVP(),
  ve: new VE(),
  edm: new EDM(),
  rectified: new Rectified(),
};
