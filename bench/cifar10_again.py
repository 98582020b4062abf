#!/usr/bin/env python
"""Teach the small CIFAR-10 network on, by a recipe that is not the paper's.

The network and the data are those of `cifar10 small`. What differs: it begins from a model that is
there (--start); it may be asked for v in place of eps; t is drawn more often where most can be
learnt (--times centred); and matrices are moved by Muon (Keller Jordan and others, 2024,
https://kellerjordan.github.io/posts/muon), only what is no matrix by Adam.

A run is one stage: its rate rises, stays a while, and falls to nothing over the last --fall of its
updates, so that what it leaves is a finished model, and the next stage may start from that. A stage
that was interrupted goes on when the same command is given again. On several processes:
torchrun --standalone --nproc_per_node 2 -- bench/cifar10_again.py RUN ...

Ends with the error on held-out images by range of t, and with the distance of samples from the
training set (chapter 9), in RUN/measured.json; what was asked for is in RUN/stage.json.
"""
import argparse
import json
import math
from pathlib import Path

import torch
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
torch.backends.cudnn.allow_tf32 = False    # what is measured in float32 is float32 everywhere


def orthogonal(g: Tensor, steps: int = 5) -> Tensor:   # (K, rows, columns)
    "Each matrix with its singular values brought near 1, by Newton and Schulz's iteration."
    x = g.bfloat16()
    if tall := x.shape[1] > x.shape[2]: x = x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return (x.mT if tall else x).to(g.dtype)


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised, for what has two dimensions or more; Adam for the rest.

    Both move a weight by about the learning rate: an orthogonal matrix of n columns has entries of
    root mean square 1 / sqrt(n), and is scaled back to 1. A kernel is a matrix with a row for each
    channel that it writes.
    """

    def __init__(self, params, lr: float = 6e-4, momentum: float = 0.95, betas=(0.9, 0.999)):
        super().__init__(params, dict(lr=lr, momentum=momentum, betas=betas, eps=1e-8))

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            here = [p for p in group["params"] if p.grad is not None]
            for p in here: self.state[p].setdefault("exp_avg", torch.zeros_like(p))
            self._matrices([p for p in here if p.ndim > 1], group)
            self._rest([p for p in here if p.ndim < 2], group)

    def _matrices(self, params: list[Tensor], group: dict) -> None:
        "Those of one shape at a time, so that few products are made of many small ones."
        m, shapes = group["momentum"], {}
        for p in params:
            average = self.state[p]["exp_avg"].lerp_(p.grad, 1 - m)
            ahead = p.grad.lerp(average, m).reshape(len(p), -1)        # Nesterov's
            shapes.setdefault(ahead.shape, []).append((p, ahead))
        for shape, members in shapes.items():
            moves = orthogonal(torch.stack([ahead for _, ahead in members]))
            scale = group["lr"] * math.sqrt(max(shape))
            for (p, _), move in zip(members, moves): p.sub_(scale * move.view(p.shape))

    def _rest(self, params: list[Tensor], group: dict) -> None:
        "Adam."
        (b1, b2), lr, states = group["betas"], group["lr"], [self.state[p] for p in params]
        for p, s in zip(params, states):
            if "step" not in s: s.update(exp_avg_sq=torch.zeros_like(p), step=torch.tensor(0.0))
            s["step"] += 1
        k, grads = states[0]["step"].item(), [p.grad for p in params]
        mean, square = ([s[key] for s in states] for key in ("exp_avg", "exp_avg_sq"))
        torch._foreach_lerp_(mean, grads, 1 - b1)
        torch._foreach_lerp_(square, torch._foreach_mul(grads, grads), 1 - b2)
        size = torch._foreach_sqrt(torch._foreach_div(square, 1 - b2**k))
        torch._foreach_add_(size, group["eps"])
        torch._foreach_addcdiv_(params, mean, size, value=-lr / (1 - b1**k))


def centred(log_snr: Tensor, mean: float = -1.0, deviation: float = 1.6, rest: float = 0.2,
            ) -> Tensor:   # long (T,)
    """Times to put in the place of equally spread ones, so that ln(sigma / alpha) is about normal.

    A share of them, `rest`, stays equally spread. Karras and others (2022, section 5) draw noise
    levels so; equally spread times of the linear schedule lie above a level of 3.4 half of the
    time, where next to nothing can be known of the image.
    """
    below = torch.special.ndtr((-log_snr / 2 - mean) / deviation)
    normal = below.diff(prepend=below.new_zeros(1))
    share = (rest / len(below) + (1 - rest) * normal / normal.sum()).cumsum(0)
    middles = (torch.arange(len(below), dtype=share.dtype) + 0.5) / len(below)
    return torch.searchsorted(share, middles).clamp(max=len(below) - 1)


def ready(net):
    "The network where it is measured, and as it is called there."
    from ddpm_nb.engine.faster import compiled
    net = net.to(DEVICE)
    return net if DEVICE == "cuda" else compiled(net)      # a minute of compiling saves seconds


def half(net):
    "The network in bfloat16, its answers in float32."
    def model(x, t):
        with torch.autocast(x.device.type, torch.bfloat16): return net(x, t).float()
    return model


def loss_by_t(model, d, images, bins: int = 20, batch: int = 100) -> dict:
    """L_simple on images with t spread evenly and fixed noise: mean, its error, and means by t.

    It is the squared error of eps, whatever the network is asked for.
    """
    from ddpm_nb import to_model
    g, n, found = torch.Generator().manual_seed(2020), len(images), []
    t = (torch.arange(n) * d.T // n)[torch.randperm(n, generator=g)]
    snr = (d.schedule.alpha_bars / d.schedule.one_minus_alpha_bars).to(d.device)
    with torch.inference_mode():
        for x0, t_ in zip(to_model(images).to(d.device).split(batch), t.to(d.device).split(batch)):
            noise = torch.randn(x0.shape, generator=g).to(d.device)
            guess = d.p_mean_variance(model, d.q_sample(x0, t_, noise), t_, clip=False).x0
            found.append((guess - x0).double().square().flatten(1).mean(1) * snr[t_])
    losses, order = torch.cat(found).cpu(), t.argsort()
    means = lambda v: [part.double().mean().item() for part in v[order].tensor_split(bins)]
    # t is spread, not drawn: two neighbours differ by images and noise alone
    pairs = losses[order][:n // 2 * 2].view(-1, 2)
    error = (pairs[:, 0] - pairs[:, 1]).square().sum().sqrt().item() / n
    return dict(images=n, mean=losses.mean().item(), t=means(t), by_t=means(losses),
                standard_error=error)


def drawn(model, d, count: int, batch: int = 125, seed: int = 0,
          ) -> Tensor:   # uint8 (count, 3, 32, 32)
    "Samples, in the command's default way of drawing; the same noise for every model."
    from ddpm_nb import to_uint8
    g = torch.Generator().manual_seed(seed)
    return torch.cat([
        to_uint8(d.sample(model, (min(batch, count - i), 3, 32, 32), "adams", 20, g, False)).cpu()
        for i in range(0, count, batch)])


def distance(images: Tensor) -> float:
    "From the training set, in the features of chapter 9's classifier."
    from ddpm_nb.evaluation import (Statistics, cifar10_extractor, cifar10_statistics, extract,
                                    frechet_distance)
    extractor = cifar10_extractor(DEVICE)
    parts = [extract(extractor, part)[0] for part in images.contiguous().split(250)]
    return frechet_distance(Statistics.of(torch.cat(parts), extractor.name), cifar10_statistics())


def measured(net, d, held_out: int, samples: int) -> dict:
    "What the trials are judged by."
    from ddpm_nb import cifar10
    model = half(ready(net))
    return dict(held_out=loss_by_t(model, d, cifar10(train=False)[0][:held_out], bins=8),
                distance=distance(drawn(model, d, samples)), samples=samples)


def stage(a):
    "The run: the network that --start names, its optimizer, its rate."
    from ddpm_nb import load_pretrained
    from ddpm_nb.engine.recipes import recipe
    from ddpm_nb.engine.runs import checkpoints, load_run
    asked, now = a.run / "stage.json", json.loads(json.dumps(vars(a), default=str))
    if checkpoints(a.run) and asked.is_file():     # what a checkpoint does not know is known here
        was = json.loads(asked.read_text())
        if differ := [k for k in ("start", "optimizer", "times") if was[k] != now[k]]:
            raise SystemExit(f"{a.run} was begun with other words: " + ", ".join(
                f"--{k} {was[k]}, not {now[k]}" for k in differ))
    r = recipe("cifar10", "small").replace(
        steps=a.updates, batch_size=a.batch, lr=a.lr, warmup=a.warmup,
        cooldown=int(a.fall * a.updates), ema_decay=a.ema, ema_warmup=True, compile=a.compile,
        minutes=a.minutes, log_every=25, save_every=a.save, keep_every=a.keep, sample_every=0,
        seed=a.seed,
        diffusion=dict(prediction=a.prediction))
    run = r.trainer(a.run, DEVICE, progress=False)
    if a.start:
        load = load_run if checkpoints(a.start) else load_pretrained
        there = load(a.start)[0].state_dict()
        for net in (run.model, run.ema.model): net.load_state_dict(there)
    if a.times == "centred":
        d, where = run.diffusion, centred(run.diffusion.schedule.log_snr).to(run.device)
        plain, d.losses = d.losses, lambda net, x0, t, noise: plain(net, x0, where[t], noise)
    if a.optimizer == "muon":
        run.state.optimizer = run.accelerator.prepare(Muon(run.model.parameters(), a.lr))
    if checkpoints(a.run): run.resume()
    if run.main: asked.write_text(json.dumps(now) + "\n")
    return run


def words(given: list[str] | None = None) -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("run", type=Path, help="the run folder")
    p.add_argument("--start", help="what to go on from: a run folder, or what load_pretrained "
                                   "takes; none: from chance")
    p.add_argument("--updates", type=int, default=4000)
    p.add_argument("--minutes", type=float, default=0.0, help="as many of these as fit into so "
                                                              "many minutes (0: all)")
    p.add_argument("--optimizer", choices=("muon", "adam"), default="muon")
    p.add_argument("--prediction", choices=("v", "eps"), default="v")
    p.add_argument("--times", choices=("centred", "uniform"), default="centred",
                   help="how t is drawn")
    p.add_argument("--batch", type=int, default=64)
    p.add_argument("--lr", type=float, default=5e-4)
    p.add_argument("--warmup", type=int, default=100, help="updates over which the rate rises")
    p.add_argument("--fall", type=float, default=0.9, help="share of the run at a falling rate")
    p.add_argument("--ema", type=float, default=0.999)
    p.add_argument("--save", type=int, default=200, help="updates between checkpoints")
    p.add_argument("--keep", type=int, default=1000, help="updates between those for good")
    p.add_argument("--seed", type=int, default=0, help="another for each stage")
    p.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    p.add_argument("--held-out", type=int, default=2000, help="test images for the error")
    p.add_argument("--samples", type=int, default=2000, help="samples for the distance")
    return p.parse_args(given)


def main() -> None:
    a = words()
    a.run.mkdir(parents=True, exist_ok=True)
    run = stage(a).train()
    if run.stopped_by: raise SystemExit(f"stopped at {run.step}; the same command goes on")
    if not run.main: return
    found = dict(updates=run.step, images=run.step * a.batch, hours=run.seconds / 3600,
                 **measured(run.ema.model, run.diffusion, a.held_out, a.samples))
    (a.run / "measured.json").write_text(json.dumps(found) + "\n")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
