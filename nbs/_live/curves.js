// Chapters 1 and 4 under the hand: a schedule, its signal-to-noise ratio, the weights of eq. 12.
import { choice, element, replace, row, slider } from "./controls.js";
import { plot } from "./plot.js";
import { schedule, SCHEDULES } from "./schedules.js";

const DATA = "#0072b2", NOISE = "#8c8c8c", GREEN = "#009e73", PINK = "#cc79a7";

// What multiplies the squared error of eps in L_{t-1} (eq. 12), for sigma^2 = beta or beta-tilde;
// where beta-tilde is 0, at the first step, both take that of the second, as the paper's code does.
export function weights({ betas, sigmas2, sigmas2Prev }, variance) {
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
export function curves(place) {
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
