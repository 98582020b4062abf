#!/usr/bin/env python
"""Write down where a CIFAR-10 run stands, and, with --package, ship its averaged weights.

Reads the newest checkpoint of RUN, draws and measures, and writes into --record what the notebook
experiments/cifar10 shows: record.json (recipe, steps, hours, thinned log, held-out loss by t,
bits/dim), samples.png (64 images, DDIM, 100 steps, seed 0, not chosen) and evolution.png (the same
noise after more and more updates), both as plain grids of 32x32 tiles.

Bits/dim are estimated without bias from 32 terms of the bound an image (ddpm_nb.evaluation,
`likelihood`). The standard error is over images, so it includes the draw of the terms.

--package writes ddpm_nb/assets/cifar10-small: the weights in half precision, and a model card.
"""
import argparse
import json
import math
import shutil
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def bits_per_dim(net, d, images, terms: int = 32, seed: int = 0, batch: int = 64):
    "Unbiased estimates of the bound of each image, and of its first term (chapter 9)."
    import torch

    from ddpm_nb.engine.cli import _inference
    from ddpm_nb.evaluation import likelihood
    model = _inference(net, batch, "bf16", False)
    with torch.inference_mode():
        return likelihood(d, model, images, terms, batch, torch.Generator().manual_seed(seed),
                          progress=True)


def loss_by_t(net, d, images, bins: int = 20, batch: int = 100) -> dict:
    "L_simple on images with t spread evenly and fixed noise: mean, standard error, and means by t."
    import torch
    from ddpm_nb import to_model
    g, n = torch.Generator().manual_seed(2020), len(images)
    t = (torch.arange(n) * d.T // n)[torch.randperm(n, generator=g)]
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        losses = torch.cat([d.losses(net, x, t_, torch.randn(x.shape, generator=g)).double()
                            for x, t_ in zip(to_model(images).split(batch), t.split(batch))])
    order, error = t.argsort(), losses.std().item() / math.sqrt(n)
    means = lambda v: [part.double().mean().item() for part in v[order].tensor_split(bins)]
    return dict(images=n, mean=losses.mean().item(), standard_error=error,
                t=means(t), by_t=means(losses))


def cut(path: Path, ncols: int, scale: int = 2, pad: int = 1, size: int = 32):
    "The tiles of a grid that the Trainer wrote, uint8 (N, 3, size, size)."
    import numpy as np
    import torch
    from PIL import Image
    grid, pitch = np.asarray(Image.open(path).convert("RGB")), size * scale + pad
    tiles = [grid[r:r + size * scale:scale, c * pitch:c * pitch + size * scale:scale]
             for r in range(0, grid.shape[0], pitch) for c in range(ncols)]
    return torch.from_numpy(np.stack(tiles).copy()).permute(0, 3, 1, 2)


def thin(rows: list[dict], count: int = 300) -> list[dict]:
    "At most `count` rows, each the mean of neighbours."
    size = max(1, math.ceil(len(rows) / count))
    mean = lambda group, key: sum(row[key] for row in group) / len(group)
    return [dict(step=group[-1]["step"], loss=round(mean(group, "loss"), 5),
                 hours=round(group[-1]["seconds"] / 3600, 4),
                 images_per_second=round(mean(group, "images_per_second"), 2))
            for group in (rows[i:i + size] for i in range(0, len(rows), size))]


CARD = """# cifar10-small

A denoising diffusion model of 32x32 images, trained by `{command}`. **{status}**

It is **not the paper's model**: {weights:,} weights in place of 35,746,307, and {images:,} images
seen ({passes:.1f} passes over the training set) in place of 102,400,000. The paper's numbers
(FID 3.17, Inception Score 9.46, at most 3.75 bits/dim) are not its numbers.

| | |
|---|---|
| data | {data} |
| network | {network} |
| diffusion | {diffusion} |
| training | {training} |
| weights | exponential moving average with decay {ema}, stored in half precision |
| time | {hours:.2f} hours of wall clock on {hardware} |
| bits/dim | {bits}, measured with these very weights |
| L_simple | {loss} on {loss_images:,} test images |

Limits: unconditional, 32x32 pixels only; most samples are not nameable objects; it has CIFAR-10's
biases and was made for teaching.
"""

DATA = ("the 50,000 training images of CIFAR-10 (Krizhevsky, 2009), mirrored at random; "
        "labels unused")
DIFFUSION = "T = 1000, beta linear from 1e-4 to 0.02, predicts eps, variance fixed_large, L_simple"


def network_in_words(u: dict) -> str:
    return (f"U-Net, {u['base_channels']} channels x {tuple(u['channel_multipliers'])}, "
            f"residual blocks a level: {u['blocks_per_level']}, "
            f"attention at {tuple(u['attention_resolutions'])}, "
            f"{u['groups']} groups, dropout {u['dropout']}")


def training_in_words(r: dict, step: int) -> str:
    return (f"{step:,} of {r['steps']:,} planned updates of {r['batch_size']} images; "
            f"Adam, learning rate {r['lr']}, {r['warmup']:,} updates of warm-up, "
            f"{r['cooldown']:,} of cooldown at the end; "
            f"gradient norm clipped at {r['grad_clip']}; "
            f"arithmetic in {r['precision']}, weights in float32")


def card(record: dict) -> str:
    "The model card."
    from ddpm_nb.engine.recipes import recipe
    r, b, h = record["recipe"]["train"], record["bits"], record["held_out"]
    done, usual = record["step"] >= r["steps"], recipe("cifar10", "small").train.to_dict()
    changed = "".join(f" --set {k}={json.dumps(r[k])}" for k in r if r[k] != usual[k])
    return CARD.format(
        command="ddpm-nb train cifar10 --size small" + changed, data=DATA, diffusion=DIFFUSION,
        status="Its training is complete." if done else
               "Preliminary: a snapshot of a run that goes on.",
        weights=record["weights"], images=record["images"], passes=record["images"] / 50_000,
        network=network_in_words(record["recipe"]["unet"]),
        training=training_in_words(r, record["step"]),
        ema=r["ema_decay"], hours=record["hours"], hardware=record["hardware"],
        bits=f"{b['mean']:.3f} ± {b['standard_error']:.3f} "
             f"(standard error; {b['images']:,} test images; an upper bound)",
        loss=f"{h['mean']:.5f} ± {h['standard_error']:.5f}", loss_images=h["images"])


def words() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("run", type=Path, help="the run folder")
    p.add_argument("--record", type=Path, default=ROOT / "nbs/experiments/cifar10_small",
                   help="where to write (default: nbs/experiments/cifar10_small)")
    p.add_argument("--package", action="store_true", help="also write ddpm_nb/assets/cifar10-small")
    p.add_argument("--bits", type=int, default=1000,
                   help="test images for bits/dim, 32 evaluations each (default: 1000)")
    p.add_argument("--held-out", type=int, default=2000,
                   help="test images for the loss by t (default: 2000)")
    p.add_argument("--hardware", default="two cores of an AMD EPYC (AVX-512, bfloat16)",
                   help="in words")
    return p.parse_args()


def measure(run: Path, net, d, state: dict, a: argparse.Namespace) -> dict:
    "The record, but for its pictures."
    import torch

    from ddpm_nb import cifar10
    test = cifar10(train=False)[0]
    test = test[torch.randperm(len(test), generator=torch.Generator().manual_seed(0))]
    recipe, steps = json.loads((run / "run.json").read_text()), state["step"]
    log = (run / "log.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in log if line.endswith("}")]
    bits = bits_per_dim(torch.compile(net), d, test[:a.bits])
    return dict(
        step=steps, images=steps * recipe["train"]["batch_size"], hours=state["seconds"] / 3600,
        hardware=a.hardware, code=state["code"], torch=state["torch"],
        weights=sum(v.numel() for v in net.parameters()), recipe=recipe,
        log=thin([r for r in rows if r["step"] <= steps]),
        held_out=loss_by_t(net, d, test[:a.held_out]),
        bits=dict(images=a.bits, mean=bits.mean, standard_error=bits.standard_error,
                  distortion=bits.decoder.mean().item()))


def draw(run: Path, net, d, steps: int, folder: Path) -> list[int]:
    "Write samples.png and evolution.png; returns the updates at the rows of the latter."
    import torch
    from PIL import Image

    from ddpm_nb.plotting import image_grid

    def save(images, ncols: int, name: str):
        Image.fromarray(image_grid(images, ncols, pad=0)).save(folder / name, optimize=True)

    g = torch.Generator().manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        save(d.sample(net, (64, 3, 32, 32), "ddim", 100, g), 8, "samples.png")
    grids = sorted((run / "samples").glob("step_*.png"))
    grids = [g for g in grids if int(g.stem[5:]) <= steps]
    if len(grids) > 6:      # denser early, when most happens
        grids = [grids[round((len(grids) - 1) * (2 ** (i / 5) - 1))] for i in range(6)]
    if grids: save(torch.cat([cut(g, 8)[:12] for g in grids]), 12, "evolution.png")
    return [int(g.stem[5:]) for g in grids]


def main() -> None:
    a = words()
    import torch

    from ddpm_nb.engine.pretrained import load_pretrained, save_pretrained
    from ddpm_nb.engine.runs import checkpoints, load_run, read_checkpoint
    newest, scratch = checkpoints(a.run)[-1], Path(tempfile.mkdtemp())
    _, state = read_checkpoint(newest, only=("none",))
    # what is shipped is what is measured
    place = save_pretrained(scratch / "model", *load_run(newest), dtype=torch.float16)
    net, d = load_pretrained(place)
    record = measure(a.run, net, d, state, a)
    a.record.mkdir(parents=True, exist_ok=True)
    record["evolution"] = draw(a.run, net, d, record["step"], a.record)
    (a.record / "record.json").write_text(json.dumps(record, indent=1) + "\n")
    b = record["bits"]
    print(f"step {record['step']:,}: {b['mean']:.3f} ± {b['standard_error']:.3f} bits/dim; "
          f"look at {a.record / 'samples.png'}")
    if a.package:
        target = ROOT / "ddpm_nb/assets/cifar10-small"
        if target.exists(): shutil.rmtree(target)
        shutil.move(scratch / "model", target)
        (target / "README.md").write_text(card(record))
        size = sum(f.stat().st_size for f in target.rglob("*")) / 1e6
        print(f"{target.relative_to(ROOT)}: {size:.1f} MB")
    shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main()
