#!/usr/bin/env python
"""Write down what the stages of bench/cifar10_again.py have made, or a recipe, and ship it.

RUN is a recipe's run, or the last stage; those before it are found by what it began from. If that
was the packaged network, its record is gone on with (what it was before is kept in RUN/before). The
averaged weights, in half precision, go to RUN/model, or, with a card, to
ddpm_nb/assets/cifar10-small (--package), and what is measured is these. Into --record goes what
experiments/cifar10 shows: record.json (stages, hours, log, held-out error by t, bits/dim, distance,
nearest neighbours), samples.png (64 images, DDIM, 100 steps, seed 0, not chosen) and, with --curve,
in a run of its own, what came out on the way: the distance and the error after so many images, and
evolution.png, the same noise turned into images by each of them. --means measures what the mean of
the averaged weights that were kept from an update on would be worth, a line each, which is added to
means.jsonl.

The first edition's record is first.json, and its samples first.png, in the same folder.

Bits/dim are estimated without bias from --terms terms of the bound an image (chapter 9,
`likelihood`), of --bits test images and of as many training images. The standard error is over
images, so it includes the draw of the terms. Images differ by half a bit, so that of a difference
between 10,000 and 10,000 is 0.008, a quarter of the paper's (3.75 and 3.72).
"""
import argparse
import json
import math
import shutil
import statistics
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

from cifar10_again import DEVICE, distance, drawn, half, loss_by_t, ready

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "nbs/experiments/cifar10_small"
TARGET = ROOT / "ddpm_nb/assets/cifar10-small"


def bits_per_dim(net, d, images, terms: int = 32, seed: int = 0,
                 batch: int = 500 if DEVICE == "cuda" else 64):
    "Unbiased estimates of the bound of each image, and of its first term (chapter 9)."
    import torch

    from ddpm_nb.evaluation import likelihood
    with torch.inference_mode():
        return likelihood(d, half(net), images, terms, batch, torch.Generator().manual_seed(seed),
                          progress=True)


def thin(rows: list[dict], count: int = 150) -> list[dict]:
    "At most `count` rows, each the mean of neighbours."
    size = max(1, math.ceil(len(rows) / count))
    mean = lambda group, key: sum(row[key] for row in group) / len(group)
    return [dict(step=group[-1]["step"], loss=round(mean(group, "loss"), 5),
                 hours=round(group[-1]["seconds"] / 3600, 4),
                 images_per_second=round(mean(group, "images_per_second"), 2))
            for group in (rows[i:i + size] for i in range(0, len(rows), size))]


def asked(run: Path) -> dict:
    "What was asked of a stage beyond its recipe; of a recipe's run, nothing."
    there = run / "stage.json"
    plain = dict(start=None, optimizer="adam", times="uniform")
    return json.loads(there.read_text()) if there.is_file() else plain


def stages(run: Path) -> list[Path]:
    "The runs, the first of them begun from a model that is none."
    before = Path(asked(run)["start"] or "")
    return [*(stages(before) if (before / "stage.json").is_file() else []), run]


def state_of(run: Path) -> tuple[dict, dict]:
    "The state of a run's newest checkpoint; its config, by short names."
    from ddpm_nb.engine.runs import checkpoints, read_checkpoint
    _, state = read_checkpoint(checkpoints(run)[-1], only=())
    return state, {k.removeprefix("train."): v for k, v in state["config"].items()}


def lines(run: Path, seconds: float) -> list[dict]:
    "The log, up to so many seconds of the run's clock; a line that is not whole is none."
    rows = []
    for line in (run / "log.jsonl").read_text().splitlines():
        with suppress(ValueError): rows.append(json.loads(line))
    return [row for row in rows if row["seconds"] <= seconds]


def worked(run: Path, seconds: float) -> float:
    """The seconds that a run was at work, of those that its clock has counted.

    A stage takes days beside other work, and its clock counts on while it stands still: a stretch
    between two lines of the log that took more than twice the usual time counts as a usual one.
    The first stands as it is: it has the compiling.
    """
    clock = [0, *(row["seconds"] for row in lines(run, seconds))]
    took = [after - before for before, after in pairwise(clock)]
    if len(took) < 3: return seconds
    usual = statistics.median(took)
    return seconds - sum(s - usual for s in took[1:] if s > 2 * usual)


def told(run: Path) -> dict:
    "What a stage was, and what it took; one that the next began from before its end, so far."
    (state, c), how = state_of(run), asked(run)
    done, falling = state["step"], max(0, state["step"] - c["steps"] + c["cooldown"])
    return dict(updates=done, images=done * c["batch_size"],
                hours=worked(run, state["seconds"]) / 3600,
                optimizer=how["optimizer"], prediction=c["diffusion.prediction"],
                times=how["times"], batch=c["batch_size"], lr=c["lr"], warmup=c["warmup"],
                fall=falling / done, ema=c["ema_decay"])


def finished(run: Path) -> list[dict]:
    "The stages of a run, as told; if the last one's rate is to fall, it must have done so."
    (state, c), made = state_of(run), [told(stage) for stage in stages(run)]
    if c["cooldown"] and state["step"] < c["steps"]:
        raise SystemExit(f"{run} stands at {state['step']} of {c['steps']}")
    return made


def before(run: Path) -> Path | None:
    "The record of the packaged network as the first of the runs found it, if it began from that."
    first = stages(run)[0]
    if asked(first)["start"] != TARGET.name: return None
    if not (first / "before").exists(): shutil.copytree(RECORD, first / "before")
    return first / "before"


def record_before(run: Path) -> dict:
    return json.loads((there / "record.json").read_text()) if (there := before(run)) else {}


def kept(run: Path, since: int) -> dict[int, Path]:
    "The checkpoints that were kept from an update on, by their updates; the newest is one."
    from ddpm_nb.engine.runs import checkpoints
    found = {int(at.name.rpartition("_")[2]): at for at in checkpoints(run)}
    every, newest = state_of(run)[1]["keep_every"], max(found)
    return {k: at for k, at in found.items()
            if k == newest or k >= since and every and k % every == 0}


def mean_of(run: Path, since: int):
    "The network, its weights the mean of the averaged weights since an update; its diffusion."
    from torch.optim.swa_utils import AveragedModel

    from ddpm_nb.engine.runs import load_run
    net, d = load_run(run)
    mean = AveragedModel(net)
    for at in kept(run, since).values(): mean.update_parameters(load_run(at)[0])
    return mean.module, d


CARD = """# cifar10-small

A denoising diffusion model of 32x32 images, second edition: {weights:,} weights, trained in
{hours:.1f} hours on {hardware}.

It is **not the paper's model**: {weights:,} weights in place of 35,746,307, and {images:,} images
seen ({passes:.1f} passes over the training set) in place of 102,400,000. The paper's numbers
(FID 3.17, Inception Score 9.46, at most 3.75 bits/dim) are not its numbers. Nor is all of its
recipe the paper's: see the stages.

| | |
|---|---|
| data | {data} |
| network | {network} |
| diffusion | {diffusion} |
{stages}
| weights | exponential moving average, stored in half precision |
| bits/dim, test images | {bits}, measured with these very weights |
| bits/dim, training images | {bits_train} |
| L_simple | {loss} on {loss_images:,} test images |
| distance | {distance} |
| nearest neighbours | {nearest} |

Limits: unconditional, 32x32 pixels only; many samples are not nameable objects; it has CIFAR-10's
biases and was made for teaching. `bench/cifar10_again.py` trained it, `bench/cifar10_snapshot.py`
measured it.
"""

DATA = ("the 50,000 training images of CIFAR-10 (Krizhevsky, 2009), mirrored at random; "
        "labels unused")
DIFFUSION = "T = 1000, beta linear from 1e-4 to 0.02, predicts {}, variance {}"


def network_in_words(u: dict) -> str:
    return (f"U-Net, {u['base_channels']} channels x {tuple(u['channel_multipliers'])}, "
            f"residual blocks a level: {u['blocks_per_level']}, "
            f"attention at {tuple(u['attention_resolutions'])}, "
            f"{u['groups']} groups, dropout {u['dropout']}")


def stage_in_words(k: int, s: dict) -> str:
    how = "equally spread" if s["times"] == "uniform" else "centred"
    optimizer = dict(muon="Muon and Adam", adam="Adam")[s["optimizer"]]
    falls = ("then constant" if not s["fall"] else "then falling to 0" if s["fall"] == 1 else
             f"falling to 0 over the last {s['fall']:.0%}")
    return (f"| stage {k} | {s['updates']:,} updates of {s['batch']} images in {s['hours']:.2f} "
            f"hours; predicts {s['prediction']}; t {how}; {optimizer}, rate up to {s['lr']:g}, "
            f"{s['warmup']:,} updates of warm-up, {falls}; "
            f"average with decay {s['ema']}; arithmetic in bfloat16, weights in float32 |")


def card(record: dict) -> str:
    "The model card."
    h, n = record["held_out"], record["nearest"]
    cost = lambda b, what: (f"{b['mean']:.3f} ± {b['standard_error']:.3f} (standard error; "
                            f"{b['images']:,} {what} images, {b['terms']} terms of each; an upper "
                            "bound)")
    return CARD.format(
        weights=record["weights"], hours=record["hours"], hardware=record["hardware"],
        images=record["images"], passes=record["images"] / 50_000, data=DATA,
        network=network_in_words(record["unet"]), diffusion=DIFFUSION.format(*record["diffusion"]),
        stages="\n".join(stage_in_words(k, s) for k, s in enumerate(record["stages"], 1)),
        bits=cost(record["bits"], "test"), bits_train=cost(record["bits_train"], "training"),
        loss=f"{h['mean']:.5f} ± {h['standard_error']:.5f}", loss_images=h["images"],
        distance=f"{record['distance']:.1f} of {record['samples']:,} samples from the training set "
                 f"in the features of our own classifier, where as many test images have "
                 f"{record['distance_of_real']:.1f}; not FID",
        nearest=f"of {n['images']:,} samples the nearest training image lies {n['samples']:.2f} "
                f"away in root mean square over pixels in [-1, 1] (median), of as many test images "
                f"{n['test']:.2f}")


def nearest_of(images, train) -> float:
    "Median distance from the nearest training image, mirrored or not; root mean square."
    import torch

    from ddpm_nb import to_model
    from ddpm_nb.evaluation import nearest
    here = lambda images: to_model(images).to(DEVICE)
    found = [nearest(here(images), here(way))[0] for way in (train, train.flip(3))]
    size = math.sqrt(images[0].numel())
    return torch.cat(found, 1).amin(1).median().item() / size


def cost_of(net, d, images, count: int, terms: int) -> dict:
    "Bits/dim of some images, as the record has it."
    bits = bits_per_dim(net, d, some(images, count), terms)
    return dict(images=len(bits.total), terms=terms, mean=bits.mean,
                standard_error=bits.standard_error, distortion=bits.decoder.mean().item())


def measure(net, d, a) -> dict:
    "All that is measured of the finished model, but for its pictures."
    from ddpm_nb import cifar10
    train, test = (cifar10(train=part)[0] for part in (True, False))
    fast = ready(net)
    samples, real = drawn(half(fast), d, a.samples), some(test, a.samples)
    found = dict(
        held_out=loss_by_t(half(net), d, some(test, a.held_out)),
        samples=a.samples, distance=distance(samples), distance_of_real=distance(real),
        nearest=dict(images=500, samples=nearest_of(samples[:500], train),
                     test=nearest_of(real[:500], train)))
    return dict(found, bits=cost_of(fast, d, test, a.bits, a.terms),
                bits_train=cost_of(fast, d, train, a.bits, a.terms))


def some(images, count: int):
    "So many of the images, drawn at random, the same ones each time."
    import torch
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return images[order[:count]]


def save(images, ncols: int, path: Path) -> None:
    from PIL import Image

    from ddpm_nb.plotting import image_grid
    Image.fromarray(image_grid(images.cpu(), ncols, pad=0)).save(path, optimize=True)


def whole(a) -> None:
    "The record of the finished model, and, if asked for, the package's copy of it."
    import torch

    from ddpm_nb.engine.pretrained import load_pretrained, save_pretrained
    from ddpm_nb.engine.runs import load_run
    earlier = record_before(a.run)
    made, (state, _) = [*earlier.get("stages", ()), *finished(a.run)], state_of(a.run)
    place = TARGET if a.package else a.run / "model"
    if place.exists(): shutil.rmtree(place)
    save_pretrained(place, *load_run(a.run), dtype=torch.float16)
    net, d = (part.to(DEVICE) for part in load_pretrained(place))    # what is shipped is measured
    g = torch.Generator().manual_seed(0)
    save(d.sample(half(net), (64, 3, 32, 32), "ddim", 100, g, False), 8, a.record / "samples.png")
    record = earlier | dict(
        images=sum(s["images"] for s in made), hours=sum(s["hours"] for s in made),
        hardware=a.hardware, code=state["code"], torch=state["torch"], stages=made,
        weights=sum(v.numel() for v in net.parameters()), unet=net.config.to_dict(),
        diffusion=[d.prediction, d.variance],
        log=thin(lines(a.run, state_of(a.run)[0]["seconds"])), **measure(net, d, a))
    (a.record / "record.json").write_text(json.dumps(record, indent=1) + "\n")
    if a.package:
        (place / "README.md").write_text(card(record))
        print(card(record))


def models(a):
    "What there was on the way, and the end: images seen, network, diffusion."
    from ddpm_nb.engine.runs import load_run
    seen = record_before(a.run).get("images", 0)
    for run in stages(a.run):
        (state, c), newest = state_of(run), max(kept(run, 0))
        for step, at in kept(run, 0).items():
            if step % a.every and step < newest: continue
            yield seen + step * c["batch_size"], *load_run(at)
        seen += state["step"] * c["batch_size"]


def curve(a) -> None:
    "Into the record: quality by images seen; and the same noise, by each of these models."
    import numpy as np
    import torch
    from einops import rearrange
    from PIL import Image

    from ddpm_nb import cifar10
    written, there = a.record / "record.json", before(a.run)
    record, strips = json.loads(written.read_text()), []
    rows, edition = record_before(a.run).get("curve", []), 2 if there else 1
    if rows:
        grid = torch.from_numpy(np.array(Image.open(there / "evolution.png").convert("RGB")))
        strips.append(rearrange(grid, "(r h) (c w) k -> (r c) k h w", h=32, w=32))
    held = some(cifar10(train=False)[0], a.held_out)
    for images, net, d in models(a):
        fast, d = half(ready(net)), d.to(DEVICE)
        samples = drawn(fast, d, a.curve)
        rows.append(dict(images=images, edition=edition, samples=a.curve,
                         distance=distance(samples), error=loss_by_t(fast, d, held)["mean"]))
        strips.append(samples[:10])
        print(rows[-1], flush=True)
    record |= dict(curve=rows)
    save(torch.cat(strips), 10, a.record / "evolution.png")
    written.write_text(json.dumps(record, indent=1) + "\n")


def means(a) -> None:
    "To means.jsonl: the means of the averaged weights since several updates, by three draws."
    from ddpm_nb import cifar10
    held = some(cifar10(train=False)[0], a.held_out)
    stage = len(record_before(a.run).get("stages", ())) + len(stages(a.run))
    for since in a.means:
        net, d = mean_of(a.run, since)
        fast, d, at = half(ready(net)), d.to(DEVICE), [*kept(a.run, since)]
        row = dict(stage=stage, mean_of=at, samples=1000, error=loss_by_t(fast, d, held)["mean"],
                   distance=[distance(drawn(fast, d, 1000, seed=seed)) for seed in range(3)])
        print(row, flush=True)
        with open(a.record / "means.jsonl", "a") as f: f.write(json.dumps(row) + "\n")


def words() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("run", type=Path, help="the run folder of the last stage")
    p.add_argument("--record", type=Path, default=RECORD,
                   help="where to write (default: nbs/experiments/cifar10_small)")
    p.add_argument("--package", action="store_true", help="write ddpm_nb/assets/cifar10-small")
    p.add_argument("--bits", type=int, default=10_000,
                   help="test images for bits/dim, and as many training images")
    p.add_argument("--terms", type=int, default=8, help="evaluations of each")
    p.add_argument("--held-out", type=int, default=2000, help="test images for the error by t")
    p.add_argument("--samples", type=int, default=2000, help="for the distance")
    p.add_argument("--curve", type=int, default=0, metavar="N",
                   help="only add to the record how it became so, by N samples each")
    p.add_argument("--every", type=int, default=2000,
                   help="updates between two points of the curve")
    p.add_argument("--means", type=int, nargs="+", default=[], metavar="UPDATE",
                   help="only measure what the means from these updates on are worth")
    p.add_argument("--hardware", default="two cores of an AMD EPYC (AVX-512, bfloat16)",
                   help="in words")
    return p.parse_args()


if __name__ == "__main__":
    a = words()
    a.record.mkdir(parents=True, exist_ok=True)
    (curve if a.curve else means if a.means else whole)(a)
