#!/usr/bin/env python
"""Draw, and measure, what figure 10 of experiments/figures shows: x0-hat over the reverse process.

Draws --n samples by algorithm 2 at --steps of the model's times (variance beta-tilde, where the
model leaves it to us), keeps the guess x0-hat at some of them as bytes, a file a batch in --work: a
run that was stopped goes on where it was. Then measures each time's guesses in the features of
chapter 9's classifier, against its statistics of CIFAR-10's training images, and, for the scale,
as many test images. Writes figure10.json into --record (figure10-fid.json with --fid).
"""
import argparse
import json
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def words() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", default="cifar10-small", help="what load_pretrained takes")
    p.add_argument("--n", type=int, default=1000, help="samples (default: 1000)")
    p.add_argument("--steps", type=int, default=50, help="steps of each (default: 50)")
    p.add_argument("--batch", type=int, default=50, help="images at once (default: 50)")
    p.add_argument("--every", type=int, default=4, help="steps from one look to the next")
    p.add_argument("--work", type=Path, default=ROOT / "runs/figure10", help="for the files")
    p.add_argument("--record", type=Path, default=ROOT / "nbs/experiments/figures_record",
                   help="where to write (default: nbs/experiments/figures_record)")
    p.add_argument("--fid", action="store_true",
                   help="measure with Inception, fetched, in place of chapter 9's classifier")
    p.add_argument("--hardware", default="two cores of a Xeon, busy with other work",
                   help="in words")
    return p.parse_args()


def looks(steps: int, every: int) -> list[int]:
    "Which states to keep, by their index: the first, every so many, and the last, 0."
    return sorted({0, *range(steps - 1, -1, -every)}, reverse=True)


def draw_batch(net, d, n: int, steps: int, kept: list[int], seed: int):
    "x0-hat at the kept indices, uint8 (len(kept), n, C, H, W)."
    import torch

    from ddpm_nb import to_uint8
    from ddpm_nb.engine.cli import _inference
    g = torch.Generator().manual_seed(seed)
    halved, c = _inference(net, n, "bf16", False), net.config
    states = d.trajectory(halved, (n, c.in_channels, c.image_size, c.image_size), "ddpm", steps, g)
    guesses = {s.t: to_uint8(s.x0).cpu() for s in states if s.t in kept}
    return torch.stack([guesses[i] for i in kept])


def draw(a: argparse.Namespace, kept: list[int]) -> list[Path]:
    "The files of all batches, drawn where they are missing."
    import torch
    from safetensors.torch import save_file

    from ddpm_nb import GaussianDiffusion, load_pretrained
    from ddpm_nb.engine.files import replacing
    net, d = load_pretrained(a.model)
    if d.variance == "fixed_large": d = GaussianDiffusion(d.schedule, d.prediction, "fixed_small")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    net, d, files = net.to(device), d.to(device), []
    for k in range(a.n // a.batch):
        files.append(file := a.work / f"{a.steps}_{k:04}.safetensors")
        if file.exists(): continue
        start = time.monotonic()
        x0 = draw_batch(net, d, a.batch, a.steps, kept, seed=k)
        took = torch.tensor(time.monotonic() - start)
        with replacing(file) as part: save_file(dict(x0=x0, seconds=took), part)
        print(f"{(k + 1) * a.batch:,} of {a.n:,}: {took:.0f} s", flush=True)
    return files


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


def measure(a: argparse.Namespace, files: list[Path], kept: list[int]) -> dict:
    "The record: what was drawn, and how good it is at each time."
    import torch
    from safetensors.torch import load_file

    from ddpm_nb import load_pretrained
    from ddpm_nb.engine.metrics import inception_extractor
    from ddpm_nb.evaluation import cifar10_extractor
    drawn = [load_file(file) for file in files]
    extractor = inception_extractor() if a.fid else cifar10_extractor()
    timesteps = load_pretrained(a.model)[1].schedule.respaced(a.steps).timesteps
    times = [int(timesteps[i]) + 1 for i in kept]
    rows = [dict(t=t, **scores(torch.cat([part["x0"][k] for part in drawn]), extractor))
            for k, t in enumerate(times)]
    seconds = sum(part["seconds"].item() for part in drawn)
    n = len(files) * a.batch
    return dict(model=a.model, n=n, steps=a.steps, sampler="ddpm", minutes=round(seconds / 60, 1),
                hardware=a.hardware, extractor=extractor.name, rows=rows,
                real=real_scores(n, extractor))


if __name__ == "__main__":
    from ddpm_nb.engine.files import replacing
    a = words()
    kept = looks(a.steps, a.every)
    record = measure(a, draw(a, kept), kept)
    with replacing(a.record / f"figure10{'-fid' * a.fid}.json") as part:
        part.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record["rows"][-1]))
