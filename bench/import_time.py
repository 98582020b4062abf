"""What it costs to begin: `python bench/import_time.py`.

Importing the package's names adds at most 0.25 s to importing torch (wall time). `import ddpm_nb`
imports no torch; nor does a command that is only read (its help, the version, a mistyped word),
which takes less than 0.15 s of the processor. Each figure is the median of several runs, made in
turns, so that a busy spell hits all alike.
"""
import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENV = {**os.environ, "PYTHONPATH": str(ROOT)}
IMPORTS = ["pass", "import ddpm_nb", "import torch", "from ddpm_nb import *"]
COMMANDS = ["--help", "--version", "trian", "train --stpes 5", "train --help", "sample --help",
            "evaluate --help", "info --help"]


def cost(words):
    "Wall and processor seconds of a fresh interpreter with these words."
    used = lambda: (lambda r: r.ru_utime + r.ru_stime)(resource.getrusage(resource.RUSAGE_CHILDREN))
    before, start = used(), time.perf_counter()
    done = subprocess.run([sys.executable, *words], env=ENV, capture_output=True, text=True)
    if "Traceback" in done.stderr: sys.exit(done.stderr)
    return time.perf_counter() - start, used() - before


def medians(cases, runs):
    "Name -> median wall and processor seconds; `cases` has the interpreter's words by name."
    taken = {name: [] for name in cases}
    for words in cases.values(): cost(words)                        # warm the disk's cache
    for _ in range(runs):
        for name, words in cases.items(): taken[name].append(cost(words))
    return {name: [statistics.median(column) for column in zip(*t)] for name, t in taken.items()}


def main():
    parser = argparse.ArgumentParser(description="What it costs to begin.")
    parser.add_argument("--runs", type=int, default=7, help="of each (default: 7)")
    runs = parser.parse_args().runs
    cases = {code: ["-c", code] for code in IMPORTS}
    cases |= {f"ddpm-nb {line}": ["-m", "ddpm_nb", *line.split()] for line in COMMANDS}
    found = medians(cases, runs)
    print(f"{'medians of ' + str(runs):<26} {'wall':>7} {'processor':>11}")
    for name, (wall, processor) in found.items():
        print(f"{name:<26} {wall:>5.2f} s {processor:>9.3f} s")
    added = found["from ddpm_nb import *"][0] - found["import torch"][0]
    print(f"the names add {added:+.2f} s to torch")


if __name__ == "__main__": main()
