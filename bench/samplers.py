#!/usr/bin/env python
"""How few evaluations are enough? Our samplers beside diffusers' schedulers, on the same networks.

For each number of evaluations: the distance from the solution of the probability-flow equation
that begins at the same noise, root mean square over all samples (a few, on whose way the image is
nearly decided otherwise, make most of that) and the median sample's. That solution is computed by
the second-order DPM-Solver++ with all 1,000 times, where ours and diffusers' are the same numbers
(with --truth, fewer); it ends, as all do, in the last guess of x0. The guess is clipped to
[-1, 1] for the two networks, and the peers are given the noise that the clipped guess implies, so
that all solve one equation.

    python bench/samplers.py                      what is missing in nbs/samplers.json
    python bench/samplers.py --problems digits --n 256 --out fresh.json
    python bench/samplers.py --times              which time to tell the network
    python bench/samplers.py --distances          how good the pictures are, by evaluations
    python bench/samplers.py --near               the digits: a few evaluations more, or fewer
    python bench/samplers.py --table              the best of each side, as bench/README.md has them

Every row is on disk before the next begins; a run that was stopped goes on where it was.
"""
import argparse
import hashlib
import itertools
import json
import math
from pathlib import Path

import torch
from cifar10_again import DEVICE, distance, half, ready

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
MANY = {"five spots": 20_000, "two spots": 20_000, "digits": 128, "cifar10-small": 16}
DRAWN = {"five spots": 20_000, "two spots": 20_000, "digits": 256, "cifar10-small": 500}

JUDGED = "adams between", "unipc between", "ddim even", "diffusers DPM++ 2M Karras"
ALSO = "diffusers DPM++ 3M log-SNR", "diffusers UniPC log-SNR"      # where it costs little


class Problem:
    "A diffusion, a model, whether guesses are clipped, and the noise to begin with."

    def __init__(self, name: str, n: int) -> None:
        g = torch.Generator().manual_seed(3)
        self.clip = name in NETWORKS
        if self.clip:
            folder = ROOT / "ddpm_nb" / "assets" / NETWORKS[name]
            self.model, self.d = (part.to(DEVICE) for part in load_pretrained(folder))
            c = self.model.config
            shape = n, c.in_channels, c.image_size, c.image_size
            self.noise = torch.randn(shape, generator=g).to(DEVICE)
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
        k = round(t)
        t = torch.full((len(x),), k, device=x.device)
        x0 = self.d.p_mean_variance(self.model, x.to(self.noise.dtype), t, self.clip).x0
        a, v = PAPER.alpha_bars[k], PAPER.one_minus_alpha_bars[k]
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


def off(a, b):              # (n, ...) twice -> (n,)
    "How far each sample is from its own solution, root mean square over its numbers."
    return (a.double() - b.double()).square().flatten(1).mean(1).sqrt()


def rms(a, b) -> float: return off(a, b).square().mean().sqrt().item()


def keep(out: Path, record: dict) -> None:
    with replacing(out) as part: part.write_text(json.dumps(record, indent=1) + "\n")


def digest(name: str) -> str:
    "Which network, or which mixture: the first digits of a hash."
    files = ROOT / "ddpm_nb" / "assets" / NETWORKS.get(name, "")
    seen = [f.read_bytes() for f in sorted(files.rglob("*.safetensors"))] if name in NETWORKS else [
        MIXTURES[name].numpy().tobytes()]
    return hashlib.sha256(b"".join(seen)).hexdigest()[:12]


def entry_of(record: dict, name: str, what: dict) -> dict:
    "A problem's rows; those of another model are dropped, of other numbers kept: it ends there."
    there = record.get(name, {})
    if any(there.get(key) != value for key, value in what.items()):
        if there and there.get("model") == what.get("model"):
            raise SystemExit(f"{name}: the rows that are there are of other numbers of samples or "
                             "evaluations: give another --out")
        if there: print(f"{name}: the rows that are there are of another model, and go")
        record[name] = {**what, "rms": {}, "median": {}}
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
            found = [off(f(problem, k), truth) for k in a.budgets]
            for kind, of in (("rms", lambda v: v.square().mean().sqrt()), ("median", torch.median)):
                entry[kind][label] = [float(f"{of(v).item():.4g}") for v in found]
            shown = "".join(f"{v:10.5f}" for v in entry["rms"][label])
            print(f"{name:14} {label:28}{shown}", flush=True)
            keep(a.out, record)


def spot_moments(x, spots):
    "Each point beside its offset from the nearest spot, (N, 4): the shape, and the spots' width."
    return torch.cat([x, x - spots[torch.cdist(x, spots).argmin(1)]], 1)


def exact_moments(spots, width: float):
    "Of `spot_moments` of the mixture itself: the offset is independent of which spot it is."
    from ddpm_nb.evaluation import Statistics
    own = width**2 * torch.eye(2, dtype=torch.float64)
    whole = spots.T.cov(correction=0) + own
    covariance = torch.cat([torch.cat([whole, own], 1), torch.cat([own, own], 1)])
    return Statistics(torch.cat([spots.mean(0), torch.zeros(2)]), covariance, 10**9)


def judge(name: str, n: int):
    "What gives the Fréchet distance of samples from the data, and `n` that are data."
    from ddpm_nb import Statistics, cifar10, digits, frechet_distance, to_model, to_uint8
    g = torch.Generator().manual_seed(0)
    if name in MIXTURES:
        spots, true = MIXTURES[name], exact_moments(MIXTURES[name], 0.08)
        of = lambda x: frechet_distance(Statistics.of(spot_moments(x, spots)), true)
        offsets = 0.08 * torch.randn(n, 2, generator=g, dtype=torch.float64)
        return of, spots[torch.randint(len(spots), (n,), generator=g)] + offsets
    if name == "digits":          # 64 numbers: the 8 x 8 pixels that the digits were made of
        coarse = lambda x: torch.nn.functional.avg_pool2d(x.double(), 2).flatten(1)
        true = Statistics.of(coarse(to_model(digits(True)[0])))
        real = to_model(digits(False)[0])
        of = lambda x: frechet_distance(Statistics.of(coarse(x)), true)
    else:
        of, real = lambda x: distance(to_uint8(x)), to_model(cifar10(train=False)[0])
    return of, real[torch.randperm(len(real), generator=g)[:n]]


def distances(a) -> None:
    """The Fréchet distance of samples from the data, for some of the rows.

    Of a mixture, from its exact moments; of the digits, from the 1,500 that the network was trained
    on, in coarse pixels; of CIFAR-10, from the training set in chapter 9's features. `real` is that
    of as many fresh points, or held-out images. The network for CIFAR-10 runs in bfloat16,
    compiled, for all alike.
    """
    record = json.loads(a.out.read_text())
    for name in a.problems:
        n = a.n or DRAWN[name]
        problem, (of, real) = Problem(name, n), judge(name, n)
        if name == "cifar10-small":
            problem.model = half(ready(problem.model))
        noise, whole, what = problem.noise, record[name], {"n": n, "evaluations": list(a.budgets)}
        if whole.get("model") != digest(name): raise SystemExit(f"{name}: measure its rows first")
        if any(whole.get("distances", {}).get(key) != value for key, value in what.items()):
            whole["distances"] = {**what, "real": float(f"{of(real):.4g}"), "of": {}}
        entry = whole["distances"]
        judged = a.only or (JUDGED + ALSO if name in MIXTURES else JUDGED)
        for label, f in itertools.chain(our_rows(), their_rows()):
            if label not in judged or label in entry["of"]: continue
            found = []
            for k in a.budgets:
                drawn = []
                for part in noise.split(125 if problem.clip else n):
                    problem.noise = part
                    drawn.append(f(problem, k))
                found.append(float(f"{of(torch.cat(drawn)):.4g}"))
            entry["of"][label] = found
            print(f"{name:14} {label:28}" + "".join(f"{v:10.4g}" for v in found), flush=True)
            keep(a.out, record)


NEAR = 13, 14, 15, 16, 17, 46, 48, 50, 52, 54, 56
BESIDE = ("adams between", "unipc order=3 between", "diffusers DPM++ 3M log-SNR",
          "diffusers UniPC 3 Karras")


def waver(guesses) -> list[float]:      # (n, ...), n times in order -> (n / 2,)
    "The power of the guesses' wavering at 1, 2, ... periods in n, what a polynomial has taken out."
    n = len(guesses)
    smooth = torch.linspace(-1, 1, n, dtype=torch.float64)[:, None]**torch.arange(12)
    basis, y = torch.linalg.qr(smooth)[0], guesses.flatten(1).double().cpu()
    rest = (y - basis @ (basis.T @ y)) * torch.hann_window(n, dtype=torch.float64)[:, None]
    power = torch.fft.rfft(rest, dim=0).abs().square().mean(1)[1:]
    return [float(f"{v:.3g}") for v in (power / power.sum()).tolist()]


def near(a) -> None:
    """What is left of the error on the digits at some fifty evaluations.

    The median distances at other numbers of evaluations; how far two of ours are apart at 50; and
    the power of the network's wavering in t, from 400 to 700 along the solution, by frequency.
    """
    record, problem = json.loads(a.out.read_text()), Problem("digits", a.n or MANY["digits"])
    states = problem.d.trajectory(problem.model, problem.noise.shape, "dpm++", noise=problem.noise)
    path = [(state.x.clone(), state.x0.clone()) for state in states]
    truth, guesses = path[-1][0], torch.stack([x0 for _, x0 in reversed(path)])
    rows = dict(itertools.chain(our_rows(), their_rows()))
    entry = record["digits"]["near"] = {"evaluations": list(NEAR), "median": {}, "from": 400,
                                        "power": waver(guesses[400:700])}
    apart = off(*(rows[label](problem, 50) for label in BESIDE[:2])).median().item()
    entry["apart"] = float(f"{apart:.4g}")
    for label in BESIDE:
        found = [off(rows[label](problem, k), truth).median().item() for k in NEAR]
        entry["median"][label] = [float(f"{v:.4g}") for v in found]
        print(f"{label:28}" + "".join(f"{v:9.5f}" for v in found), flush=True)
    keep(a.out, record)


def table(a) -> None:
    "The best row of each side by problem and evaluations, in markdown, the better one bold."
    print("| | samples | evaluations | ours | `diffusers` |\n" + "|---" * 5 + "|")
    for name, entry in json.loads(a.out.read_text()).items():
        lead = f"| {name} | {entry['n']:,} |"
        for i, k in enumerate(entry["evaluations"]):
            ranked = sorted((row[i], label) for label, row in entry["rms"].items())
            theirs = lambda label: label.startswith("diffusers ")
            best = [next(r for r in ranked if theirs(r[1]) == side) for side in (False, True)]
            cells = [f"{'**' * (r == ranked[0])}{r[0]:.5f}{'**' * (r == ranked[0])} "
                     f"{r[1].removeprefix('diffusers ')}" for r in best]
            print(lead, k, "|", " | ".join(cells), "|")
            lead = "|  |  |"


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
            device = problem.noise.device
            at, d = at.to(device), GaussianDiffusion(schedule, problem.d.prediction).to(device)
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
    p.add_argument("--problems", nargs="+", choices=list(MANY),
                   default=[name for name in MANY if name != "two spots"],
                   help="(default: all but two spots)")
    p.add_argument("--n", type=int, help=f"samples (default: {MANY})")
    p.add_argument("--budgets", nargs="+", type=int, default=BUDGETS)
    p.add_argument("--only", nargs="+", help="these rows alone")
    p.add_argument("--truth", type=int, help="steps of the solution (default: all 1,000)")
    p.add_argument("--out", type=Path, default=ROOT / "nbs" / "samplers.json")
    p.add_argument("--times", action="store_true", help="compare what the network is told")
    p.add_argument("--distances", action="store_true", help="judge the samples themselves")
    p.add_argument("--near", action="store_true", help="the digits, at other numbers")
    p.add_argument("--table", action="store_true", help="print what is there, the best only")
    a = p.parse_args()
    (times if a.times else distances if a.distances else near if a.near else
     table if a.table else run)(a)
