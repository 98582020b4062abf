// Chapter 5: UniPC and Adams' method: predict each step, and correct it with the next answer.

// Gauss' quadrature from -1 to 1: the zeros of Legendre's polynomial, by Newton's method, each with
// its share.
const POINTS = 32, GAUSS = Array.from({ length: POINTS }, (_, k) => {
  let u = Math.cos(Math.PI * (k + 0.75) / (POINTS + 0.5)), slope = 0;
  for (let round = 0; round < 5; round++) {
    let [before, p] = [1, u];
    for (let n = 2; n <= POINTS; n++)
      [before, p] = [p, ((2 * n - 1) * u * p - (n - 1) * before) / n];
    slope = POINTS * (u * p - before) / (u * u - 1);
    u -= p / slope;
  }
  return [u, 2 / ((1 - u * u) * slope * slope)];
});

// The integrals from a to b of a density times the polynomials that are 1 at one of the nodes and 0
// at the others.
function integrals(density, a, b, nodes) {
  const sums = nodes.map(() => 0), half = (b - a) / 2;
  for (const [place, share] of GAUSS) {
    const u = a + half * (place + 1), mass = half * share * density(u);
    nodes.forEach((node, j) => {
      sums[j] += nodes.reduce((p, v) => v === node ? p : p * (u - v) / (node - v), mass);
    });
  }
  return sums;
}

// Predict with the last `order` answers; with a width, or 0, correct with one more, and let x0-hat
// go along as it does on data of that width. An answer is what `value` makes of x and x0-hat; step
// goes from i to j, and its mix(weights) gives, pixel by pixel, the known answers in that mixture.
function* multistep(d, model, x, order, width, value, step) {
  const [signals, sigmas] = roots(d.schedule), spread = width ** 2;
  const { T, logSnr } = d.schedule, lambdas = logSnr.map((v, i) => Math.max(v / 2, -12 - i / T));
  const walk = (x, i, j, known) => step(x, i, j, weightsOf => {
    const weights = weightsOf(lambdas[i], lambdas[j], known.map(o => o.at));
    return n => known.reduce((sum, { value }, k) => sum + weights[k] * value[n], 0);
  }, known);
  let known = [], before = x;
  for (let i = T - 1; i >= 0; i--) {
    let x0 = d.guess(model, x, i);
    const seen = () => ({ at: lambdas[i], value: value(x, x0, i) });
    if (known.length && width !== null) {
      const there = walk(before, i + 1, i, [known[0], seen(), ...known.slice(1, order)]);
      const slope = signals[i] * spread / (signals[i] ** 2 * spread + sigmas[i] ** 2);
      x0 = d.clipped(x0.map((v, n) => v + bounded(slope * (there[n] - x[n]), width)));
      x = there;
    }
    [known, before] = [[seen(), ...known.slice(0, order - 1)], x];
    x = i ? walk(x, i, i - 1, known) : x0;        // the last jump ends in x0-hat itself
    yield { i, x, x0 };
  }
}

export const bounded = (v, most) => Math.min(Math.max(v, -most), most);
const roots = ({ alphaBars, sigmas2 }) => [alphaBars.map(Math.sqrt), sigmas2.map(Math.sqrt)];

// x0-hat, integrated over half log-SNR; for two answers with the usual weights, B_2.
export function* unipc(d, model, x) {
  const [signals, sigmas] = roots(d.schedule);
  const toward = (a, b, nodes) => {
    if (nodes.length !== 2) return integrals(u => Math.exp(u - b), a, b, nodes);
    const whole = -Math.expm1(a - b), slope = whole / 2 * (b - a) / (nodes[1] - a);
    return [whole - slope, slope];
  };
  yield* multistep(d, model, x, 2, 0, (x, x0) => x0, (x, i, j, mix) => {
    const lead = mix(toward);
    return x.map((v, n) => sigmas[j] / sigmas[i] * v + signals[j] * lead(n));
  });
}

// The velocity on the circle x = cos x0-hat + sin eps, integrated over the angle.
export function* adams(d, model, x) {
  const [signals, sigmas] = roots(d.schedule);
  const angle = (a, b, nodes) => integrals(u => -0.5 / Math.cosh(u), a, b, nodes);
  const velocity = (x, x0, i) => x.map((v, n) => (signals[i] * v - x0[n]) / sigmas[i]);
  const width = d.schedule.T > 5 ? 0.2 : null;      // fewer steps are too long to be corrected
  yield* multistep(d, model, x, 3, width, velocity, (x, i, j, mix, known) => {
    if (known.length === 1) {                   // of one velocity: on around the circle, as ddim
      const cos = signals[i] * signals[j] + sigmas[i] * sigmas[j];
      const sin = sigmas[j] * signals[i] - signals[j] * sigmas[i];
      return x.map((v, n) => cos * v + sin * known[0].value[n]);
    }
    const turned = mix(angle);
    return x.map((v, n) => v + turned(n));
  });
}
