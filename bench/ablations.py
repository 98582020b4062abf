#!/usr/bin/env python
"""Table 2 at a size that two CPU cores can do: what is predicted, which loss, which variance.

Every run is the same small network (base 32; 1, 2, 2; one block), the same images in the same
order, the same number of updates and the same learning rate; only the row's own choice and the seed
differ. Each is then measured twice: bits/dim on test images, and the distance of ancestral samples
from the training set in the features of chapter 9's classifier. A second table trains the same
network on each of the five schedules.

Seed by seed, so that whatever is finished is balanced. A run that was interrupted goes on from its
checkpoint; one that is measured is not run again. One JSON line a run goes to --record, and a strip
of samples to a PNG beside it.
"""
import argparse
import json
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "nbs/experiments/ablations"
VLB = dict(loss="vlb")
TABLE_2 = {   # the paper's six rows, in its order; the variance of what is fixed is beta
    "mu, L, learned": dict(prediction="mu", variance="learned", **VLB),
    "mu, L, fixed": dict(prediction="mu", variance="fixed_large", **VLB),
    "mu, simple, fixed": dict(prediction="mu", variance="fixed_large"),
    "eps, L, learned": dict(prediction="eps", variance="learned", **VLB),
    "eps, L, fixed": dict(prediction="eps", variance="fixed_large", **VLB),
    "eps, simple, fixed": dict(prediction="eps", variance="fixed_large"),
}
SCHEDULES = {   # with v, which can be asked for where nothing is left of the signal
    f"schedule {name}": dict(schedule=name, prediction="v", variance="fixed_small")
    for name in ("linear", "quadratic", "constant", "jsd", "cosine")}


def plan(changes: dict, seed: int, a):
    "The recipe of one run."
    from ddpm_nb.engine.recipes import recipe
    unet = dict(base_channels=32, groups=8, dropout=0.0)
    if changes["variance"].startswith("learned"): unet["out_channels"] = 6
    return recipe("cifar10", "small").replace(
        steps=a.steps, batch_size=a.batch, lr=a.lr, warmup=a.steps // 10, cooldown=a.steps // 3,
        ema_decay=0.995, ema_warmup=True, precision="bf16", compile=True, seed=seed, log_every=20,
        save_every=200, keep_last=1, sample_every=0, unet=unet, diffusion=changes)


def drawn(model, d, a, steps: int):
    "Samples, uint8 (n, 3, 32, 32), by algorithm 2 on `steps` of the steps; None: NaN."
    import torch
    from ddpm_nb import to_uint8
    parts, g = [], torch.Generator().manual_seed(0)
    try:
        for i in range(0, a.samples, a.chunk):
            shape = min(a.chunk, a.samples - i), 3, 32, 32
            x = d.sample(model, shape, sampler="ddpm", steps=steps, generator=g,
                         progress=False)
            parts.append(to_uint8(x).cpu())
    except FloatingPointError: return None
    return torch.cat(parts).contiguous()   # the network leaves them channels last


def measured(net, d, a, held) -> dict:
    "Bits/dim with its standard error, and samples; FloatingPointError if it is not finite."
    import torch
    from cifar10_again import half

    from ddpm_nb.evaluation import likelihood
    model, g = half(net), torch.Generator().manual_seed(0)
    with torch.inference_mode(): bound = likelihood(d, model, held, terms=32, generator=g)
    return dict(bits_per_dim=float(bound.mean), standard_error=float(bound.standard_error),
                samples=drawn(model, d, a, a.sample_steps))


def run(name: str, changes: dict, seed: int, a, held) -> dict:
    "Train one run, or go on with it, and measure it."
    from ddpm_nb.engine.faster import compiled
    from ddpm_nb.engine.runs import Diverged, checkpoints
    from ddpm_nb.plotting import save_grid
    from safetensors.torch import save_file
    place = a.out / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"
    trainer = plan(changes, seed, a).trainer(place, progress=False)
    if checkpoints(place): trainer.resume()
    begun = time.monotonic() - trainer.seconds        # of the sittings before this one
    try:
        trainer.train()
        if trainer.stopped_by: raise KeyboardInterrupt
        found = measured(compiled(trainer.ema.model), trainer.diffusion, a, held)
    except (Diverged, FloatingPointError) as e:     # the loss, or the bound, is not finite
        found = dict(bits_per_dim=None, standard_error=None, diverged=str(e))
    samples = found.pop("samples", None)
    if samples is not None:
        save_file({"samples": samples}, place / "samples.safetensors")
        save_grid(samples[:16], a.record / f"{place.name}.png", ncols=16)
    curve = [[row["step"], row["loss"], row["grad_norm"]] for row in trainer.history]
    return dict(name=name, seed=seed, folder=place.name, steps=a.steps, batch=a.batch, lr=a.lr,
                weights=sum(p.numel() for p in trainer.model.parameters()),
                samples=a.samples, sample_steps=a.sample_steps, held_out=a.held_out,
                **found, seconds=round(time.monotonic() - begun), curve=curve)


def words() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--record", type=Path, default=RECORD, help="where rows and samples go")
    p.add_argument("--out", type=Path, default=ROOT / "runs/ablations", help="where runs are kept")
    p.add_argument("--steps", type=int, default=1000, help="updates of each run")
    p.add_argument("--batch", type=int, default=32)
    p.add_argument("--lr", type=float, default=6e-4)
    p.add_argument("--seeds", type=int, default=3)
    p.add_argument("--held-out", type=int, default=256, help="test images for bits/dim")
    p.add_argument("--samples", type=int, default=512, help="samples for the distance")
    p.add_argument("--sample-steps", type=int, default=50, help="of algorithm 2, each")
    p.add_argument("--chunk", type=int, default=128, help="samples drawn at once")
    p.add_argument("--distances", action="store_true",
                   help="train nothing: measure the samples of the runs that are there")
    p.add_argument("--variances", action="store_true",
                   help="train nothing: the packaged network, by steps and variance")
    p.add_argument("--only", nargs="+", choices=[*TABLE_2, *SCHEDULES], metavar="NAME",
                   default=[*TABLE_2, *SCHEDULES], help="runs, in this order (default: all)")
    return p.parse_args()


def add_distances(rows: list[dict], a) -> None:
    "Into each row the distance of its samples; null where there are none."
    from cifar10_again import distance
    from safetensors.torch import load_file
    for row in rows:
        kept = a.out / row["folder"] / "samples.safetensors"
        if "distance" in row or not kept.exists() and row["bits_per_dim"] is not None: continue
        row["distance"] = distance(load_file(kept)["samples"]) if kept.exists() else None
        print(row["name"], row["seed"], row["distance"], flush=True)


def variances(a) -> dict:
    "The packaged network by algorithm 2: the distance by the number of steps and the variance."
    import torch
    from cifar10_again import DEVICE, distance, half, ready
    from figures import sum_of

    from ddpm_nb import GaussianDiffusion, load_pretrained
    net, d = load_pretrained("cifar10-small")
    model, rows = half(ready(net)), []
    for steps in (5, 10, 25, 50, 100):
        for variance in ("fixed_large", "fixed_small"):
            process = GaussianDiffusion(d.schedule, d.prediction, variance).to(DEVICE)
            with torch.inference_mode(): samples = drawn(model, process, a, steps)
            found = distance(samples)
            rows.append(dict(variance=variance, steps=steps, samples=a.samples, distance=found))
            print(rows[-1], flush=True)
    return dict(weights=sum_of(net), rows=rows)


def main() -> None:
    a = words()
    from ddpm_nb import cifar10
    a.record.mkdir(parents=True, exist_ok=True)
    if a.variances:
        (a.record / "variances.json").write_text(json.dumps(variances(a), indent=0) + "\n")
        return
    log = a.record / "runs.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    if a.distances:
        add_distances(rows, a)
        log.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return
    sizes = ("steps", "batch", "lr", "samples", "sample_steps", "held_out")
    if other := [row for row in rows if any(row[k] != getattr(a, k) for k in sizes)]:
        raise SystemExit(f"{log} has {len(other)} runs of other sizes: give theirs, or another "
                         "--record")
    done = {(row["name"], row["seed"]) for row in rows}
    held = cifar10(train=False)[0][:a.held_out]
    for seed in range(a.seeds):
        for name in a.only:
            if (name, seed) in done: continue
            row = run(name, (TABLE_2 | SCHEDULES)[name], seed, a, held)
            with open(log, "a") as f: f.write(json.dumps(row) + "\n")
            print(json.dumps({k: v for k, v in row.items() if k != "curve"}), flush=True)


if __name__ == "__main__":
    main()
