// Written by tools/live.py from the modules in nbs/_live.
(() => {
"use strict";
const modules = {};

modules["controls.js"] = (() => {
// What the reader's hand is on: plain HTML controls, each with a label that is read aloud.

function element(name, properties = {}, ...children) {
  const { attributes = {}, ...others } = properties;
  const made = Object.assign(document.createElement(name), others);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

const button = (text, onclick) => element("button", { type: "button", onclick }, text);

// A slider with its value beside it; `show` says the value in words, on screen and aloud.
function slider(label, { min, max, step = 1, value, show = String }, oninput = () => {}) {
  const input = element("input", { type: "range" });
  const shown = element("output", { attributes: { "aria-live": "off" } });   // the slider says it
  Object.assign(input, { min, max, step, value });   // in this order: a value is held to its range
  const control = element("label", { className: "live-slider" }, `${label} `, input, shown);
  control.say = () => {
    shown.textContent = show(+input.value);
    input.setAttribute("aria-valuetext", shown.textContent);
  };
  control.set = (value, max = input.max) => {
    Object.assign(input, { max, value });
    control.say();
  };
  input.oninput = () => { control.say(); oninput(+input.value); };
  control.input = input;
  control.say();
  return control;
}

function number(label, { min, max, value }, onchange = () => {}) {
  const input = element("input", { type: "number", min, max, value });
  input.onchange = () => onchange(+input.value);
  return Object.assign(element("label", {}, `${label} `, input), { input });
}

function choice(label, names, onchange = () => {}) {
  const options = names.map(name => element("option", { value: name }, name));
  const input = element("select", {}, ...options);
  input.onchange = () => onchange(input.value);
  return Object.assign(element("label", {}, `${label} `, input), { input });
}

const row = (...children) => element("div", { className: "live-row" }, ...children);

// A picture with a line under it; the line is also what is read aloud in its place.
function picture(width, height, words) {
  const canvas = element("canvas", { width, height, attributes: { role: "img" } });
  const caption = element("figcaption");
  const figure = element("figure", {}, canvas, caption);
  figure.say = words => {
    caption.textContent = words;
    canvas.setAttribute("aria-label", words);
  };
  figure.say(words);
  return Object.assign(figure, { canvas });
}

const pictures = (...children) =>
  element("div", { className: "live-row live-pictures" }, ...children);

// Put a live part where the page says what it would be.
function replace(place, label, ...children) {
  place.setAttribute("role", "group");
  place.setAttribute("aria-label", label);
  place.replaceChildren(...children);
}

// Until the next time that the screen is drawn: the page stays in the reader's hand. A hidden page
// is not drawn, so that a clock has to do.
const nextFrame = () => new Promise(done => {
  if (document.hidden) { setTimeout(done); return; }
  const go = () => {                // drawn, or hidden meanwhile
    cancelAnimationFrame(frame);
    document.removeEventListener("visibilitychange", go);
    setTimeout(done);
  };
  const frame = requestAnimationFrame(go);
  document.addEventListener("visibilitychange", go);
});

const still = () => matchMedia("(prefers-reduced-motion: reduce)").matches;
return { element, button, slider, number, choice, row, picture, pictures, replace, nextFrame, still };
})();

modules["random.js"] = (() => {
// Standard normal numbers from a seed: the same ones on every machine.

function normals(seed) {
  let state = seed >>> 0;
  const uniform = () => {                       // mulberry32: 32 bits of state, in [0, 1)
    state = state + 0x6d2b79f5 >>> 0;
    let z = Math.imul(state ^ state >>> 15, state | 1);
    z ^= z + Math.imul(z ^ z >>> 7, z | 61);
    return ((z ^ z >>> 14) >>> 0) / 2 ** 32;
  };
  const normal = () =>                          // Box and Muller
    Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform());
  return n => Float32Array.from({ length: n }, normal);
}
return { normals };
})();

modules["multistep.js"] = (() => {
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

const bounded = (v, most) => Math.min(Math.max(v, -most), most);
const roots = ({ alphaBars, sigmas2 }) => [alphaBars.map(Math.sqrt), sigmas2.map(Math.sqrt)];

// x0-hat, integrated over half log-SNR; for two answers with the usual weights, B_2.
function* unipc(d, model, x) {
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
function* adams(d, model, x) {
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
return { bounded, unipc, adams };
})();

modules["schedules.js"] = (() => {
// Chapter 1: the betas, and all that follows from them alone. Numbers are double precision.

const even = (start, end, T) =>
  Float64Array.from({ length: T }, (_, i) => T > 1 ? start + (end - start) * i / (T - 1) : start);

// name -> (T, first beta, last beta) -> betas
const SCHEDULES = {
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
function schedule(betas, timesteps = betas.map((_, i) => i)) {
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
const SPACINGS = {
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
function respaced(s, steps, spacing = "even") {
  const ends = SPACINGS[spacing](s, steps);
  const beta = (end, k) => {
    const stretch = s.betas.subarray(k ? ends[k - 1] : 0, end);
    if (stretch.length === 1) return stretch[0];
    return -Math.expm1(stretch.reduce((sum, beta) => sum + Math.log1p(-beta), 0));
  };
  return schedule(Float64Array.from(ends, beta), ends.map(end => s.timesteps[end - 1]));
}
return { SCHEDULES, schedule, SPACINGS, respaced };
})();

modules["samplers.js"] = (() => {
// Chapters 2, 4 and 5: from noise to data. x is a list of numbers, whatever they are of.
const { adams, bounded, unipc } = modules["multistep.js"];
const { respaced, schedule, SCHEDULES } = modules["schedules.js"];

// What a network's answer says of x_0, by what it was trained to say (chapter 4).
const PREDICTIONS = {
  v_prediction: (x, v, signal, sigma) => signal * x - sigma * v,
  epsilon: (x, eps, signal, sigma) => (x - sigma * eps) / signal,
};

// The process that the network was trained on, or `steps` steps of it.
function diffusion(config, steps, spacing) {
  const betas = SCHEDULES[config.beta_schedule](
    config.num_train_timesteps, config.beta_start, config.beta_end);
  let s = schedule(betas);
  if (steps) s = respaced(s, steps, spacing);
  const read = PREDICTIONS[config.prediction_type], T = s.T;
  const small = s.betas.map((beta, i) => beta * s.sigmas2Prev[i] / s.sigmas2[i]);   // beta-tilde
  const clipped = x0 => config.clip_sample ? x0.map(v => bounded(v, 1)) : x0;
  return {
    schedule: s, clipped,
    // the paper's sigma^2, beta; for the first step, where beta-tilde is 0, that of the second
    variance: i => i ? s.betas[i] : T > 1 ? small[1] : s.betas[0],
    noised(x0, i, eps) {                                                            // eq. 4
      const signal = Math.sqrt(s.alphaBars[i]), sigma = Math.sqrt(s.sigmas2[i]);
      return x0.map((v, j) => signal * v + sigma * eps[j]);
    },
    guess(model, x, i) {                                                            // eq. 15
      const signal = Math.sqrt(s.alphaBars[i]), sigma = Math.sqrt(s.sigmas2[i]);
      const answer = model(x, s.timesteps[i]);
      return clipped(x.map((v, j) => read(v, answer[j], signal, sigma)));
    },
    posteriorMean(x0, x, i) {                                                       // eq. 7
      const ofX0 = Math.sqrt(s.alphaBarsPrev[i]) * s.betas[i] / s.sigmas2[i];
      const ofX = Math.sqrt(1 - s.betas[i]) * s.sigmas2Prev[i] / s.sigmas2[i];
      return x.map((v, j) => ofX0 * x0[j] + ofX * v);
    },
  };
}

// A sampler yields { i, x, x0 } after each step: the step undone, what it led to, and the guess of
// the clean data that led there. randn(n) gives n standard normal numbers.

function* ddpm(d, model, x, randn) {                                       // algorithm 2
  for (let i = d.schedule.T - 1; i >= 0; i--) {
    const x0 = d.guess(model, x, i), mean = d.posteriorMean(x0, x, i);
    if (i > 0) {
      const sigma = Math.sqrt(d.variance(i)), eps = randn(x.length);
      x = mean.map((v, j) => v + sigma * eps[j]);
    } else x = mean;
    yield { i, x, x0 };
  }
}

function* ddim(d, model, x, randn, eta = 0) {                   // eta: the share of fresh noise
  const { T, betas, alphaBars, alphaBarsPrev, sigmas2, sigmas2Prev } = d.schedule;
  for (let i = T - 1; i >= 0; i--) {
    const x0 = d.guess(model, x, i);
    const signal = Math.sqrt(alphaBars[i]), sigma = Math.sqrt(sigmas2[i]);
    const fresh2 = eta ** 2 * betas[i] * sigmas2Prev[i] / sigmas2[i];
    const kept = Math.sqrt(Math.max(sigmas2Prev[i] - fresh2, 0));
    const ahead = Math.sqrt(alphaBarsPrev[i]);
    x = x.map((v, j) => ahead * x0[j] + kept * (v - signal * x0[j]) / sigma);
    if (fresh2 > 0) {
      const eps = randn(x.length);
      x = x.map((v, j) => v + Math.sqrt(fresh2) * eps[j]);
    }
    yield { i, x, x0 };
  }
}

function* dpmSolverPP2M(d, model, x) {          // x0-hat extrapolated from the last two steps
  const signals = d.schedule.alphaBars.map(Math.sqrt), sigmas = d.schedule.sigmas2.map(Math.sqrt);
  const lambdas = d.schedule.logSnr.map(v => v / 2);
  let lastX0 = null, lastH = 1;
  for (let i = d.schedule.T - 1; i >= 0; i--) {
    const x0 = d.guess(model, x, i);
    if (i === 0) x = x0;    // the last stretch, to infinite SNR, ends in x0-hat itself
    else {
      const h = lambdas[i - 1] - lambdas[i], share = lastX0 ? h / (2 * lastH) : 0;
      const keep = sigmas[i - 1] / sigmas[i], toward = -signals[i - 1] * Math.expm1(-h);
      const D = lastX0 ? x0.map((v, j) => v + share * (v - lastX0[j])) : x0;
      x = x.map((v, j) => keep * v + toward * D[j]);
      [lastX0, lastH] = [x0, h];
    }
    yield { i, x, x0 };
  }
}

const SAMPLERS = { ddpm, ddim, "dpm++": dpmSolverPP2M, unipc, adams };

// The spacing of the steps that suits each best, from six steps on (chapter 5).
const BEST = { ddpm: "even", ddim: "even", "dpm++": "between", unipc: "between",
                      adams: "between" };
return { diffusion, SAMPLERS, BEST };
})();

modules["layers.js"] = (() => {
// What the U-Net of chapter 6 is made of. A feature map is { c, size, data }: c channels of
// size x size pixels, channel after channel, in single precision.

const feature = (c, size, data = new Float32Array(c * size * size)) => ({ c, size, data });

const silu = v => v.map(u => u / (1 + Math.exp(-u)));
const siluMap = x => feature(x.c, x.size, silu(x.data));

const add = (x, y) => feature(x.c, x.size, x.data.map((u, i) => u + y.data[i]));

function concat(x, y) {
  const out = feature(x.c + y.c, x.size);
  out.data.set(x.data);
  out.data.set(y.data, x.data.length);
  return out;
}

const places = (count, where) => new Int32Array(count).map((_, i) => where(i));

// (m, k) times (k, n), n a multiple of 4; entry (j, p) of the second is b[rows[j] + columns[p]].
// Nearly all the time is spent here. Four columns are cut out, side by side; then eight sums at
// once, of two rows and four columns, need six numbers for eight products; one needs sixteen.
function product(a, b, rows, columns, bias) {
  const m = bias.length, k = rows.length, n = columns.length;
  const out = new Float32Array(m * n), cut = new Float64Array(4 * k);
  for (let p = 0; p < n; p += 4) {
    const c0 = columns[p], c1 = columns[p + 1], c2 = columns[p + 2], c3 = columns[p + 3];
    for (let j = 0, q = 0; j < k; j++, q += 4) {
      const r = rows[j];
      cut[q] = b[r + c0]; cut[q + 1] = b[r + c1]; cut[q + 2] = b[r + c2]; cut[q + 3] = b[r + c3];
    }
    for (let i = 0; i < m; i += 2) {
      const second = Math.min(i + 1, m - 1);        // an odd last row is computed twice
      let s0 = bias[i], s1 = s0, s2 = s0, s3 = s0, r0 = bias[second], r1 = r0, r2 = r0, r3 = r0;
      for (let j = 0, u = i * k, v = second * k, q = 0; j < k; j++, u++, v++, q += 4) {
        const w = a[u], z = a[v];
        const b0 = cut[q], b1 = cut[q + 1], b2 = cut[q + 2], b3 = cut[q + 3];
        s0 += w * b0; s1 += w * b1; s2 += w * b2; s3 += w * b3;
        r0 += z * b0; r1 += z * b1; r2 += z * b2; r3 += z * b3;
      }
      const o = i * n + p, l = second * n + p;
      out[o] = s0; out[o + 1] = s1; out[o + 2] = s2; out[o + 3] = s3;
      out[l] = r0; out[l + 1] = r1; out[l + 2] = r2; out[l + 3] = r3;
    }
  }
  return out;
}

const matmul = (a, b, m, k, n, bias = new Float32Array(m)) =>
  product(a, b, places(k, j => j * n), places(n, p => p), bias);

// An image in a frame of zeros, `before` of them at its top and left and one at the other sides.
function framed(x, before) {
  const side = before + x.size + 1, out = feature(x.c, side);
  for (let row = 0; row < x.c * x.size; row++) {          // rows of all channels, counted through
    const c = row / x.size | 0, to = (c * side + row % x.size + before) * side + before;
    for (let i = 0; i < x.size; i++) out.data[to + i] = x.data[row * x.size + i];
  }
  return out;
}

function upsampled(x) {   // each pixel four times
  const out = feature(x.c, 2 * x.size), side = out.size;
  for (let i = 0; i < out.data.length; i++) {
    const row = i / side | 0, column = i % side;          // rows of all channels, counted through
    out.data[i] = x.data[(row >> 1) * x.size + (column >> 1)];
  }
  return out;
}

// The layers by the names that their weights have in the file.
function layers(weights, groups) {
  const of = name => [weights[`${name}.weight`], weights[`${name}.bias`]];
  return {
    has: name => `${name}.weight` in weights,
    linear(name, v) {
      const [w, bias] = of(name);
      return bias.map((sum, i) => v.reduce((sum, u, j) => sum + w[i * v.length + j] * u, sum));
    },
    conv1(name, x) {
      const [w, bias] = of(name);
      return feature(bias.length, x.size,
                     matmul(w, x.data, bias.length, x.c, x.size * x.size, bias));
    },
    conv3(name, x, stride = 1, before = 1) {   // a column holds the 3 x 3 inputs around a pixel
      const [w, bias] = of(name), size = x.size / stride, { size: side, data } = framed(x, before);
      const at = (c, row, column) => (c * side + row) * side + column;
      const rows = places(9 * x.c, j => at(j / 9 | 0, (j % 9) / 3 | 0, j % 3));
      const columns = places(size * size, p => at(0, (p / size | 0) * stride, p % size * stride));
      return feature(bias.length, size, product(w, data, rows, columns, bias));
    },
    norm(name, x) {   // each group of channels: mean 0, variance 1; then a scale and a shift each
      const [w, bias] = of(name), n = x.data.length / groups, area = x.size * x.size;
      const out = feature(x.c, x.size);
      for (let start = 0; start < x.data.length; start += n) {
        let sum = 0, squares = 0;
        for (let i = start; i < start + n; i++) sum += x.data[i];
        const mean = sum / n;
        for (let i = start; i < start + n; i++) squares += (x.data[i] - mean) ** 2;
        const scale = 1 / Math.sqrt(squares / n + 1e-6);
        for (let i = start; i < start + n; i++) {
          const c = i / area | 0;
          out.data[i] = (x.data[i] - mean) * scale * w[c] + bias[c];
        }
      }
      return out;
    },
  };
}
return { silu, siluMap, add, concat, matmul, upsampled, layers };
})();

modules["unet.js"] = (() => {
// Chapter 6: the paper's U-Net, for one image. Its weights keep the names of the file that they
// come from, which are those of the library diffusers.
const { add, concat, layers, matmul, silu, siluMap, upsampled } = modules["layers.js"];

// Sines, then cosines, of t at frequencies from 1 down to 1/10000.
function timestepEmbedding(t, dim) {
  const half = dim / 2, out = new Float32Array(dim);
  for (let i = 0; i < half; i++) {
    const frequency = Math.fround(Math.exp(Math.fround(-Math.log(1e4) * i / (half - 1))));
    const angle = Math.fround(t * frequency);
    out[i] = Math.sin(angle);
    out[half + i] = Math.cos(angle);
  }
  return out;
}

// Two convolutions around which the input is carried; the time enters between them.
function residualBlock(net, at, x, time) {
  let h = net.conv3(`${at}.conv1`, siluMap(net.norm(`${at}.norm1`, x)));
  const shift = net.linear(`${at}.time_emb_proj`, time), area = h.size * h.size;
  for (let i = 0; i < h.data.length; i++) h.data[i] += shift[i / area | 0];
  h = net.conv3(`${at}.conv2`, siluMap(net.norm(`${at}.norm2`, h)));
  return add(net.has(`${at}.conv_shortcut`) ? net.conv1(`${at}.conv_shortcut`, x) : x, h);
}

// Self-attention over the pixels, with a residual connection.
function attention(net, at, x) {
  const h = net.norm(`${at}.group_norm`, x), n = h.size * h.size, scale = 1 / Math.sqrt(h.c);
  const [q, k, v] = ["to_q", "to_k", "to_v"].map(o => net.conv1(`${at}.${o}`, h).data);
  const shares = matmul(transposed(k, h.c, n), q, n, h.c, n);     // (key, query)
  for (let query = 0; query < n; query++) {                       // a softmax over the keys
    let most = -Infinity, sum = 0;
    for (let i = query; i < n * n; i += n) most = Math.max(most, shares[i]);
    for (let i = query; i < n * n; i += n) sum += shares[i] = Math.exp((shares[i] - most) * scale);
    for (let i = query; i < n * n; i += n) shares[i] /= sum;
  }
  const mixed = { ...h, data: matmul(v, shares, h.c, n, n) };
  return add(x, net.conv1(`${at}.to_out.0`, mixed));
}

const transposed = (x, rows, columns) =>
  x.map((_, i) => x[(i % rows) * columns + Math.floor(i / rows)]);

// config: the network's choices, as the file beside the weights has them. Returns model(x, t).
function unet(config, weights) {
  const net = layers(weights, config.norm_num_groups), levels = config.block_out_channels.length;
  const stage = (at, i, x, time) => {    // a residual block, and attention where the level has it
    const h = residualBlock(net, `${at}.resnets.${i}`, x, time), where = `${at}.attentions.${i}`;
    return net.has(`${where}.to_q`) ? attention(net, where, h) : h;
  };

  return (x, t) => {
    const code = timestepEmbedding(t, config.block_out_channels[0]);
    const hidden = silu(net.linear("time_embedding.linear_1", code));
    const time = silu(net.linear("time_embedding.linear_2", hidden));

    let h = net.conv3("conv_in", { c: config.in_channels, size: config.sample_size, data: x });
    const aside = [h];
    for (let level = 0; level < levels; level++) {                            // the way down
      const at = `down_blocks.${level}`;
      for (let i = 0; i < config.layers_per_block; i++)
        aside.push(h = stage(at, i, h, time));
      if (level < levels - 1) aside.push(h = net.conv3(`${at}.downsamplers.0.conv`, h, 2, 0));
    }
    for (const i of [0, 1]) h = stage("mid_block", i, h, time);               // the middle
    for (let level = 0; level < levels; level++) {                            // the way up
      const at = `up_blocks.${level}`;
      for (let i = 0; i <= config.layers_per_block; i++)
        h = stage(at, i, concat(h, aside.pop()), time);
      if (level < levels - 1) h = net.conv3(`${at}.upsamplers.0.conv`, upsampled(h));
    }
    return net.conv3("conv_out", siluMap(net.norm("conv_norm_out", h))).data;
  };
}
return { unet };
})();

modules["weights.js"] = (() => {
const bytes = base64 => Uint8Array.from(atob(base64), c => c.charCodeAt(0));

// A safetensors file: the length of a header (8 bytes), the header (JSON: the name, type, shape and
// place of each tensor), then the numbers. Here they are halves, which JavaScript does not know.

function safetensors(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  const start = 8 + Number(view.getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(8, start)));
  delete header.__metadata__;
  return Object.fromEntries(Object.entries(header).map(([name, { data_offsets: [from, to] }]) => [
    name, Float32Array.from({ length: (to - from) / 2 }, (_, i) =>
      half(view.getUint16(start + from + 2 * i, true)))]));
}

function half(bits) {
  const sign = bits >> 15 ? -1 : 1, exponent = bits >> 10 & 31, fraction = (bits & 1023) / 1024;
  if (exponent === 31) throw new Error("a weight is infinite or not a number");
  return sign * (exponent ? (1 + fraction) * 2 ** (exponent - 15) : fraction * 2 ** -14);
}
return { bytes, safetensors };
})();

modules["digits.js"] = (() => {
// The packaged network of digits, in the page: samples, and guesses.
const { button, choice, element, nextFrame, number, picture, pictures, replace, row, slider } = modules["controls.js"];
const { normals } = modules["random.js"];
const { BEST, diffusion, SAMPLERS } = modules["samplers.js"];
const { SPACINGS } = modules["schedules.js"];
const { unet } = modules["unet.js"];
const { bytes, safetensors } = modules["weights.js"];

const folder = new URL(".", document.currentScript?.src ?? location.href);
let loading = null;

// The network, and the file it comes from: loaded when first asked for, once for all parts.
const network = () => loading ??= new Promise((done, fail) => {
  const onload = () => {
    try {
      const file = globalThis.ddpmDigits;
      done({ ...file, model: unet(file.unet, safetensors(bytes(file.weights))) });
    } catch { onerror(); }                   // it came, but not whole
  };
  const onerror = () => {
    loading = null;                          // who asks again may be luckier
    fail(new Error("The weights, _static/live-digits.js, are missing."));
  };
  const src = new URL("live-digits.js", folder);
  document.head.append(element("script", { src, onload, onerror }));
});

const SIDE = 16;

// Numbers from -1 (black) to 1 (white) on a canvas.
function draw(canvas, x) {
  const image = new ImageData(SIDE, SIDE);
  for (let i = 0; i < x.length; i++) {
    const grey = Math.round((Math.min(Math.max(x[i], -1), 1) + 1) * 127.5);
    image.data.set([grey, grey, grey, 255], 4 * i);
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

const screen = words => picture(SIDE, SIDE, words);

// From noise to a digit, and back and forth along the way.
function digits(place) {
  const STEPS = [1, 2, 3, 5, 10, 20, 50, 100, 250, 1000];
  const noisy = screen("noise"), guess = screen("the network's guess");
  const made = element("div", { className: "live-made" });
  const status = element("p", { className: "live-status", attributes: { role: "status" } });
  const seed = number("seed", { min: 0, max: 99999, value: 1 }, () => sample());
  const steps = slider("steps", { min: 0, max: STEPS.length - 1, value: 5, show: i => STEPS[i] });
  const sampler = choice("sampler", Object.keys(SAMPLERS));
  const spacing = choice("spacing", Object.keys(SPACINGS));
  let xs = [], guesses = [], times = [], run = 0, held = false;
  const way = slider("t", { min: 0, max: 0, value: 0, show: k => times[k] ?? "" }, k => {
    held = true;                             // from here on the hand leads, as far as the way goes
    if (k >= xs.length) way.set(xs.length - 1);
    show(Math.min(k, xs.length - 1));
  });
  const few = () => STEPS[steps.input.value] < 6;     // for so few, steps even in t are the best
  let suited = "";
  const suit = () => suited = spacing.input.value = few() ? "even" : BEST[sampler.input.value];
  sampler.input.value = "adams";
  suit();
  spacing.input.onchange = () => sample();
  sampler.input.onchange = () => { suit(); return sample(); };
  steps.input.onchange = () => {
    if (spacing.input.value === suited) suit();      // unless the reader has chosen another
    return sample();
  };

  function show(k) {
    if (!xs.length) return;
    draw(noisy.canvas, xs[k]);
    noisy.say(times[k] ? `with noise: xₜ, t = ${times[k]}` : "the sample, t = 0");
    const x0 = guesses[Math.min(k, guesses.length - 1)];
    if (x0) draw(guess.canvas, x0);
  }

  async function sample() {
    const mine = ++run, named = seed.input.value;
    status.textContent = "The network is loaded, and draws.";
    let file = null;
    try { file = await network(); } catch (error) { status.textContent = error.message; return; }
    const { model, scheduler } = file, count = STEPS[steps.input.value];
    const d = diffusion(scheduler, count, spacing.input.value);
    const randn = normals(+named), began = performance.now();
    xs = [randn(SIDE * SIDE)]; guesses = [];
    times = [...d.schedule.timesteps].map(t => t + 1).reverse().concat(0);
    way.set(0, count);
    way.input.disabled = false;
    held = false;
    let shown = began;
    for (const state of SAMPLERS[sampler.input.value](d, model, xs[0], randn)) {
      xs.push(state.x);
      guesses.push(state.x0);
      if (state.i && performance.now() - shown < 30) continue;
      if (!held) { way.set(xs.length - 1); show(xs.length - 1); }
      await nextFrame();
      if (mine !== run) return;      // the reader has asked for another
      shown = performance.now();
    }
    const thumbnail = element("canvas", { width: SIDE, height: SIDE,
      attributes: { role: "img", "aria-label": `the digit of seed ${named}` } });
    draw(thumbnail, xs.at(-1));
    made.prepend(thumbnail);
    while (made.children.length > 12) made.lastChild.remove();
    const seconds = ((performance.now() - began) / 1000).toFixed(1);
    status.textContent = `${count} steps in ${seconds} s. Drag t to go back along the way.`;
    place.dataset.done = run;
  }

  const fresh = button("A new digit", () => {
    seed.input.value = (+seed.input.value + 1) % 100000;
    return sample();
  });
  const more = element("details", {}, element("summary", {}, "How it draws: chapter 5 explains"),
                       row(seed, sampler, spacing));
  replace(place, "A diffusion model of digits, running in this page",
          pictures(noisy, guess), row(fresh), way, status, made, row(steps), more);
  way.input.disabled = true;                                     // there is none yet
  draw(noisy.canvas, normals(+seed.input.value + 1)(SIDE * SIDE));   // where the next will begin
  draw(guess.canvas, new Float32Array(SIDE * SIDE));             // grey: it has not been asked
  noisy.say("noise, t = 1000: press A new digit");
  guess.say("x̂₀: the network's guess of the clean digit");
  place.state = () => ({ xs, guesses, times });
}

// A real digit, held out from training; the same with noise; and what the network makes of it.
function guesses(place) {
  const clean = screen("x₀"), noisy = screen("xₜ"), guess = screen("x̂₀");
  const status = element("p", { className: "live-status", attributes: { role: "status" } });
  let file = null, index = 0, seed = 0;
  const t = slider("t", { min: 1, max: 1000, value: 300 }, show);

  async function show() {
    try { file ??= await network(); } catch (error) {
      guess.say(error.message);
      status.textContent = error.message;
      return;
    }
    const d = diffusion(file.scheduler), i = t.input.value - 1;
    const shown = bytes(file.digits).subarray(index * SIDE * SIDE, (index + 1) * SIDE * SIDE);
    const x0 = Float32Array.from(shown, v => v / 127.5 - 1);
    const x = d.noised(x0, i, normals(seed)(SIDE * SIDE)), x0Hat = d.guess(file.model, x, i);
    draw(clean.canvas, x0);
    draw(noisy.canvas, x);
    draw(guess.canvas, x0Hat);
    noisy.say(`with noise: xₜ, t = ${i + 1}`);
    guess.say("x̂₀: the network's guess");
    status.textContent = "";
    place.state = () => ({ x0, x, x0Hat });
    place.dataset.done = +(place.dataset.done ?? 0) + 1;
  }

  clean.say("x₀: a digit that it never saw");
  guess.say("x̂₀: the network's guess");
  const other = button("Another digit", () => {
    index = (index + 1) % (file?.count ?? 1);
    return show();
  });
  const noise = button("Other noise", () => { seed++; return show(); });
  replace(place, "A digit, with noise, and the network's guess of it",
          pictures(clean, noisy, guess), t, row(other, noise), status);
  new IntersectionObserver((seen, watch) => {       // nothing is loaded before it can be seen
    if (seen.some(o => o.isIntersecting)) { watch.disconnect(); show(); }
  }).observe(place);
}
return { network, draw, digits, guesses };
})();

modules["mixture.js"] = (() => {
// Chapter 7's data in the plane, and what chapter 4 calls the ideal denoiser: each data set is an
// average of round Gaussians, so that every density on the way to noise is one too.

const circle = (n, radius) => Array.from({ length: n }, (_, i) =>
  [radius * Math.cos(2 * Math.PI * i / n), radius * Math.sin(2 * Math.PI * i / n)]);

// name -> centres and the standard deviation about each
const MIXTURES = {
  "swiss roll": { std: 0.05, centres: Array.from({ length: 180 }, (_, i) => {
    const angle = 1.5 * Math.PI * (1 + 2 * (i + 0.5) / 180), r = 2 * angle / (4.5 * Math.PI);
    return [r * Math.cos(angle), r * Math.sin(angle)];
  }) },
  "ring": { std: 0.1, centres: circle(8, 1.5) },
  "grid": { std: 0.08, centres: Array.from({ length: 25 }, (_, i) =>
    [0.75 * (i % 5 - 2), 0.75 * (Math.floor(i / 5) - 2)]) },
};

// The mixture after noise: centres drawn in, each Gaussian widened (eq. 4).
function noised({ std, centres }, alphaBar) {
  const signal = Math.sqrt(alphaBar);
  return {
    std: Math.sqrt(alphaBar * std * std + 1 - alphaBar),
    centres: centres.map(([x, y]) => [signal * x, signal * y]),
  };
}

// The density at a point, and its centre of gravity: where the Gaussians that are felt there are.
function felt({ std, centres }, x, y) {
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
function idealDenoiser(mixture, s) {
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

const points = ({ std, centres }, n, randn) => randn(2 * n).map(
  (v, i) => centres[Math.floor(i / 2) * 7919 % centres.length][i % 2] + std * v);
return { MIXTURES, noised, felt, idealDenoiser, points };
})();

modules["particles.js"] = (() => {
// Particles in the plane under the exact score, and the density behind them.
const { button, choice, element, nextFrame, picture, replace, row, slider, still } = modules["controls.js"];
const { felt, idealDenoiser, MIXTURES, noised, points } = modules["mixture.js"];
const { normals } = modules["random.js"];
const { diffusion, SAMPLERS } = modules["samplers.js"];
const { SPACINGS } = modules["schedules.js"];

const SIZE = 320, REACH = 3, CELLS = 64, COUNT = 400;
const PAPER = { beta_schedule: "linear", num_train_timesteps: 1000, beta_start: 1e-4,
                beta_end: 0.02, prediction_type: "epsilon", clip_sample: false };

// The density on a grid, as a pale blue ground; its square root, so that thin places show.
function ground(mixture) {
  const cells = Float64Array.from({ length: CELLS * CELLS }, (_, i) => {
    const middle = k => ((k + 0.5) / CELLS * 2 - 1) * REACH;
    return Math.sqrt(felt(mixture, middle(i % CELLS), -middle(Math.floor(i / CELLS))).density);
  });
  const most = Math.max(...cells), image = new ImageData(CELLS, CELLS);
  cells.forEach((v, i) => {
    const shade = 0.6 * v / most;             // from white towards the colour of data, 0 114 178
    image.data.set([255 - 255 * shade, 255 - 141 * shade, 255 - 77 * shade, 255], 4 * i);
  });
  return image;
}

function particles(place) {
  const plane = picture(SIZE, SIZE, ""), pen = plane.canvas.getContext("2d");
  const status = element("p", { className: "live-status", attributes: { role: "status" } });
  const grid = element("canvas", { width: CELLS, height: CELLS });
  const whole = diffusion(PAPER), randn = normals(1);
  let states = [], times = [], drawn = {}, back = false, run = 0, film = 0;

  const way = slider("t", { min: 0, max: 0, value: 0, show: k => times[k] ?? "" }, k => {
    film++;                                   // the hand stops the film, not what is being computed
    if (states.length) show(k);
  });
  const data = choice("data", Object.keys(MIXTURES), compute);
  const steps = slider("steps", { min: 1, max: 100, value: 40 });
  const eta = slider("η", { min: 0, max: 1, step: 0.05, value: 0, show: v => v.toFixed(2) });
  const spacing = choice("spacing", Object.keys(SPACINGS));
  steps.input.onchange = eta.input.onchange = spacing.input.onchange = compute;

  const mixture = () => MIXTURES[data.input.value];

  function show(k) {
    const t = times[k], x = states[k], { mixture, back } = drawn;
    const now = t ? noised(mixture, whole.schedule.alphaBars[t - 1]) : mixture;
    grid.getContext("2d").putImageData(ground(now), 0, 0);
    pen.drawImage(grid, 0, 0, SIZE, SIZE);
    pen.fillStyle = back ? "#e07000" : "#0072b2";
    for (let i = 0; i < x.length; i += 2) {
      const [u, v] = [x[i] / REACH, -x[i + 1] / REACH].map(o => (o + 1) / 2 * SIZE);
      pen.fillRect(u - 1.25, v - 1.25, 2.5, 2.5);
    }
    const from = back ? "back from noise" : "forward from the data";
    plane.say(`${COUNT} particles ${from}, at t = ${t}; blue ground: the exact density`);
  }

  function* forward({ betas }) {
    let x = points(mixture(), COUNT, randn);
    yield x;
    for (const beta of betas) {                                                     // eq. 2
      const eps = randn(2 * COUNT);
      yield x = x.map((v, i) => Math.sqrt(1 - beta) * v + Math.sqrt(beta) * eps[i]);
    }
  }

  function* backward(d) {
    const model = idealDenoiser(mixture(), whole.schedule), x = randn(2 * COUNT);
    yield x;
    for (const state of SAMPLERS.ddim(d, model, x, randn, +eta.input.value)) yield state.x;
  }

  // Walk the whole way, in slices; then show it, or where motion is not wanted its end.
  async function compute() {
    const mine = ++run, made = [], d = diffusion(PAPER, +steps.input.value, spacing.input.value);
    const what = { mixture: mixture(), back };
    let paused = performance.now();
    for (const x of back ? backward(d) : forward(d.schedule)) {
      made.push(x);
      if (performance.now() - paused < 30) continue;
      await nextFrame();
      if (mine !== run) return;               // the reader has asked for another
      paused = performance.now();
    }
    states = made;
    drawn = what;
    times = [0, ...d.schedule.timesteps.map(t => t + 1)];
    if (what.back) times.reverse();
    const reel = ++film, playing = () => mine === run && reel === film;
    for (let k = still() ? states.length - 1 : 0; k < states.length && playing(); k++) {
      way.set(k, states.length - 1);
      show(k);
      await nextFrame();
    }
    status.textContent = plane.querySelector("figcaption").textContent;
    place.dataset.done = mine;
  }

  const walk = where => button(where ? "Back: noise to data" : "Forward: data to noise", () => {
    back = where;
    return compute();
  });
  replace(place, "Particles in the plane, under the exact score",
          plane, way, row(walk(false), walk(true)), row(data, steps, eta, spacing), status);
  place.state = () => ({ states, times });
  states = [points(mixture(), COUNT, normals(1))];
  times = [0];
  drawn = { mixture: mixture(), back };
  show(0);
  new IntersectionObserver((seen, watch) => {      // the first film waits until it can be seen
    if (!seen.some(o => o.isIntersecting)) return;
    watch.disconnect();
    if (!run) compute();
  }).observe(place);
}
return { particles };
})();

modules["player.js"] = (() => {
// A film: frames side by side in one picture, of which the page shows one at a time.
const { button, row, slider, still } = modules["controls.js"];

function player(place) {
  const { frames, columns, duration, hold } = place.dataset, count = +frames;
  const rows = Math.ceil(count / columns), image = place.querySelector("img");
  let playing = null;

  function show(k) {
    const x = k % columns, y = Math.floor(k / columns);
    image.style.transform = `translate(${-100 * x / columns}%, ${-100 * y / rows}%)`;
  }

  function play(on) {
    clearTimeout(playing);
    playing = on ? setTimeout(step, way.input.value == count - 1 ? +hold : +duration) : null;
    pause.textContent = on ? "Pause" : "Play";
  }

  function step() {
    way.set((+way.input.value + 1) % count);
    show(+way.input.value);
    play(true);
  }

  const pause = button("Play", () => play(!playing));
  const way = slider("frame", { min: 0, max: count - 1, value: 0,
    show: k => `${k + 1} of ${count}` }, k => { play(false); show(k); });
  place.append(row(pause, way));
  place.setAttribute("role", "group");
  place.setAttribute("aria-label", "Animation");
  new IntersectionObserver(seen => {          // it moves only while it is seen
    if (!seen.at(-1).isIntersecting) play(false);
    else if (!still() && !place.dataset.stopped) play(true);
  }).observe(place);
  pause.addEventListener("click", () => { place.dataset.stopped = playing ? "" : "yes"; });
  way.input.addEventListener("input", () => { place.dataset.stopped = "yes"; });
}
return { player };
})();

modules["plot.js"] = (() => {
// Curves as an SVG, on white as the book's figures are.

const WIDTH = 340, HEIGHT = 220, LEFT = 46, BOTTOM = 34, TOP = 26, RIGHT = 12;

// curves: name -> { y, color }, y a value for each of 1 .. T. range: the least and the greatest y
// that are shown; log: on a logarithmic axis. Their names stand at `names`, from the top; `mark` is
// a step to point at.
function plot(title, curves, { range, ticks, log = false, names = TOP + 12, mark }) {
  const T = Object.values(curves)[0].y.length, f = log ? Math.log10 : v => v;
  const [low, high] = range.map(f);
  const px = t => LEFT + (WIDTH - LEFT - RIGHT) * (t - 1) / Math.max(T - 1, 1);
  const py = v => {
    const share = (f(v) - low) / (high - low);
    return HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * Math.min(Math.max(share, 0), 1);
  };
  const text = (x, y, words, anchor = "middle", more = "") =>
    `<text x="${x}" y="${y}" text-anchor="${anchor}" ${more}>${words}</text>`;
  const line = (x1, y1, x2, y2, color, width = 1) =>
    `<path d="M${x1} ${y1}L${x2} ${y2}" stroke="${color}" stroke-width="${width}" fill="none"/>`;
  const parts = [text(LEFT, 16, title, "start", 'font-weight="bold"')];
  for (const v of ticks) {
    parts.push(line(LEFT, py(v), WIDTH - RIGHT, py(v), "#e3e3e3"));
    parts.push(text(LEFT - 5, py(v) + 4, v, "end"));
  }
  parts.push(text(px(1), HEIGHT - 18, 1), text(px(T), HEIGHT - 18, T, "end"));
  parts.push(text((LEFT + WIDTH) / 2, HEIGHT - 6, "step t"));
  if (mark) parts.push(line(px(mark), TOP, px(mark), HEIGHT - BOTTOM, "#8c8c8c"));
  Object.entries(curves).forEach(([name, { y, color }], i) => {
    const path = Array.from(y, (v, k) => `${px(k + 1).toFixed(1)} ${py(v).toFixed(1)}`);
    parts.push(`<path d="M${path.join("L")}" stroke="${color}" stroke-width="1.8" fill="none"/>`);
    const at = names + 14 * i;       // its name is black: the curve's colour is too pale to read
    parts.push(line(WIDTH - RIGHT - 14, at - 4, WIDTH - RIGHT, at - 4, color, 1.8));
    parts.push(text(WIDTH - RIGHT - 19, at, name, "end"));
  });
  const said = `${title}: ${Object.keys(curves).join(", ")}, for steps 1 to ${T}`;
  return `<svg viewBox="0 0 ${WIDTH} ${HEIGHT}" role="img" aria-label="${said}">` +
    `${parts.join("")}</svg>`;
}
return { plot };
})();

modules["curves.js"] = (() => {
// Chapters 1 and 4 under the hand: a schedule, its signal-to-noise ratio, the weights of eq. 12.
const { choice, element, replace, row, slider } = modules["controls.js"];
const { plot } = modules["plot.js"];
const { schedule, SCHEDULES } = modules["schedules.js"];

const DATA = "#0072b2", NOISE = "#8c8c8c", GREEN = "#009e73", PINK = "#cc79a7";

// What multiplies the squared error of eps in L_{t-1} (eq. 12), for sigma^2 = beta or beta-tilde;
// where beta-tilde is 0, at the first step, both take that of the second, as the paper's code does.
function weights({ betas, sigmas2, sigmas2Prev }, variance) {
  const tilde = i => betas[i] * sigmas2Prev[i] / sigmas2[i];
  return betas.map((beta, i) => {
    const first = betas.length > 1 ? tilde(1) : betas[0];
    const sigma2 = i === 0 ? first : variance === "fixed_large" ? beta : tilde(i);
    return beta ** 2 / (2 * sigma2 * (1 - beta) * sigmas2[i]);
  });
}

const VIEWS = {
  betas: (s, mark) => plot("β, the noise of each step", {
    "β": { y: s.betas, color: GREEN },
  }, { range: [1e-5, 1], ticks: [1e-4, 1e-2, 1], log: true, mark }),
  signal: (s, mark) => plot("What is left of signal and noise", {
    "signal ᾱ": { y: s.alphaBars, color: DATA },
    "noise 1 − ᾱ": { y: s.sigmas2, color: NOISE },
  }, { range: [0, 1], ticks: [0, 0.5, 1], mark }),
  snr: (s, mark) => plot("Logarithm of the signal-to-noise ratio", {
    "log SNR": { y: s.logSnr, color: GREEN },
  }, { range: [-15, 10], ticks: [-10, -5, 0, 5, 10], mark }),
  weights: (s, mark) => plot("Weights of eq. 12", {
    "fixed_large": { y: weights(s, "fixed_large"), color: GREEN },
    "fixed_small": { y: weights(s, "fixed_small"), color: PINK },
    "L_simple: 1": { y: s.betas.map(() => 1), color: "#1a1a1a" },
  }, { range: [1e-4, 10], ticks: [1e-4, 1e-3, 0.01, 0.1, 1, 10], log: true, names: 78, mark }),
};

// `data-views` says which of the views are shown.
function curves(place) {
  const shown = place.dataset.views.split(" ");
  const figures = element("div", { className: "live-row" });
  const numbers = element("p", { className: "live-status", attributes: { role: "status" } });
  const kind = choice("schedule", Object.keys(SCHEDULES), change);
  const small = v => Number.isFinite(v) ? Number(v.toPrecision(3)).toString() : "∞";
  const power = (label, low, value) => slider(label, {
    min: low, max: 0, step: 0.01, value: Math.log10(value), show: v => small(10 ** v) }, change);
  const T = slider("T", { min: 10, max: 1000, step: 10, value: 1000 }, change);
  const start = power("first β", -5, 1e-4), end = power("last β", -4, 0.02);
  const t = slider("t", { min: 1, max: 1000, value: 500 }, change);

  function change() {
    if (t.input.max !== T.input.value) t.set(Math.min(t.input.value, T.input.value), T.input.value);
    // the numbers that are shown: a slider of logarithms has no 0.02, only what is next to it
    const [from, to] = [start, end].map(o => Math.min(+small(10 ** o.input.value), 1));
    start.input.disabled = ["constant", "jsd", "cosine"].includes(kind.input.value);
    end.input.disabled = ["jsd", "cosine"].includes(kind.input.value);
    const s = schedule(SCHEDULES[kind.input.value](+T.input.value, from, to));
    const i = t.input.value - 1;
    figures.innerHTML = shown.map(view => VIEWS[view](s, i + 1)).join("");
    const said = [`β = ${small(s.betas[i])}`, `ᾱ = ${small(s.alphaBars[i])}`,
                  `SNR = ${small(s.alphaBars[i] / s.sigmas2[i])}`];
    if (shown.includes("weights"))
      said.push(`weight ${small(weights(s, "fixed_large")[i])} with fixed_large`,
                `${small(weights(s, "fixed_small")[i])} with fixed_small`);
    numbers.textContent = `At t = ${i + 1}: ${said.join(", ")}`;
    place.state = () => s;
  }

  replace(place, "A noise schedule under the hand", figures, numbers,
          row(kind, T, start, end, t));
  change();
}
return { weights, curves };
})();

modules["main.js"] = (() => {
// Each part of a page that says `data-live="name"` comes alive. All of it is in `ddpm`, for a
// reader who opens the browser's console.
const { digits, guesses, network } = modules["digits.js"];
const { idealDenoiser, MIXTURES } = modules["mixture.js"];
const { particles } = modules["particles.js"];
const { player } = modules["player.js"];
const { normals } = modules["random.js"];
const { BEST, diffusion, SAMPLERS } = modules["samplers.js"];
const { respaced, schedule, SCHEDULES, SPACINGS } = modules["schedules.js"];
const { curves, weights } = modules["curves.js"];

const PARTS = { digits, guesses, particles, curves, player };

for (const place of document.querySelectorAll("[data-live]")) PARTS[place.dataset.live](place);

globalThis.ddpm = { network, diffusion, SAMPLERS, BEST, schedule, SCHEDULES, SPACINGS, respaced,
                    normals, idealDenoiser, MIXTURES, weights };
return {  };
})();
})();
