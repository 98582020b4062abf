// Chapter 7's data in the plane, and what chapter 4 calls the ideal denoiser: each data set is an
// average of round Gaussians, so that every density on the way to noise is one too.

const circle = (n, radius) => Array.from({ length: n }, (_, i) =>
  [radius * Math.cos(2 * Math.PI * i / n), radius * Math.sin(2 * Math.PI * i / n)]);

// name -> centres and the standard deviation about each
export const MIXTURES = {
  "swiss roll": { std: 0.05, centres: Array.from({ length: 180 }, (_, i) => {
    const angle = 1.5 * Math.PI * (1 + 2 * (i + 0.5) / 180), r = 2 * angle / (4.5 * Math.PI);
    return [r * Math.cos(angle), r * Math.sin(angle)];
  }) },
  "ring": { std: 0.1, centres: circle(8, 1.5) },
  "grid": { std: 0.08, centres: Array.from({ length: 25 }, (_, i) =>
    [0.75 * (i % 5 - 2), 0.75 * (Math.floor(i / 5) - 2)]) },
};

// The mixture after noise: centres drawn in, each Gaussian widened (eq. 4).
export function noised({ std, centres }, alphaBar) {
  const signal = Math.sqrt(alphaBar);
  return {
    std: Math.sqrt(alphaBar * std * std + 1 - alphaBar),
    centres: centres.map(([x, y]) => [signal * x, signal * y]),
  };
}

// The density at a point, and its centre of gravity: where the Gaussians that are felt there are.
export function felt({ std, centres }, x, y) {
  let least = Infinity, total = 0, sumX = 0, sumY = 0;
  for (const [a, b] of centres) least = Math.min(least, (x - a) ** 2 + (y - b) ** 2);
  for (const [a, b] of centres) {
    const share = Math.exp((least - (x - a) ** 2 - (y - b) ** 2) / (2 * std * std));
    total += share; sumX += share * a; sumY += share * b;
  }
  const scale = Math.exp(-least / (2 * std * std)) / (2 * Math.PI * std * std * centres.length);
  return { density: total * scale, x: sumX / total, y: sumY / total };
}

// E[eps given x_t] = -sigma times the score: the best answer that a network could give. x holds
// the points one after the other: x_1, y_1, x_2, y_2, ...
export function idealDenoiser(mixture, s) {
  return (x, t) => {
    const at = noised(mixture, s.alphaBars[t]), pull = Math.sqrt(s.sigmas2[t]) / at.std ** 2;
    const eps = new Float32Array(x.length);
    for (let i = 0; i < x.length; i += 2) {
      const centre = felt(at, x[i], x[i + 1]);
      eps[i] = pull * (x[i] - centre.x);
      eps[i + 1] = pull * (x[i + 1] - centre.y);
    }
    return eps;
  };
}

export const points = ({ std, centres }, n, randn) => randn(2 * n).map(
  (v, i) => centres[Math.floor(i / 2) * 7919 % centres.length][i % 2] + std * v);
