#!/usr/bin/env python
"""Short trials that chose the recipe `cifar10 small`: one after another, as many images each.

Each trial changes the recipe a little, trains on the same number of images with the same shape of
learning rate (a tenth of the run warming up, the last three tenths cooling down), and is measured
twice: the mean training loss of its last tenth, and L_simple of the averaged weights on 2,000 test
images whose t and noise are the same in every trial, so that differences between trials are paired
and much surer than either number. One JSON line a trial goes to OUT/trials.jsonl; a trial that is
there is not run again, one that was interrupted goes on from its last checkpoint.

`cpu_seconds` is what the process used on all cores: on a busy machine it says more about cost than
the clock.
"""
import argparse
import json
import os
import time
from pathlib import Path

START = dict(batch_size=64, lr=6e-4, unet=dict(dropout=0.0))
TRIALS = {   # name -> what differs from START; in the order of how much we want to know it
    "start": {},
    "lr 1.2e-3": dict(lr=1.2e-3),
    "lr 3e-4": dict(lr=3e-4),
    "batch 32": dict(batch_size=32),
    "batch 32, lr 3e-4": dict(batch_size=32, lr=3e-4),
    "batch 16": dict(batch_size=16),
    "batch 16, lr 3e-4": dict(batch_size=16, lr=3e-4),
    "batch 128": dict(batch_size=128),
    "dropout 0.1": dict(unet=dict(dropout=0.1)),
    "80 channels": dict(unet=dict(base_channels=80)),
    "48 channels, 2 blocks": dict(unet=dict(base_channels=48, blocks_per_level=2)),
    "48 channels, 4 levels": dict(unet=dict(base_channels=48, channel_multipliers=(1, 2, 2, 2))),
    "EMA 0.9995": dict(ema_decay=0.9995),
    "float32": dict(precision="fp32"),
}


def held_out(model, diffusion, images, batch: int = 100):
    "L_simple of each image, t spread evenly, t and noise from fixed seeds; float64 (N,)."
    import torch
    from ddpm_nb import to_model
    g = torch.Generator().manual_seed(2020)
    n = len(images)
    t = (torch.arange(n) * diffusion.T // n)[torch.randperm(n, generator=g)]
    parts = []
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        for x, t_ in zip(to_model(images).split(batch), t.split(batch)):
            parts.append(diffusion.losses(model, x, t_, torch.randn(x.shape, generator=g)))
    return torch.cat(parts).double()


def cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system


def plan(changes: dict, steps: int):
    "The recipe of a trial of that many updates."
    from ddpm_nb.engine.recipes import recipe
    shape = dict(
        steps=steps, warmup=steps // 10, cooldown=3 * steps // 10, ema_decay=0.999,
        ema_warmup=True, log_every=max(steps // 10, 1), save_every=max(steps // 4, 1), keep_last=1,
        sample_every=0)
    return recipe("cifar10", "small").replace(**{**shape, **changes})


def run(name: str, changes: dict, images: int, out: Path, held) -> dict:
    "Train one trial, or go on with it, and measure it."
    from ddpm_nb.engine.runs import checkpoints
    changes = {**START, **changes, "unet": {**START["unet"], **changes.get("unet", {})}}
    place = out / f"{name.replace(' ', '_').replace(',', '')}-{images}"
    steps = images // changes["batch_size"]
    trainer = plan(changes, steps).trainer(place, progress=False)
    if checkpoints(place): trainer.resume()
    done, wall, cpu = trainer.step, time.monotonic(), cpu_seconds()
    trainer.train()
    if trainer.stopped_by: raise KeyboardInterrupt
    wall, cpu = time.monotonic() - wall, cpu_seconds() - cpu
    made = (steps - done) * changes["batch_size"]
    losses = held_out(trainer.ema.model, trainer.diffusion, held)
    return dict(
        name=name, images=images, weights=sum(p.numel() for p in trainer.model.parameters()),
        **changes, steps=steps, train_loss=trainer.history[-1]["loss"],
        held_out=losses.mean().item(), standard_error=(losses.std() / len(losses) ** 0.5).item(),
        seconds=round(wall, 1), cpu_seconds=round(cpu, 1),
        images_per_cpu_second=made / max(cpu, 1e-9), losses=[round(v, 6) for v in losses.tolist()])


def table(rows: list[dict]) -> None:
    "The trials, best first; differences from the best are paired over the held-out images."
    import torch
    rows = sorted(rows, key=lambda r: r["held_out"])
    losses = {r["name"]: torch.tensor(r["losses"], dtype=torch.float64) for r in rows}
    best = losses[rows[0]["name"]]
    print("| trial | weights | held-out L_simple | above | images per CPU second |")
    print("|---|---|---|---|---|")
    for r in rows:
        d = losses[r["name"]] - best
        above = f"{d.mean():.4f} ± {d.std() / len(d) ** 0.5:.4f}" if d.any() else ""
        print(f"| {r['name']} | {r['weights']:,} | {r['held_out']:.4f} | {above} | "
              f"{r['images_per_cpu_second']:.1f} |")


def words() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, default=Path("runs/cifar10-trials"),
                   help="where rows and checkpoints go (default: runs/cifar10-trials)")
    p.add_argument("--images", type=int, default=9_600,
                   help="training images a trial sees (default: 9600)")
    p.add_argument("--held-out", type=int, default=2000,
                   help="test images it is measured on (default: 2000)")
    p.add_argument("--only", nargs="+", choices=list(TRIALS), default=list(TRIALS), metavar="NAME",
                   help=f"trials to run, in this order (default: all): {', '.join(TRIALS)}")
    p.add_argument("--table", action="store_true",
                   help="only print the table of the trials done so far")
    return p.parse_args()


def main() -> None:
    a = words()
    from ddpm_nb import cifar10
    a.out.mkdir(parents=True, exist_ok=True)
    log = a.out / "trials.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    if not a.table:
        held = cifar10(train=False)[0][:a.held_out]
        for name in a.only:
            if any(r["name"] == name and r["images"] == a.images for r in rows): continue
            rows.append(run(name, TRIALS[name], a.images, a.out, held))
            with open(log, "a") as f: f.write(json.dumps(rows[-1]) + "\n")
            shown = {k: v for k, v in rows[-1].items() if k != "losses"}
            print(json.dumps(shown), flush=True)
    table([r for r in rows if r["images"] == a.images])


if __name__ == "__main__":
    main()
