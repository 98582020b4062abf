// Chapters 2, 4 and 5: from noise to data. x is a list of numbers, whatever they are of.
import { adams, bounded, unipc } from "./multistep.js";
import { respaced, schedule, SCHEDULES } from "./schedules.js";

// What a network's answer says of x_0, by what it was trained to say (chapter 4).
const PREDICTIONS = {
  v_prediction: (x, v, signal, sigma) => signal * x - sigma * v,
  epsilon: (x, eps, signal, sigma) => (x - sigma * eps) / signal,
};

// The process that the network was trained on, or `steps` steps of it.
export function diffusion(config, steps, spacing) {
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

export const SAMPLERS = { ddpm, ddim, "dpm++": dpmSolverPP2M, unipc, adams };

// The spacing of the steps that suits each best, from six steps on (chapter 5).
export const BEST = { ddpm: "even", ddim: "even", "dpm++": "between", unipc: "between",
                      adams: "between" };
