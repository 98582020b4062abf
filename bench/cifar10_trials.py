#!/usr/bin/env python
"""Short trials of recipes for CIFAR-10: one after another, as many images each.

`--of small` (as it is without): what chose the recipe `cifar10 small`. `--of gpu-hours`: that
recipe's rate and average beside the paper's, on a small network; each choice that is a number of
updates is kept as its share of a run of 50,000 updates, which is four hours on a T4.

Each trial changes the recipe a little, trains on the same number of images with the same shape of
learning rate (a tenth of the run warming up, the last three tenths cooling down, if the trial does
not say otherwise), and is measured: the mean training loss of its last tenth, and L_simple of the
averaged weights, and of the last ones, on 2,000 test images whose t and noise are the same in every
trial, so that differences between trials are paired and much surer than either number. One JSON
line a trial goes to OUT/trials.jsonl; a trial that is there is not run again, one that was
interrupted goes on from its last checkpoint.

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

TINY = dict(batch_size=16, compile=True, unet=dict(dropout=0.0, base_channels=32, groups=8))
HOURS = dict(lr=4e-4, rise=0.02, fall=0.2, memory=0.1)      # 1,000, a fifth, 5,000 of 50,000
RATES = {
    "paper": dict(lr=2e-4, rise=0.1, fall=0, memory=0.2, ema_warmup=False),     # 5,000, 0, 10,000
    "gpu-hours": HOURS,
    "gpu-hours, rate 2e-4": {**HOURS, "lr": 2e-4},
    "gpu-hours, rate 8e-4": {**HOURS, "lr": 8e-4},
}
SETS = {"small": (START, TRIALS), "gpu-hours": (TINY, RATES)}


def held_out(model, diffusion, images, batch: int = 100):
    "L_simple of each image, t spread evenly, t and noise from fixed seeds; float64 (N,)."
    import torch
    from ddpm_nb import to_model
    g = torch.Generator().manual_seed(2020)
    n = len(images)
    t = (torch.arange(n) * diffusion.T // n)[torch.randperm(n, generator=g)]
    parts = []
    device = diffusion.device
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16):
        for x, t_ in zip(to_model(images).split(batch), t.split(batch)):
            noise = torch.randn(x.shape, generator=g)
            parts.append(diffusion.losses(model, *(o.to(device) for o in (x, t_, noise))))
    return torch.cat(parts).double().cpu()


def cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system


def plan(changes: dict, steps: int):
    "The recipe of a trial of that many updates; `rise`, `fall`, `memory` are shares of them."
    from ddpm_nb.engine.recipes import recipe
    share = {"rise": 0.1, "fall": 0.3, **changes}
    rise, fall = (round(share.pop(name) * steps) for name in ("rise", "fall"))
    decay = 1 - 1 / (share.pop("memory") * steps) if "memory" in share else 0.999
    shape = dict(
        steps=steps, warmup=rise, cooldown=fall, ema_decay=decay,
        ema_warmup=True, log_every=max(steps // 10, 1), save_every=max(steps // 4, 1), keep_last=1,
        sample_every=0)
    return recipe("cifar10", "small").replace(**{**shape, **share})


def run(name: str, start: dict, changes: dict, images: int, out: Path, held) -> dict:
    "Train one trial, or go on with it, and measure it."
    from ddpm_nb.engine.runs import checkpoints
    changes = {**start, **changes, "unet": {**start["unet"], **changes.get("unet", {})}}
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
    last = held_out(trainer.model.eval(), trainer.diffusion, held)
    return dict(
        name=name, images=images, weights=sum(p.numel() for p in trainer.model.parameters()),
        **changes, steps=steps, train_loss=trainer.history[-1]["loss"],
        held_out=losses.mean().item(), last=last.mean().item(),
        seconds=round(wall, 1), cpu_seconds=round(cpu, 1),
        images_per_cpu_second=made / max(cpu, 1e-9), losses=[round(v, 6) for v in losses.tolist()])


def table(rows: list[dict]) -> None:
    "The trials, best first; differences from the best are paired over the held-out images."
    import torch
    rows = sorted(rows, key=lambda r: r["held_out"])
    losses = {r["name"]: torch.tensor(r["losses"], dtype=torch.float64) for r in rows}
    best = losses[rows[0]["name"]]
    print("| trial | weights | held-out L_simple | above | last weights | images per CPU second |")
    print("|---|---|---|---|---|---|")
    for r in rows:
        d = losses[r["name"]] - best
        above = f"{d.mean():.4f} ± {d.std() / len(d) ** 0.5:.4f}" if d.any() else ""
        print(f"| {r['name']} | {r['weights']:,} | {r['held_out']:.4f} | {above} | "
              f"{r['last']:.4f} | {r['images_per_cpu_second']:.1f} |")


def words() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, default=Path("runs/cifar10-trials"),
                   help="where rows and checkpoints go (default: runs/cifar10-trials)")
    p.add_argument("--images", type=int, default=9_600,
                   help="training images a trial sees (default: 9600)")
    p.add_argument("--held-out", type=int, default=2000,
                   help="test images it is measured on (default: 2000)")
    p.add_argument("--of", choices=SETS, default="small", help="which trials (default: small)")
    p.add_argument("--only", nargs="+", choices=[*TRIALS, *RATES], metavar="NAME",
                   help="trials to run, in this order (default: all of them)")
    p.add_argument("--table", action="store_true",
                   help="only print the table of the trials done so far")
    return p.parse_args()


def main() -> None:
    a = words()
    from ddpm_nb import cifar10
    a.out.mkdir(parents=True, exist_ok=True)
    log = a.out / "trials.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    start, trials = SETS[a.of]
    if not a.table:
        held = cifar10(train=False)[0][:a.held_out]
        if wrong := {*(a.only or ())} - {*trials}:
            raise SystemExit(f"--of {a.of} has no trial {', '.join(wrong)}; it has "
                             f"{', '.join(trials)}")
        for name in a.only or trials:
            if any(r["name"] == name and r["images"] == a.images for r in rows): continue
            rows.append(run(name, start, trials[name], a.images, a.out, held))
            with open(log, "a") as f: f.write(json.dumps(rows[-1]) + "\n")
            shown = {k: v for k, v in rows[-1].items() if k != "losses"}
            print(json.dumps(shown), flush=True)
    table([r for r in rows if r["images"] == a.images and r["name"] in trials])


if __name__ == "__main__":
    main()
