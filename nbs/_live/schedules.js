// Chapter 1: the betas, and all that follows from them alone. Numbers are double precision.

const even = (start, end, T) =>
  Float64Array.from({ length: T }, (_, i) => T > 1 ? start + (end - start) * i / (T - 1) : start);

// name -> (T, first beta, last beta) -> betas
export const SCHEDULES = {
  linear: (T, start, end) => even(start, end, T),
  quadratic: (T, start, end) => even(Math.sqrt(start), Math.sqrt(end), T).map(root => root * root),
  constant: (T, start, end) => new Float64Array(T).fill(end),
  jsd: T => Float64Array.from({ length: T }, (_, i) => 1 / (T - i)),
  cosine(T) {
    const s = 0.008, step = Math.PI / 2 / (1 + s) / T;
    return Float64Array.from({ length: T }, (_, i) => {
      const theta = (i + s * T) * step;
      const beta = Math.sin(2 * theta + step) * Math.sin(step) / Math.cos(theta) ** 2;
      return Math.min(beta, 0.999);
    });
  },
};

// The table one step earlier; `start` is that of the data.
const before = (table, start) => table.map((_, i) => i ? table[i - 1] : start);

// log1p and expm1, because 1 - alphaBar would lose the digits of the first beta.
export function schedule(betas, timesteps = betas.map((_, i) => i)) {
  let sum = 0;
  const logAlphaBars = betas.map(beta => sum += Math.log1p(-beta));
  const alphaBars = logAlphaBars.map(Math.exp), sigmas2 = logAlphaBars.map(v => -Math.expm1(v));
  return {
    T: betas.length, betas, timesteps, alphaBars, sigmas2,         // sigmas2: 1 - alphaBar
    alphaBarsPrev: before(alphaBars, 1), sigmas2Prev: before(sigmas2, 0),
    logSnr: logAlphaBars.map((v, i) => v - Math.log(sigmas2[i])),
  };
}

// Where the stretches end that become one step each, among 1 .. T: even in t, in log SNR, or in the
// error of a good solver. What lies below a log SNR of -11, 0.4 % signal, is all alike.
export const SPACINGS = {
  even: (s, steps) => Array.from({ length: steps }, (_, k) => halfToEven((k + 1) * s.T / steps)),
  log_snr(s, steps) {
    const lowest = Math.max(-11, s.logSnr.findLast(v => v > -Infinity));
    return evenIn(s.logSnr.map(v => -Math.max(v, lowest)), steps);
  },
  between(s, steps) {     // of order 4 on the way, of order 1 in the jump to the data
    const lambdas = s.logSnr.map(v => Math.max(v, -11) / 2);
    let sum = 2 * Math.sqrt(2 * Math.exp(-lambdas[0]));
    const error = lambdas.map((b, i) => {
      const a = i ? lambdas[i - 1] : b;
      return sum += (a - b) / Math.cosh((a + b) / 2) ** 0.2;
    });
    return evenIn(error, steps, sum / steps);
  },
};

// Where a rising table is nearest to equal steps, from `first` on.
function evenIn(rising, steps, first = -Infinity) {
  const nearest = v => 1 + rising.reduce(
    (best, u, i) => Math.abs(u - v) < Math.abs(rising[best] - v) ? i : best, 0);
  const wanted = even(Math.max(rising[0], first), rising.at(-1), steps);
  return distinct(Array.from(wanted, nearest), rising.length);
}

const halfToEven = v => v % 1 === 0.5 ? 2 * Math.round(v / 2) : Math.round(v);   // as PyTorch

function distinct(ends, T) {   // moved as little as it takes; the last is T
  const n = ends.length;
  for (let k = 1; k < n; k++) ends[k] = Math.max(ends[k], ends[k - 1] + 1);
  return ends.map((end, k) => k === n - 1 ? T : Math.min(end, T - n + 1 + k));
}

// The same process in fewer steps: alphaBar is unchanged where the stretches end.
export function respaced(s, steps, spacing = "even") {
  const ends = SPACINGS[spacing](s, steps);
  const beta = (end, k) => {
    const stretch = s.betas.subarray(k ? ends[k - 1] : 0, end);
    if (stretch.length === 1) return stretch[0];
    return -Math.expm1(stretch.reduce((sum, beta) => sum + Math.log1p(-beta), 0));
  };
  return schedule(Float64Array.from(ends, beta), ends.map(end => s.timesteps[end - 1]));
}
