#!/usr/bin/env python
"""Measure what takes experiments/figures too long, each into a record of its own in --record.

--figure 5, rate and distortion (figure 5, table 4): all test images of CIFAR-10, each once in every
part of the 1,000 times, within which the times are dealt out evenly. So every term L_t and every
error of x0-hat is a mean over images, without bias. figure5.json.

--figure 10, x0-hat over the reverse process: draws --n samples by algorithm 2 at --steps of the
model's times (variance beta-tilde, where the model leaves it to us), keeps the guess x0-hat at some
of them as bytes. Then measures each time's guesses in the features of chapter 9's classifier,
against its statistics of CIFAR-10's training images, and, for the scale, as many test images.
figure10.json (figure10-fid.json with --fid).

Both keep what is done in --work, a file a batch: a run that was stopped goes on where
it was.

--page, the other figures: runs the cells of experiments/figures with --model in the place of the
packaged network, and keeps the images of each picture it shows of it, as tiles.
"""
import argparse
import functools
import json
import math
import time
import zlib
from pathlib import Path

from cifar10_again import DEVICE, half, ready

ROOT = Path(__file__).resolve().parent.parent


def words() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--figure", type=int, nargs="+", choices=RECORDS, default=list(RECORDS),
                   help="which (default: both)")
    p.add_argument("--page", action="store_true", help="the page's own pictures, of --model")
    p.add_argument("--model", default="cifar10-small", help="what load_pretrained takes")
    p.add_argument("--n", type=int, default=1000, help="samples (default: 1000)")
    p.add_argument("--steps", type=int, default=50, help="steps of each (default: 50)")
    p.add_argument("--batch", type=int, default=50, help="images at once (default: 50)")
    p.add_argument("--every", type=int, default=4, help="steps from one look to the next")
    p.add_argument("--work", type=Path, default=ROOT / "runs/figures",
                   help="for the files, in a folder for each model (default: runs/figures)")
    p.add_argument("--record", type=Path, default=ROOT / "nbs/experiments/figures_record",
                   help="where to write (default: nbs/experiments/figures_record)")
    p.add_argument("--fid", action="store_true",
                   help="measure with Inception, fetched, in place of chapter 9's classifier")
    p.add_argument("--hardware", default="two cores of a Xeon, busy with other work",
                   help="in words")
    return p.parse_args()


def sum_of(net) -> str:
    "A check sum of the weights: a record holds for these alone."
    weights = (p.detach().cpu().contiguous().numpy() for p in net.parameters())
    return f"{zlib.crc32(b''.join(w.tobytes() for w in weights)):08x}"


def once(file: Path, make) -> dict:
    "What `make` gives, tensors by their names, and its seconds; from the file, if it is there."
    import torch
    from safetensors.torch import load_file, save_file

    from ddpm_nb.engine.files import replacing
    if not file.exists():
        start = time.monotonic()
        found = make()
        took = torch.tensor(time.monotonic() - start)
        with replacing(file) as part: save_file(found | dict(seconds=took), part)
        print(f"{file.name}: {took:.0f} s", flush=True)
    return load_file(file)


# --- figure 5 and table 4 -------------------------------------------------------------------------

def parts_of(T: int) -> list[list[int]]:
    """The times in parts, of each of which an image gets one: chapter 9's intervals, without the
    rows of table 4; and these in two halves, so that each row has some thousand images."""
    from ddpm_nb.evaluation import strata
    marks = [round(k * T / 10) for k in range(1, 10)]
    apart = [[t for t in range(*part) if t not in marks] for part in strata(T, 7)]
    return [part for part in (*apart, marks[:4], marks[4:]) if part]


def dealt(parts: list[list[int]], n: int, generator):   # long (n, len(parts))
    "For each image a time of every part; within a part, all times equally often, give or take one."
    import torch
    deal = lambda part: torch.tensor(part)[torch.randperm(n, generator=generator) % len(part)]
    return torch.stack([deal(part) for part in parts], 1)


@functools.cache
def network(name: str):
    "A model, ready, in half precision, and its diffusion."
    from ddpm_nb import load_pretrained
    net, d = load_pretrained(name)
    return half(ready(net)), d.to(DEVICE)


def terms_at(name: str, images, times, seed: int) -> dict:
    "L_t and the prior in bits/dim, and the square error of x0-hat, at each image's times: (B, n)."
    import torch

    from ddpm_nb import to_model
    from ddpm_nb.bound import decoder_nll, posterior_kl, prior_bits_per_dim
    from ddpm_nb.diffusion import randn
    (model, d), g = network(name), torch.Generator().manual_seed(seed)
    x0, bits, square = to_model(images).to(d.device), [], []
    with torch.inference_mode():
        for t in times.to(d.device).T:     # in its first column all are 0, in no other one
            x_t = d.q_sample(x0, t, randn(x0.shape, x0, g))
            step = d.p_mean_variance(model, x_t, t)
            p = step.mean, step.log_variance.expand_as(x0)
            bits.append(posterior_kl(d, x0, x_t, t, *p) if t[0] else decoder_nll(x0, *p))
            square.append((step.x0 - x0).square().flatten(1).mean(1))
        found = dict(bits=torch.stack(bits, 1), square=torch.stack(square, 1),
                     prior=prior_bits_per_dim(d, x0))
        return {name: v.double().cpu() for name, v in found.items()}


def summed(T: int, times, sizes, bits, square, prior) -> dict:
    """The curve from its terms. Times are dealt, not drawn: what is left to chance in a sum of
    means is how far an image's terms lie from the means at its times."""
    import torch
    n = len(times)
    count = torch.bincount(times.flatten(), minlength=T)
    mean = lambda v: torch.zeros(T).double().index_add(0, times.flatten(), v.flatten()) / count
    L, mse = mean(bits), mean(square)
    rate = prior.mean() + torch.cat([L[1:], L.new_zeros(1)]).flip(0).cumsum(0).flip(0)
    off, spread = sizes * (bits - L[times]), mean((square - mse[times]).square()).sqrt()

    def with_error(value, images):                  # a mean, and how each image moves it
        return [round(float(value), 6), round(images.std().item() / math.sqrt(n), 6)]

    def row(t):
        rmse = mse[t].sqrt().item() * 127.5
        error = spread[t].item() / math.sqrt(count[t] - 1) / (2 * mse[t].sqrt().item()) * 127.5
        return dict(index=t, rate=with_error(rate[t], prior + (off * (times > t)).sum(1)),
                    rmse=[round(rmse, 4), round(error, 4)])

    short = lambda v: [float(f"{x:.5g}") for x in v.tolist()]
    return dict(total=with_error(L[0] + rate[0], prior + off.sum(1)),
                distortion=with_error(L[0], bits[:, 0]), prior=float(f"{prior.mean():.5g}"),
                rows=[row(round(k * T / 10)) for k in range(10)],
                terms=short(L), square_error=short(mse * 127.5**2))


def figure_5(a: argparse.Namespace) -> dict:
    "Rate and distortion on all test images."
    import torch

    from ddpm_nb import cifar10, load_pretrained
    (net, d), images = load_pretrained(a.model), cifar10(train=False)[0]
    parts, T, weights = parts_of(d.T), d.T, sum_of(net)
    times = dealt(parts, len(images), torch.Generator().manual_seed(0))
    batches = enumerate(zip(images.split(a.batch), times.split(a.batch)))
    found = [once(a.work / weights / f"figure5_{a.batch}_{k:04}.safetensors",
                  lambda: terms_at(a.model, x, t, seed=k + 1)) for k, (x, t) in batches]
    bits, square, prior = (torch.cat([part[key] for part in found])
                           for key in ("bits", "square", "prior"))
    sizes = torch.tensor([len(part) for part in parts])
    return dict(model=a.model, weights=weights, images=len(images), evaluations=len(parts),
                **summed(T, times, sizes, bits, square, prior))


# --- figure 10 ------------------------------------------------------------------------------------

def looks(steps: int, every: int) -> list[int]:
    "Which states to keep, by their index: the first, every so many, and the last, 0."
    return sorted({0, *range(steps - 1, -1, -every)}, reverse=True)


def draw_batch(net, d, n: int, steps: int, kept: list[int], seed: int):
    "x0-hat at the kept indices, uint8 (len(kept), n, C, H, W)."
    import torch

    from ddpm_nb import to_uint8
    g, c = torch.Generator().manual_seed(seed), net.config
    shape = n, c.in_channels, c.image_size, c.image_size
    states = d.trajectory(half(net), shape, "ddpm", steps, g)
    guesses = {s.t: to_uint8(s.x0).cpu() for s in states if s.t in kept}
    return torch.stack([guesses[i] for i in kept])


def draw(a: argparse.Namespace, kept: list[int]) -> list[dict]:
    "All batches, drawn where they are missing."
    from ddpm_nb import GaussianDiffusion, load_pretrained
    net, d = load_pretrained(a.model)
    if d.variance == "fixed_large": d = GaussianDiffusion(d.schedule, d.prediction, "fixed_small")
    net, d, work = net.to(DEVICE), d.to(DEVICE), a.work / sum_of(net)
    return [once(work / f"figure10_{a.steps}_{a.every}_{a.batch}_{k:04}.safetensors",
                 lambda: dict(x0=draw_batch(net, d, a.batch, a.steps, kept, seed=k)))
            for k in range(a.n // a.batch)]


def scores(images, extractor) -> dict[str, float]:
    "Distance from CIFAR-10's training images, and class score, of uint8 (N, 3, 32, 32)."
    from ddpm_nb.engine.metrics import sample_quality
    found = sample_quality(images, extractor)
    return dict(distance=round(found.distance, 4), score=round(found.class_score, 4))


def real_scores(n: int, extractor) -> list[dict[str, float]]:
    "The same of test images, n at a time: what a perfect model of so many samples would get."
    import torch

    from ddpm_nb import cifar10
    test = cifar10(train=False)[0]
    order = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))
    return [scores(test[part], extractor) for part in order.split(n)[:5] if len(part) == n]


def measure(a: argparse.Namespace, drawn: list[dict], kept: list[int]) -> dict:
    "The record: what was drawn, and how good it is at each time."
    import torch

    from ddpm_nb import load_pretrained
    from ddpm_nb.engine.metrics import inception_extractor
    from ddpm_nb.evaluation import cifar10_extractor
    extractor = (inception_extractor if a.fid else cifar10_extractor)(DEVICE)
    net, d = load_pretrained(a.model)
    timesteps = d.schedule.respaced(a.steps).timesteps
    times = [int(timesteps[i]) + 1 for i in kept]
    rows = [dict(t=t, **scores(torch.cat([part["x0"][k] for part in drawn]), extractor))
            for k, t in enumerate(times)]
    seconds = sum(part["seconds"].item() for part in drawn)
    n = len(drawn) * a.batch
    return dict(model=a.model, weights=sum_of(net), n=n, steps=a.steps, sampler="ddpm",
                minutes=round(seconds / 60, 1), hardware=a.hardware, extractor=extractor.name,
                rows=rows, real=real_scores(n, extractor))


def figure_10(a: argparse.Namespace) -> dict:
    "Quality over the reverse process."
    kept = looks(a.steps, a.every)
    return measure(a, draw(a, kept), kept)


RECORDS = {5: figure_5, 10: figure_10}


# --- the page's own pictures ----------------------------------------------------------------------

def page(a: argparse.Namespace) -> None:
    "The cells of experiments/figures with another model; the tiles of its pictures, as they come."
    import numpy as np
    import torch
    from cifar10_snapshot import save

    import ddpm_nb.plotting as plot
    a.record.mkdir(parents=True, exist_ok=True)
    names = iter(f"figure{k}.png" for k in (13, 6, 7, 8, 9, 12))
    strip, images = plot.show_strip, plot.show_images

    def kept(x, ncols: int, title: str) -> None:
        if not title.startswith(f"{a.model}: ") or not (name := next(names, None)): return
        save(x, ncols, a.record / name)
        print(f"{name}: {title}", flush=True)

    def show_strip(rows, *args, **words):
        rows = [np.asarray(torch.as_tensor(row).cpu()) for row in rows]
        kept(torch.from_numpy(np.concatenate(rows)), len(rows[0]), words["title"])
        return strip(rows, *args, **words)

    def show_images(x, ncols=None, **words):
        kept(x, ncols, words["title"])
        return images(x, ncols, **words)

    plot.show_strip, plot.show_images, scope = show_strip, show_images, {"__name__": "page"}
    cells = json.loads((ROOT / "nbs/experiments/figures.ipynb").read_text())["cells"]
    for cell in (c for c in cells if c["cell_type"] == "code"):
        code = "".join(cell["source"])
        if code.startswith("MODEL ="): code = f"MODEL = {a.model!r}"
        exec(compile(code, cell["id"], "exec"), scope)


if __name__ == "__main__":
    from ddpm_nb.engine.files import replacing
    a = words()
    if a.page:
        page(a)
        raise SystemExit
    for figure in a.figure:
        found = RECORDS[figure](a)
        name = f"figure{figure}{'-fid' * (a.fid and figure == 10)}.json"
        with replacing(a.record / name) as part:
            part.write_text(json.dumps(found, indent=1) + "\n")
        print(json.dumps({k: v for k, v in found.items() if k not in ("terms", "square_error")}))
