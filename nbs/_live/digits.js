// The packaged network of digits, in the page: samples, and guesses.
import { button, choice, element, nextFrame, number, picture, pictures, replace, row, slider }
  from "./controls.js";
import { normals } from "./random.js";
import { BEST, diffusion, SAMPLERS } from "./samplers.js";
import { SPACINGS } from "./schedules.js";
import { unet } from "./unet.js";
import { bytes, safetensors } from "./weights.js";

const folder = new URL(".", document.currentScript?.src ?? location.href);
let loading = null;

// The network, and the file it comes from: loaded when first asked for, once for all parts.
export const network = () => loading ??= new Promise((done, fail) => {
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
export function draw(canvas, x) {
  const image = new ImageData(SIDE, SIDE);
  for (let i = 0; i < x.length; i++) {
    const grey = Math.round((Math.min(Math.max(x[i], -1), 1) + 1) * 127.5);
    image.data.set([grey, grey, grey, 255], 4 * i);
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

const screen = words => picture(SIDE, SIDE, words);

// From noise to a digit, and back and forth along the way.
export function digits(place) {
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
export function guesses(place) {
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
