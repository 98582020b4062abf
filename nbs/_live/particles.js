// Particles in the plane under the exact score, and the density behind them.
import { button, choice, element, nextFrame, picture, replace, row, slider, still }
  from "./controls.js";
import { felt, idealDenoiser, MIXTURES, noised, points } from "./mixture.js";
import { normals } from "./random.js";
import { diffusion, SAMPLERS } from "./samplers.js";
import { SPACINGS } from "./schedules.js";

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

export function particles(place) {
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
