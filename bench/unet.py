#!/usr/bin/env python
"""Our network beside its peers: the same weights, the same batch, one run, rounds interleaved.

    python bench/unet.py             # the paper's CIFAR-10 network, everything (half an hour on
                                     # two cores, mostly compiling)
    python bench/unet.py --quick     # a small network, eager, two rounds: does the script work?
    python bench/unet.py --modes compiled --precisions bf16 --peers ours,diffusers

Measured: a forward pass, a training step (forward, backward, clipping, fused Adam), 50 steps of
DDIM, and the most memory a training step holds. "of peak" is the share of the rate of a large
matrix product of the same precision, measured in the same rounds. Eager, ours is the plain network
of chapter 6; compiled, it is `ddpm_nb.engine.faster.compiled`, the peers are `torch.compile`d as
they are. `diffusers` runs with our weights. `denoising-diffusion-pytorch` is another architecture,
made as wide as it takes to have nearly as many parameters, which are printed. Both peers are
optional; a missing one is named and left out. On a machine that others use, `--clock cpu` with
OMP_NUM_THREADS=1 counts this process's processor seconds instead.
"""
import argparse
import contextlib
import os
import statistics
import sys
import tempfile
import time
import types
from functools import partial

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")   # large pages for all alike

import torch
from torch import nn

from ddpm_nb.engine.faster import _FORMS, _in_forms, compiled
from ddpm_nb.engine.pretrained import save_pretrained
from ddpm_nb.sampling import GaussianDiffusion
from ddpm_nb.schedules import NoiseSchedule
from ddpm_nb.unet import UNet, UNetConfig

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


# The peers ----------------------------------------------------------------------------------------

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
    with tempfile.TemporaryDirectory() as folder:
        diffusion = GaussianDiffusion(NoiseSchedule.linear())
        path = save_pretrained(f"{folder}/model", ours(config, weights), diffusion)
        net = UNet2DModel.from_pretrained(path, subfolder="unet")
    return First(net.to(memory_format=torch.channels_last))


def lucidrains(config, weights):
    "The same multipliers, the width with the nearest number of parameters; the rest is its own."
    # Imported at its top, not used by the network.
    for name in ("torchvision", "torchvision.transforms", "torchvision.utils"):
        sys.modules.setdefault(name, types.ModuleType(name))
    sys.modules["torchvision"].transforms = sys.modules["torchvision.transforms"]
    sys.modules["torchvision"].utils = sys.modules["torchvision.utils"]
    from denoising_diffusion_pytorch.denoising_diffusion_pytorch import Unet

    def make(width):
        return Unet(width, dim_mults=config.channel_multipliers, channels=config.in_channels,
                    dropout=config.dropout)

    def away(width):
        with torch.device("meta"): return abs(size(make(width)) - wanted)

    wanted = sum(w.numel() for w in weights.values())
    net = make(min(range(8, 2 * config.base_channels, 8), key=away))
    return net.to(memory_format=torch.channels_last)


def size(net): return sum(p.numel() for p in net.parameters())


PEERS = {"ours": ours, "diffusers": diffusers, "lucidrains": lucidrains}


def build(names, config, device):
    torch.manual_seed(0)
    weights, nets = UNet(config).state_dict(), {}
    for name in names:
        try: nets[name] = PEERS[name](config, weights).to(device)
        except ImportError as e: print(f"{name}: left out ({e})")
    return nets


# The work -----------------------------------------------------------------------------------------

def synchronise(device):
    if device.type == "cuda": torch.cuda.synchronize()


def autocast(device, precision):
    if precision == "bf16": return torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext()


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
        return diffusion.sample(call, shape, "ddim", steps=steps, progress=False,
                                generator=torch.Generator().manual_seed(0))


def matmul_rate(precision, device, n, clock):
    "Operations a second of a square matrix product."
    a, b = (torch.randn(n, n, dtype=DTYPES[precision], device=device) for _ in range(2))
    a @ b
    synchronise(device)
    start = clock()
    for _ in range(4): a @ b
    synchronise(device)
    return 4 * 2 * n**3 / (clock() - start)


def operations(net, x, t):
    "Multiplications and additions of one forward pass of one image."
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode
    # as plain matrix products, since the counter does not know the fused attention of a CPU
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter, torch.no_grad(): net.eval()(x[:1], t[:1])
    return counter.get_total_flops()


def peak_bytes(step, device):
    "The most that tensors take during `step`, over what they take before it."
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=cpu, profile_memory=True) as prof: step()
    events = [e for e in prof.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for e in sorted(events, key=lambda e: e.start_ns()):
        now += e.nbytes()
        most = max(most, now)
    return most


def fast(name, net, device, frozen=False):
    "Compiled, one graph; `frozen` folds the weights into it, for sampling."
    options = {"fullgraph": True} | ({"options": {"freezing": True}} if frozen else {})
    if device.type == "cuda" and not frozen: options["mode"] = "reduce-overhead"
    return compiled(net, **options) if name == "ours" else torch.compile(net, **options)


def no_grad_call(call, x, t):
    with torch.no_grad(): return call(x, t)


# The table ----------------------------------------------------------------------------------------

def measure(tasks, warmups, rounds, rate, device, clock):
    "Seconds of each task, and the matmul rate; a round runs all, so that a slow minute slows all."
    seconds, rates = {k: [] for k in tasks}, []
    for call in tasks.values():
        for _ in range(warmups): call()                                # compile, fill caches
    for _ in range(rounds):
        rates.append(rate())
        for key, call in tasks.items():
            synchronise(device)
            start = clock()
            call()
            synchronise(device)
            seconds[key].append(clock() - start)
    return seconds, statistics.median(rates)


class Table:
    "Measures and prints, a line for each network."
    def __init__(self, a, device, flops, n):
        self.batch, self.rounds, self.device = a.batch, a.rounds, device
        self.flops, self.n, self.rate = flops, n, None     # of the products, once there is one
        self.clock = time.process_time if a.clock == "cpu" else time.perf_counter
        print(f"\n{'work':8} {'mode':9} {'precision':9} {'network':11} {'images/s':>9} {'best':>7} "
              f"{'of peak':>8} {'ours is':>9}")

    def lines(self, work, passes, tasks, mode, precision):
        warmups, rounds = (1, max(1, self.rounds // 3)) if work == "ddim" else (2, self.rounds)
        rate = lambda: matmul_rate(precision, self.device, self.n, self.clock)
        seconds, self.rate = measure(tasks, warmups, rounds, rate, self.device, self.clock)
        median = {k: statistics.median(v) for k, v in seconds.items()}
        for k in tasks:
            ratio = f"{median[k] / median['ours']:.2f}x" if k != "ours" and "ours" in tasks else ""
            share = self.flops[k, mode] * passes * self.batch / median[k] / self.rate
            speed = f"{self.batch / median[k]:9.2f} {self.batch / min(seconds[k]):7.2f}"
            name = f"{work:8} {mode:9} {precision:9} {k:11}"
            print(f"{name} {speed} {share:8.0%} {ratio:>9}", flush=True)

    def memory(self, tasks, mode, precision):
        for k, call in tasks.items():
            mib = peak_bytes(call, self.device) / 2**20
            print(f"{'memory':8} {mode:9} {precision:9} {k:11} {mib:9.0f} MiB", flush=True)


def arguments():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--quick", action="store_true", help="a small network, eager, two rounds")
    p.add_argument("--config", choices=["cifar10", "small", "digits"],
                   help="default: cifar10; with --quick: digits")
    p.add_argument("--peers", default=",".join(PEERS))
    p.add_argument("--modes", help="eager, compiled (default: both; with --quick: eager)")
    p.add_argument("--precisions", default="fp32,bf16")
    p.add_argument("--works", default="forward,train,ddim,memory,frozen")
    p.add_argument("--batch", type=int, default=8)
    p.add_argument("--rounds", type=int)
    p.add_argument("--steps", type=int, help="of DDIM (default 50; with --quick 5)")
    p.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    a = p.parse_args()
    a.rounds, a.steps = a.rounds or (2 if a.quick else 7), a.steps or (5 if a.quick else 50)
    a.config = a.config or ("digits" if a.quick else "cifar10")
    a.modes = (a.modes or ("eager" if a.quick else "eager,compiled")).split(",")
    if a.device == "cpu" and "compiled" in a.modes and " " in torch.__file__:
        print("compiled: left out; PyTorch compiles no C++ in a folder with a space in its name")
        a.modes.remove("compiled")
    return a


def main():
    a = arguments()
    device, works = torch.device(a.device), a.works.split(",")
    config, n = getattr(UNetConfig, a.config)(), 512 if a.quick else 2048
    if device.type == "cuda": n *= 4
    shape = (a.batch, config.in_channels, config.image_size, config.image_size)
    x, target = (torch.randn(shape, device=device) for _ in range(2))
    x = x.contiguous(memory_format=torch.channels_last)
    t = torch.randint(1000, (a.batch,), device=device)
    nets = build(a.peers.split(","), config, device)
    diffusion = GaussianDiffusion(NoiseSchedule.linear()).to(device)

    pages = "large" if os.environ["THP_MEM_ALLOC_ENABLE"] == "1" else "ordinary"
    print(f"torch {torch.__version__}, {device.type}, {torch.get_num_threads()} threads, "
          f"{pages} pages; batch {a.batch} of {'x'.join(map(str, shape[1:]))}; {a.clock} clock")
    flops = {(k, mode): operations(net, x, t) for k, net in nets.items()
             for mode in ("eager", "compiled")}
    if "ours" in nets:
        form = _in_forms(nets["ours"], _FORMS.get(device.type, {}))
        flops["ours", "compiled"] = operations(form, x, t)
    for k, net in nets.items():
        each = " / ".join(f"{flops[k, mode] / 1e9:.2f}" for mode in ("eager", "compiled"))
        print(f"{k:11} {size(net):>12,} parameters, {each} GFLOP an image, eager / compiled")
    table = Table(a, device, flops, n)

    for precision in a.precisions.split(","):
        for mode in a.modes:
            calls = {k: fast(k, net, device) if mode == "compiled" else net
                     for k, net in nets.items()}
            optimizers = {k: torch.optim.Adam(net.parameters(), lr=1e-6, fused=True)
                          for k, net in nets.items()}
            forward = {k: partial(forward_pass, c, x, t, precision) for k, c in calls.items()}
            train = {k: partial(training_step, nets[k], c, optimizers[k], x, t, target, precision)
                     for k, c in calls.items()}
            sample = {k: partial(ddim, nets[k], c, diffusion, shape, a.steps, precision)
                      for k, c in calls.items()}
            if "forward" in works: table.lines("forward", 1, forward, mode, precision)
            if "train" in works: table.lines("train", 3, train, mode, precision)
            if "ddim" in works: table.lines("ddim", a.steps, sample, mode, precision)
            if "memory" in works: table.memory(train, mode, precision)
            torch._dynamo.reset()      # it counts what it compiled for this code, for any network
            if (mode, precision, device.type) == ("compiled", "bf16", "cpu") and (
                    "frozen" in works and "ours" in nets):
                # For sampling alone: weights in bf16, and folded into the compiled code.
                weights, frozen = nets["ours"].state_dict(), {}
                for k in [k for k in nets if k in ("ours", "diffusers")]:
                    half = PEERS[k](config, weights).to(torch.bfloat16).eval()
                    call = fast(k, half, device, frozen=True)
                    frozen[k] = partial(no_grad_call, call, x.bfloat16(), t)
                table.lines("frozen", 1, frozen, mode, precision)
                torch._dynamo.reset()
            if table.rate:
                print(f"{'matmul':8} {'':9} {precision:9} {n} x {n}: "
                      f"{table.rate / 1e9:,.0f} GFLOP/s\n", flush=True)


if __name__ == "__main__": main()
