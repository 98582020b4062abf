#!/usr/bin/env python
"""How few evaluations are enough? Our samplers beside diffusers' schedulers, on the same networks.

For each number of evaluations: the root mean square distance from the solution of the
probability-flow equation that begins at the same noise. That solution is computed by the
second-order DPM-Solver++ with all 1,000 times, where ours and diffusers' are the same numbers
(with --truth, fewer); it ends, as all do, in the last guess of x0. The guess is clipped to
[-1, 1] for the two networks, and the peers are given the noise that the clipped guess implies, so
that all solve one equation.

    python bench/samplers.py                      what is missing in nbs/samplers.json
    python bench/samplers.py --problems digits --n 256 --out fresh.json
    python bench/samplers.py --times              which time to tell the network
    python bench/samplers.py --distances          how good the pictures are, by evaluations

Every row is on disk before the next begins; a run that was stopped goes on where it was.
"""
import argparse
import hashlib
import itertools
import json
import math
from pathlib import Path

import torch

from ddpm_nb import GaussianDiffusion, NoiseSchedule, load_pretrained
from ddpm_nb.engine.files import replacing
from ddpm_nb.objective import IdealDenoiser

ROOT = Path(__file__).resolve().parent.parent
BUDGETS = 5, 8, 10, 15, 20, 25, 50
PAPER = NoiseSchedule.linear()
ANGLES = torch.tensor([0.3, 1.6, 2.8, 4.0, 5.2], dtype=torch.float64)
MIXTURES = {"five spots": 0.7 * torch.stack([ANGLES.cos(), ANGLES.sin()], 1),
            "two spots": torch.tensor([[-0.8, 0.0], [0.8, 0.4]], dtype=torch.float64)}
NETWORKS = {"digits": "digits", "cifar10-small": "cifar10-small"}
MANY = {"five spots": 20_000, "two spots": 20_000, "digits": 32, "cifar10-small": 8}

JUDGED = "adams between", "unipc between", "ddim even", "diffusers DPM++ 2M Karras"


class Problem:
    "A diffusion, a model, whether guesses are clipped, and the noise to begin with."

    def __init__(self, name: str, n: int) -> None:
        g = torch.Generator().manual_seed(3)
        self.clip = name in NETWORKS
        if self.clip:
            folder = ROOT / "ddpm_nb" / "assets" / NETWORKS[name]
            self.model, self.d = load_pretrained(folder)
            c = self.model.config
            self.noise = torch.randn(n, c.in_channels, c.image_size, c.image_size, generator=g)
        else:
            self.d = GaussianDiffusion(PAPER)
            self.model = IdealDenoiser(self.d, MIXTURES[name], 0.08)
            self.noise = torch.randn(n, 2, generator=g, dtype=torch.float64)

    def ours(self, sampler: str, steps: int | None, spacing: str, **options):
        return self.d.sample(self.model, self.noise.shape, sampler, steps, None, False,
                             noise=self.noise, clip=self.clip, spacing=spacing, **options)

    @torch.inference_mode()
    def eps(self, x, t: float):
        "The noise in x that the (clipped) guess of x0 implies, at the nearest time there is."
        t = torch.full((len(x),), round(t))
        x0 = self.d.p_mean_variance(self.model, x.to(self.noise.dtype), t, self.clip).x0
        a, v = PAPER.alpha_bars[t[0]], PAPER.one_minus_alpha_bars[t[0]]
        return (x - a.sqrt() * x0) / v.sqrt()

    def theirs(self, scheduler, evaluations: int):
        heun = "Heun" in type(scheduler).__name__
        # two evaluations a step, but one in the last: an odd number, so an even one gets one more
        scheduler.set_timesteps(evaluations // 2 + 1 if heun else evaluations)
        x = self.noise * (math.sqrt(float(scheduler.sigmas[0])**2 + 1) if heun else 1)
        for t in scheduler.timesteps:
            noise = self.eps(scheduler.scale_model_input(x, t), float(t))
            x = scheduler.step(noise, t, x).prev_sample
        return x


def our_rows():
    "Name, and what runs it."
    runs = [("adams", {}), ("unipc", {}), ("unipc", dict(order=3)), ("dpm++", {}), ("ddim", {})]
    for (sampler, options), spacing in itertools.product(runs, ("between", "log_snr", "even")):
        name = " ".join([sampler, *(f"{k}={v}" for k, v in options.items()), spacing])
        yield name, lambda p, n, s=sampler, g=spacing, o=options: p.ours(s, n, g, **o)


def their_rows():
    "Name, and what runs it; steps: the scheduler's own, Karras', even in log-SNR."
    import diffusers as D
    base = dict(beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
    own, karras = {}, dict(use_karras_sigmas=True)
    lu, exponential = dict(use_lu_lambdas=True), dict(use_exponential_sigmas=True)
    table = [("DPM++ 2M", D.DPMSolverMultistepScheduler, {}, (lu, karras, own)),
             ("DPM++ 3M", D.DPMSolverMultistepScheduler, dict(solver_order=3), (lu, karras)),
             ("UniPC", D.UniPCMultistepScheduler, {}, (exponential, karras, own)),
             ("UniPC 3", D.UniPCMultistepScheduler, dict(solver_order=3), (exponential, karras)),
             ("DEIS", D.DEISMultistepScheduler, {}, (exponential, karras, own)),
             ("Heun", D.HeunDiscreteScheduler, {}, (karras,)),
             ("DDIM", D.DDIMScheduler, dict(clip_sample=False, timestep_spacing="trailing"),
              (own,))]
    words = {"use_karras_sigmas": "Karras", "use_lu_lambdas": "log-SNR",
             "use_exponential_sigmas": "log-SNR"}
    for name, scheduler, options, kinds in table:
        for kind in kinds:
            label = " ".join(["diffusers", name, *(words[k] for k in kind)])
            make = lambda s=scheduler, o=options, k=kind: s(**base, **o, **k)
            yield label, lambda p, n, make=make: p.theirs(make(), n)


def rms(a, b) -> float: return (a.double() - b.double()).square().flatten(1).mean().sqrt().item()


def keep(out: Path, record: dict) -> None:
    with replacing(out) as part: part.write_text(json.dumps(record, indent=1) + "\n")


def digest(name: str) -> str:
    "Which network, or which mixture: the first digits of a hash."
    files = ROOT / "ddpm_nb" / "assets" / NETWORKS.get(name, "")
    seen = [f.read_bytes() for f in sorted(files.rglob("*.safetensors"))] if name in NETWORKS else [
        MIXTURES[name].numpy().tobytes()]
    return hashlib.sha256(b"".join(seen)).hexdigest()[:12]


def entry_of(record: dict, name: str, what: dict) -> dict:
    "A problem's rows; those that were measured on something else are dropped."
    there = record.get(name, {})
    if any(there.get(key) != value for key, value in what.items()):
        if there: print(f"{name}: the rows that are there are of something else, and go")
        record[name] = {**what, "rms": {}}
    return record[name]


def run(a) -> None:
    record = json.loads(a.out.read_text()) if a.out.exists() else {}
    for name in a.problems:
        n = a.n or MANY[name]
        problem = Problem(name, n)
        entry = entry_of(record, name, {"n": n, "truth": a.truth or 1000, "model": digest(name),
                                        "evaluations": list(a.budgets)})
        rows = list(itertools.chain(our_rows(), their_rows()))
        rows = [(label, f) for label, f in rows if label not in entry["rms"]
                and (not a.only or label in a.only)]
        if not rows: continue
        truth = problem.ours("dpm++", a.truth, "between")
        for label, f in rows:
            found = [rms(f(problem, k), truth) for k in a.budgets]
            entry["rms"][label] = [float(f"{v:.4g}") for v in found]
            print(f"{name:14} {label:28}" + "".join(f"{v:10.5f}" for v in found), flush=True)
            keep(a.out, record)


def distances(a) -> None:
    """The distance of samples from the training set of CIFAR-10 (chapter 9), for some of the rows.

    The network runs in bfloat16, compiled, for all alike; `real` is that of as many test images.
    """
    from cifar10_again import distance, half

    from ddpm_nb import cifar10, to_uint8
    from ddpm_nb.engine.faster import compiled
    record, n = json.loads(a.out.read_text()), a.n or 500
    problem = Problem("cifar10-small", n)
    problem.model, noise = half(compiled(problem.model)), problem.noise
    test = cifar10(train=False)[0]
    real = test[torch.randperm(len(test), generator=torch.Generator().manual_seed(0))[:n]]
    whole, what = record["cifar10-small"], {"n": n, "evaluations": list(a.budgets)}
    if whole.get("model") != digest("cifar10-small"): raise SystemExit("measure its rows first")
    if any(whole.get("distances", {}).get(key) != value for key, value in what.items()):
        whole["distances"] = {**what, "real": round(distance(real), 2), "of": {}}
    entry = whole["distances"]
    for label, f in itertools.chain(our_rows(), their_rows()):
        if label not in (a.only or JUDGED) or label in entry["of"]: continue
        found = []
        for k in a.budgets:
            images = []
            for problem.noise in noise.split(125): images.append(to_uint8(f(problem, k)))
            found.append(round(distance(torch.cat(images)), 2))
        entry["of"][label] = found
        print(f"{label:28}" + "".join(f"{v:8.2f}" for v in found), flush=True)
        keep(a.out, record)


def fractional(spacing: str, steps: int):
    "Times, not whole ones, in equal steps of log-SNR; and the schedule that is seen there."
    lambdas = PAPER.log_snr
    wanted = torch.linspace(lambdas[0].item(), lambdas[-1].item(), steps, dtype=torch.float64)
    i = torch.searchsorted(-lambdas, -wanted).clamp(1, PAPER.T - 1)
    part = (lambdas[i - 1] - wanted) / (lambdas[i - 1] - lambdas[i])
    alpha_bars = torch.sigmoid(wanted)
    before = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bars[:-1]])
    return i - 1 + part, NoiseSchedule.from_betas(1 - alpha_bars / before)


def times(a) -> None:
    "Whole times only; fractional ones; or fractional steps, and the nearest whole time said."
    for name in a.problems:
        problem = Problem(name, a.n or MANY[name])
        truth = problem.ours("dpm++", a.truth, "between")
        for steps in a.budgets:
            at, schedule = fractional("log_snr", steps)
            d = GaussianDiffusion(schedule, problem.d.prediction)
            told = problem.model
            exact = IdealDenoiser(d, MIXTURES[name], 0.08) if name in MIXTURES else (
                lambda x, t: told(x, at.float()[t]))
            models = {"fractional": exact, "nearest": lambda x, t: told(x, at.round().long()[t])}
            found = {"whole": rms(problem.ours("adams", steps, "log_snr"), truth)}
            for how, model in models.items():
                x = d.sample(model, problem.noise.shape, "adams", None, None, False,
                             noise=problem.noise, clip=problem.clip)
                found[how] = rms(x, truth)
            print(f"{name:14} {steps:3}", {k: float(f"{v:.4g}") for k, v in found.items()},
                  flush=True)


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--problems", nargs="+", default=list(MANY), choices=list(MANY))
    p.add_argument("--n", type=int, help=f"samples (default: {MANY})")
    p.add_argument("--budgets", nargs="+", type=int, default=BUDGETS)
    p.add_argument("--only", nargs="+", help="these rows alone")
    p.add_argument("--truth", type=int, help="steps of the solution (default: all 1,000)")
    p.add_argument("--out", type=Path, default=ROOT / "nbs" / "samplers.json")
    p.add_argument("--times", action="store_true", help="compare what the network is told")
    p.add_argument("--distances", action="store_true", help="judge the samples themselves")
    a = p.parse_args()
    (times if a.times else distances if a.distances else run)(a)
