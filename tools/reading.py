"""How long a page takes to read, from its notebook.

    python tools/reading.py nbs/03_bound.ipynb    say it (the build writes it under each title)

180 words of prose a minute, 6 seconds for a line of visible code, 20 for a displayed formula or a
figure: a guess, the same for all pages. Exercises are counted apart.
"""
import argparse, json, re
from pathlib import Path
from typing import NamedTuple

import folds, live, student

LISTING = re.compile(r"^```\w+\n(.*?)^```", re.M | re.S)               # code in the prose
FORMULA = re.compile(r"\$\$.*?\$\$|^```\{math\}.*?^```", re.M | re.S)


class Counted(NamedTuple):
    "What there is to read on a page, before its exercises; and how many those are."
    words: int
    lines: int        # of code that is shown
    shown: int        # formulas on a line of their own, and figures
    exercises: int


def prose(text):
    "What a reader has of a cell of text: (words, lines of code, formulas)."
    text, formulas = FORMULA.subn(" x ", text)
    lines = sum(o.count("\n") for o in LISTING.findall(text))
    text = LISTING.sub(" ", text)
    return len(re.sub(r"\$[^$]*\$", " x ", text).split()), lines, formulas


def code(cell):
    "What a reader has of a cell of code: (words, lines of code, figures)."
    tags = folds.tags_of(cell)
    if tags is None or "hide-cell" in tags: return 0, 0, 0
    lines = 0 if "remove-input" in tags else len(
        folds.visible_lines(student.text_of(cell)).split("\n"))
    figures = 0 if {"remove-output", "exported"} & {*tags} else sum(
        bool({"image/png", "image/gif"} & o.get("data", {}).keys()) for o in cell["outputs"])
    return 0, lines, figures


def counted(notebook):
    "What there is to read in a notebook (a dict, with its outputs)."
    total, exercises, inside = (0, 0, 0), 0, False
    for cell in notebook["cells"]:
        text = live.listed(student.text_of(cell))
        if cell["cell_type"] == "markdown":
            inside = student.is_exercises(text, inside)
            if inside: exercises += len(re.findall(r"^\*\*\d\.", text, re.M))
        if inside or cell["cell_type"] == "raw": continue
        new = prose(text) if cell["cell_type"] == "markdown" else code(cell)
        total = tuple(map(sum, zip(total, new)))
    return Counted(*total, exercises)


def minutes(counted):
    "How long that takes, to five minutes: more would be a claim."
    exactly = counted.words / 180 + counted.lines / 10 + counted.shown / 3
    return max(5, 5 * round(exactly / 5))


if __name__ == "__main__":
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("notebooks", nargs="+", type=Path, help="their paths")
    for path in parser.parse_args().notebooks:
        found = counted(json.loads(path.read_text(encoding="utf-8")))
        print(f"{path}: {minutes(found)} min; {found}")
