"""Do the checks of a notebook depend on the luck of its seeds? Change half of them, and run it.

    python tools/reseed.py nbs/02_diffusion.ipynb nbs/03_bound.ipynb [--runs 10] [--seed 0]

A seed is a whole number in `manual_seed(n)`, `seeded(n)`, `default_rng(n)` or `seed=n`. Those that
are the same number stay the same number, for two draws may be meant to be one; half of the numbers,
another half in each run, become new ones. The notebooks themselves are left alone: a copy is run.
One line a run; exit status 1 if a cell failed in any.
"""
import argparse
import os
import random
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
SEED = re.compile(r"\b((?:manual_seed|seeded|default_rng)\(|seed=)(\d+)\b")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def code(nb):
    "The cells of code."
    return [cell for cell in nb.cells if cell.cell_type == "code"]


def numbers(nb):
    "Every seed in a notebook, once, in order."
    return sorted({int(n) for cell in code(nb) for _, n in SEED.findall(cell.source)})


def reseed(nb, seed):
    "Change half of the seeds, rounded up; gives old and new."
    old, draw = numbers(nb), random.Random(seed)
    new = {n: draw.randrange(10**4, 10**6) for n in draw.sample(old, (len(old) + 1) // 2)}
    def change(found): return found[1] + str(new.get(int(found[2]), found[2]))
    for cell in code(nb): cell.source = SEED.sub(change, cell.source)
    return new


def failures(nb, folder):
    "Run it, every cell whatever became of those before; the first line of each that failed."
    where = {"metadata": {"path": str(folder)}}
    NotebookClient(nb, timeout=None, kernel_name="python3", resources=where,
                   allow_errors=True).execute()
    found = []
    for cell in code(nb):
        for out in cell.outputs:
            if out.output_type != "error": continue
            trace = COLOUR.sub("", "\n".join(out.traceback)).splitlines()
            line = next((o.strip() for o in trace if "-> " in o), "")
            what = f"{out.ename}: {out.evalue}".splitlines()[0]
            found.append(f"cell {cell.id}: {what[:150]}  {line[:120]}")
    return found


def main():
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("notebooks", nargs="+", type=Path)
    parser.add_argument("--runs", type=int, default=10, help="how many, of each notebook")
    parser.add_argument("--seed", type=int, default=0, help="of the first run's choice")
    args, bad = parser.parse_args(), 0
    os.environ["PYTHONPATH"] = str(ROOT)
    for path in args.notebooks:
        for seed in range(args.seed, args.seed + args.runs):
            nb, begun = nbformat.read(path, 4), time.time()
            with tempfile.TemporaryDirectory() as folder:
                here = Path(folder) / "nbs"
                shutil.copytree(path.resolve().parent, here,
                                ignore=shutil.ignore_patterns("runs", "data", "_static", ".*"))
                new = reseed(nb, seed)
                found = failures(nb, here)
            bad += bool(found)
            print(f"{path.name}, run {seed}: {'FAILED' if found else 'passed'}, {len(new)} seeds "
                  f"changed, {time.time() - begun:.0f} s", *found, sep="\n    ", flush=True)
            if found: print("    changed:", new, flush=True)
    sys.exit(bad > 0)


if __name__ == "__main__": main()
