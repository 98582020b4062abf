#!/usr/bin/env python
"""Our network beside its peers: the same weights, the same batch, one run, rounds interleaved.

    python bench/unet.py                 # the paper's CIFAR-10 network, everything (about half an hour on two cores, mostly compiling)
    python bench/unet.py --quick         # a small network, eager only, two rounds: does the script work? (under a minute)
    python bench/unet.py --modes compiled --precisions bf16 --peers ours,diffusers

Measured: a forward pass, a training step (forward, backward, clipping, fused Adam), 50 steps of DDIM, and the most memory a training
step holds. "of peak" is the share of the rate of a large matrix product of the same precision, measured in the same rounds.
`diffusers` runs with our weights. `denoising-diffusion-pytorch` is another architecture, made as wide as it takes to have
nearly as many parameters, which are printed. Both peers are optional; a missing one is named and left out.
"""
import argparse
import contextlib
import math
import os
import statistics
import sys
import time
import types

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")   # large pages for all alike; PyTorch reads it once

import torch
from torch import nn

from ddpm_nb.engine.pretrained import to_diffusers, unet_to_diffusers
from ddpm_nb.sampling import GaussianDiffusion
from ddpm_nb.schedules import NoiseSchedule
from ddpm_nb.unet import UNet, UNetConfig

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


# The peers ------------------------------------------------------------------------------------------------------------

class First(nn.Module):
    "diffusers' network with our calling convention."
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x, t): return self.net(x, t, return_dict=False)[0]


def ours(config, weights):
    net = UNet(config)
    net.load_state_dict(weights)
    return net


def diffusers(config, weights):
    from diffusers import UNet2DModel
    net = UNet2DModel(**{k: v for k, v in unet_to_diffusers(config).items() if k != "_class_name"})
    net.load_state_dict({k: v.contiguous() for k, v in to_diffusers(weights, ours(config, weights)).items()})
    return First(net.to(memory_format=torch.channels_last))


def lucidrains(config, weights):
    "As near as its options come: the same multipliers, and the width whose number of parameters is nearest; the rest is its own."
    for name in ("torchvision", "torchvision.transforms", "torchvision.utils"):    # imported at its top, not used by the network
        sys.modules.setdefault(name, types.ModuleType(name))
    sys.modules["torchvision"].transforms = sys.modules["torchvision.transforms"]
    sys.modules["torchvision"].utils = sys.modules["torchvision.utils"]
    from denoising_diffusion_pytorch.denoising_diffusion_pytorch import Unet

    def make(width):
        return Unet(width, dim_mults=config.channel_multipliers, channels=config.in_channels, dropout=config.dropout)

    def away(width):
        with torch.device("meta"): return abs(sum(p.numel() for p in make(width).parameters()) - wanted)

    wanted = sum(w.numel() for w in weights.values())
    return make(min(range(8, 2 * config.base_channels, 8), key=away)).to(memory_format=torch.channels_last)


PEERS = {"ours": ours, "diffusers": diffusers, "lucidrains": lucidrains}


def build(names, config, device):
    torch.manual_seed(0)
    weights, nets = UNet(config).state_dict(), {}
    for name in names:
        try: nets[name] = PEERS[name](config, weights).to(device)
        except ImportError as e: print(f"{name}: left out ({e})")
    return nets


# The work -------------------------------------------------------------------------------------------------------------

def synchronise(device):
    if device.type == "cuda": torch.cuda.synchronize()


def autocast(device, precision):
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()


def forward_pass(net, x, t, precision):
    net.eval()
    with torch.no_grad(), autocast(x.device, precision): return net(x, t)


def training_step(net, call, optimizer, x, t, target, precision):
    net.train()
    optimizer.zero_grad(set_to_none=True)
    with autocast(x.device, precision): loss = (call(x, t).float() - target).square().mean()
    loss.backward()
    nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    optimizer.step()


def ddim(net, call, diffusion, shape, steps, precision):
    net.eval()
    with autocast(diffusion.device, precision):
        return diffusion.sample(call, shape, "ddim", steps=steps, generator=torch.Generator().manual_seed(0), progress=False)


def matmul_rate(precision, device, n):
    "Operations a second of a square matrix product."
    a, b = (torch.randn(n, n, dtype=DTYPES[precision], device=device) for _ in range(2))
    a @ b
    synchronise(device)
    start = time.perf_counter()
    for _ in range(4): a @ b
    synchronise(device)
    return 4 * 2 * n**3 / (time.perf_counter() - start)


def operations(net, x, t):
    "Multiplications and additions of one forward pass of one image."
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode
    # as plain matrix products, since the counter does not know the fused attention of a CPU
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad(): net.eval()(x[:1], t[:1])
    return counter.get_total_flops()


def peak_bytes(step, device):
    "The most that tensors take during `step`, over what they take before it."
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as prof: step()
    events = [e for e in prof.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for e in sorted(events, key=lambda e: e.start_ns()):
        now += e.nbytes()
        most = max(most, now)
    return most


def compiled(net, device, frozen=False):
    "One graph; `frozen` folds the weights into it, for sampling."
    options = {"mode": "reduce-overhead"} if device.type == "cuda" else {"options": {"freezing": True}} if frozen else {}
    return torch.compile(net, fullgraph=True, **options)


# The table ------------------------------------------------------------------------------------------------------------

def measure(tasks, warmups, rounds, precision, device, n):
    "Seconds of each task, and matmul rates: each round runs every task once, so that a slow minute slows all."
    seconds, rates = {k: [] for k in tasks}, []
    for call in tasks.values():
        for _ in range(warmups): call()                                # compile, fill caches
    for _ in range(rounds):
        rates.append(matmul_rate(precision, device, n))
        for key, call in tasks.items():
            synchronise(device)
            start = time.perf_counter()
            call()
            synchronise(device)
            seconds[key].append(time.perf_counter() - start)
    return {k: statistics.median(v) for k, v in seconds.items()}, {k: min(v) for k, v in seconds.items()}, rates


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--quick", action="store_true", help="a small network, eager, two rounds")
    p.add_argument("--config", choices=["cifar10", "small", "digits"], help="default: cifar10; with --quick: digits")
    p.add_argument("--peers", default=",".join(PEERS))
    p.add_argument("--modes", help="eager, compiled (default: both; with --quick: eager)")
    p.add_argument("--precisions", default="fp32,bf16")
    p.add_argument("--works", default="forward,train,ddim,memory,frozen")
    p.add_argument("--batch", type=int, default=8)
    p.add_argument("--rounds", type=int)
    p.add_argument("--steps", type=int, help="of DDIM (default 50; with --quick 5)")
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    a = p.parse_args()
    device, works = torch.device(a.device), a.works.split(",")
    config = getattr(UNetConfig, a.config or ("digits" if a.quick else "cifar10"))()
    modes = (a.modes or ("eager" if a.quick else "eager,compiled")).split(",")
    rounds, steps, n = a.rounds or (2 if a.quick else 7), a.steps or (5 if a.quick else 50), 512 if a.quick else 2048
    if device.type == "cuda": n *= 4

    size = (a.batch, config.in_channels, config.image_size, config.image_size)
    x, target = (torch.randn(size, device=device) for _ in range(2))
    x, t = x.contiguous(memory_format=torch.channels_last), torch.randint(1000, (a.batch,), device=device)
    nets = build(a.peers.split(","), config, device)
    flops = {k: operations(net, x, t) for k, net in nets.items()}
    diffusion = GaussianDiffusion(NoiseSchedule.linear()).to(device)
    pages = "large" if os.environ["THP_MEM_ALLOC_ENABLE"] == "1" else "ordinary"
    print(f"torch {torch.__version__}, {device.type}, {torch.get_num_threads()} threads, {pages} pages; "
          f"batch {a.batch} of {'x'.join(map(str, size[1:]))}")
    for k, net in nets.items():
        print(f"{k:11} {sum(p.numel() for p in net.parameters()):>12,} parameters, {flops[k] / 1e9:.2f} GFLOP an image")
    print(f"\n{'work':8} {'mode':9} {'precision':9} {'network':11} {'images/s':>9} {'best':>7} {'of peak':>8} {'ours is':>9}")

    def report(made, mode, precision):
        "Measure and print; the matmul rate of the last rounds."
        rate = math.nan
        for work, (passes, tasks) in made.items():
            warmups, times = (1, max(1, rounds // 3)) if work == "ddim" else (2, rounds)
            median, best, rates = measure(tasks, warmups, times, precision, device, n)
            rate = statistics.median(rates)
            for k in tasks:
                ratio = "" if k == "ours" or "ours" not in tasks else f"{median[k] / median['ours']:.2f}x"
                share = flops[k] * passes * a.batch / median[k] / rate
                speed = f"{a.batch / median[k]:9.2f} {a.batch / best[k]:7.2f}"
                print(f"{work:8} {mode:9} {precision:9} {k:11} {speed} {share:8.0%} {ratio:>9}", flush=True)
        return rate

    for precision in a.precisions.split(","):
        for mode in modes:
            calls = {k: compiled(net, device) if mode == "compiled" else net for k, net in nets.items()}
            optimizers = {k: torch.optim.Adam(net.parameters(), lr=1e-6, fused=True) for k, net in nets.items()}
            made = {}
            if "forward" in works: made["forward"] = (1, {k: lambda c=c: forward_pass(c, x, t, precision) for k, c in calls.items()})
            if "train" in works: made["train"] = (3, {
                k: lambda c=c, k=k: training_step(nets[k], c, optimizers[k], x, t, target, precision) for k, c in calls.items()})
            if "ddim" in works: made["ddim"] = (steps, {
                k: lambda c=c, k=k: ddim(nets[k], c, diffusion, size, steps, precision) for k, c in calls.items()})
            rate = report(made, mode, precision)
            if "memory" in works and "train" in made:
                for k, call in made["train"][1].items():
                    print(f"{'memory':8} {mode:9} {precision:9} {k:11} {peak_bytes(call, device) / 2**20:9.0f} MiB", flush=True)
            torch._dynamo.reset()      # it keeps count of what it compiled for this code, whichever network it was for
            if mode == "compiled" and precision == "bf16" and device.type == "cpu" and "frozen" in works:
                # For sampling alone: weights in bf16, and folded into the compiled code.
                weights = nets["ours"].state_dict()
                frozen = {k: compiled(PEERS[k](config, weights).to(torch.bfloat16).eval(), device, frozen=True)
                          for k in nets if k in ("ours", "diffusers")}
                rate = report({"frozen": (1, {k: lambda c=c: no_grad_call(c, x.bfloat16(), t) for k, c in frozen.items()})},
                              mode, precision)
                torch._dynamo.reset()
            print(f"{'matmul':8} {'':9} {precision:9} {n} x {n}: {rate / 1e9:,.0f} GFLOP/s\n", flush=True)


def no_grad_call(call, x, t):
    with torch.no_grad(): return call(x, t)


if __name__ == "__main__": main()
