// Each part of a page that says `data-live="name"` comes alive. All of it is in `ddpm`, for a
// reader who opens the browser's console.
import { digits, guesses, network } from "./digits.js";
import { idealDenoiser, MIXTURES } from "./mixture.js";
import { particles } from "./particles.js";
import { player } from "./player.js";
import { normals } from "./random.js";
import { BEST, diffusion, SAMPLERS } from "./samplers.js";
import { respaced, schedule, SCHEDULES, SPACINGS } from "./schedules.js";
import { curves, weights } from "./curves.js";

const PARTS = { digits, guesses, particles, curves, player };

for (const place of document.querySelectorAll("[data-live]")) PARTS[place.dataset.live](place);

globalThis.ddpm = { network, diffusion, SAMPLERS, BEST, schedule, SCHEDULES, SPACINGS, respaced,
                    normals, idealDenoiser, MIXTURES, weights };
