#!/usr/bin/env python
"""What one update of the small CIFAR-10 run costs in CPU seconds, plain and compiled, bfloat16 and
float32, taken in turns.

CPU seconds of the process on all cores: on a machine that does other things too, they say more
than the clock. Compiling itself (minutes) is not counted.
"""
import argparse
import os
import statistics
import time


def cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system


def words() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--rounds", type=int, default=5,
                   help="updates measured of each kind (default: 5)")
    p.add_argument("--batch", type=int, default=64, help="images in an update (default: 64)")
    p.add_argument("--kinds", nargs="+", default=["bf16", "bf16-compiled"],
                   choices=["bf16", "bf16-compiled", "fp32", "fp32-compiled"],
                   help="(default: bf16 bf16-compiled)")
    return p.parse_args()


def trainer_of(kind: str, batch: int):
    "A trainer on random images that has made two updates, so that all compiling is done."
    import torch

    from ddpm_nb import Trainer
    from ddpm_nb.engine.recipes import recipe
    images = torch.randint(0, 256, (512, 3, 32, 32), dtype=torch.uint8)
    plan = recipe("cifar10", "small").replace(
        batch_size=batch, precision=kind[:4], compile="compiled" in kind)
    trainer = Trainer(plan.network(), plan.process(), images, plan.train, device="cpu",
                      progress=False)
    start = time.monotonic()
    for _ in range(2): trainer.update()
    print(f"{kind}: ready after {time.monotonic() - start:.0f} s", flush=True)
    return trainer


def main() -> None:
    a = words()
    trainers = {kind: trainer_of(kind, a.batch) for kind in a.kinds}
    cost, wall, average = {k: [] for k in trainers}, {k: [] for k in trainers}, []
    for _ in range(a.rounds):
        for kind, trainer in trainers.items():
            cpu, start = cpu_seconds(), time.monotonic()
            trainer.update()
            cost[kind].append(cpu_seconds() - cpu)
            wall[kind].append(time.monotonic() - start)
            start = time.monotonic()
            trainer.ema.update(trainer.model)
            average.append(time.monotonic() - start)
    rate = lambda values: (f"{a.batch / statistics.median(values):6.1f}",
                           f"(best {a.batch / min(values):.1f})")
    for kind in trainers:
        of_cpu, best_cpu = rate(cost[kind])
        of_clock, best_clock = rate(wall[kind])
        print(f"{kind:<14} {of_cpu} images per CPU second {best_cpu}; "
              f"{of_clock} images per second of the clock {best_clock}")
    least, step = statistics.median(average), min(statistics.median(v) for v in wall.values())
    print(f"the weights' average: {least * 1e3:.2f} ms, {least / step:.2%} of the fastest update")


if __name__ == "__main__":
    main()
