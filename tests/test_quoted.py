"""Numbers that the text of a page quotes, in digits or in words, are those of today's records.

A table or a figure is drawn from its record; a sentence is typed, and would stay as it is when the
record is made anew. Here each has its pattern, with {} where it says a number.
"""
import json
import math
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CIFAR10, FIGURES = "experiments/cifar10", "experiments/figures"

COUNTS = dict(zip("a two three four five six seven eight nine ten eleven twelve".split(),
                  range(1, 13)),
              half=1, one=1, fifteen=15, twenty=20, thirty=30, forty=40, fifty=50)
PARTS = {"half": 2, "third": 3, "quarter": 4, "fifth": 5, "sixth": 6, "seventh": 7, "eighth": 8,
         "ninth": 9, "tenth": 10, "eleventh": 11, "twelfth": 12, "thirteenth": 13,
         "fourteenth": 14, "fifteenth": 15, "sixteenth": 16, "seventeenth": 17, "eighteenth": 18,
         "nineteenth": 19, "twentieth": 20, "fiftieth": 50}


def in_numbers(said: str) -> float:
    "'forty-two', 'ten and a half', 'two fifths', 'a fourteenth'."
    whole, _, half = said.partition(" and a ")
    *count, last = whole.split()
    if last.rstrip("s") in PARTS and (count or last == "half"):
        value = COUNTS[count[0] if count else "a"] / PARTS[last.rstrip("s")]
    else:
        value = sum(COUNTS[word] for word in whole.split("-"))
    return value + (0.5 if half == "half" else 0)


def agrees(said: str, value: float) -> bool:
    """Digits to the last of them; words within 6 %, shares within a hundredth at least;
    'nearly' leaves out at most a tenth."""
    if re.fullmatch(r"[+-]?[\d,]+(\.\d+)?", said):
        digits = said.lstrip("+").replace(",", "")
        return digits == f"{value:.{len(digits.partition('.')[2])}f}"
    if said.startswith("nearly "):
        return 0.9 < value / in_numbers(said.removeprefix("nearly ")) < 1
    return abs(in_numbers(said) - value) <= max(0.06 * value, 0.01)


@cache
def record(name: str):
    text = (ROOT / "nbs" / name).read_text()
    return [json.loads(s) for s in text.splitlines()] if name.endswith("l") else json.loads(text)


small = lambda: record("experiments/cifar10_small/record.json")
first = lambda: record("experiments/cifar10_small/first.json")
paper = lambda: record("experiments/cifar10_paper/record.json")
figure = lambda n, of="figures_record": record(f"experiments/{of}/figure{n}.json")
passes = lambda r: r["images"] / 50_000


def bits(r, *keys):
    return [r[key][part] for key in keys for part in ("mean", "standard_error")]


def gap(r):
    test, train = r["bits"], r["bits_train"]
    return [test["mean"] - train["mean"],
            math.hypot(test["standard_error"], train["standard_error"])]


def draws(back: int):
    "The distances of three draws from the average at the end of the last stage but `back`."
    stage = len(small()["stages"]) - back
    updates = small()["stages"][stage - 1]["updates"]
    return [row["distance"] for row in record("experiments/cifar10_small/means.jsonl")
            if (row["stage"], row["mean_of"]) == (stage, [updates])][0]


def nearer(problem: str):
    "For each number of evaluations, by what share our best is nearer than the best of diffusers."
    p = record("samplers.json")[problem]
    best = lambda theirs: [min(column) for column in zip(*(
        row for name, row in p["rms"].items() if name.startswith("diffusers") == theirs))]
    return dict(zip(p["evaluations"],
                    (1 - ours / theirs for ours, theirs in zip(best(False), best(True)))))


def extremes(problem: str, most: int = 50):
    shares = {k: share for k, share in nearer(problem).items() if k <= most}
    low, high = min(shares, key=shares.get), max(shares, key=shares.get)
    return [shares[low], low, shares[high], high]


def curve(edition: int):
    return [row["distance"] for row in small()["curve"] if row["edition"] == edition]


def late_score():
    "The share of what the class score gains after the last look before the last 300 times."
    rows = figure(10)["rows"]
    begun = min(rows, key=lambda row: abs(row["t"] - 300))
    return (rows[-1]["score"] - begun["score"]) / (rows[-1]["score"] - rows[0]["score"])


QUOTES = [
    ("09_evaluation", "network costs {} ± {} bits/dim, of which {} are the decoder's, "
     "and on 10,000 training images {} ± {}.", lambda: [
         *bits(small(), "bits"), small()["bits"]["distortion"], *bits(small(), "bits_train")]),
    ("09_evaluation", "The gap, {} ± {}, is about its own error", lambda: gap(small())),
    ("09_evaluation", "After {} passes the network", lambda: [passes(small())]),
    ("09_evaluation", r"the plain squared error\n  bits/dim <= {} ± {}, all test images ({} ± {}, ",
     lambda: bits(small(), "bits", "bits_train")),
    ("09_evaluation", r"2 % of the paper's images\n  bits/dim <= {} ± {}, all test images "
     "({} ± {}, ", lambda: bits(paper(), "bits", "bits_train")),
    (FIGURES, "trained for {} hours on two CPU cores]", lambda: [small()["hours"]]),
    (FIGURES, "and saw {} times as many images", lambda: [2048 / passes(small())]),
    (FIGURES, "saw one image for its {}, and", lambda: [2048 / passes(small())]),
    (FIGURES, "by {} bits/dim in the whole rate and by {} of a grey level", lambda: [
        figure(5)["rows"][0]["rate"][0] - 1.77581, figure(5)["rows"][0]["rmse"][0] - 0.95136]),
    (FIGURES, "The H100 run has {} bits/dim more", lambda: [
        figure(5, "cifar10_paper")["rows"][0]["rate"][0] - 1.77581]),
    (FIGURES, "that of the packaged network is {} ± {} bits/dim and that of the H100 run {} ± {} (",
     lambda: bits(small(), "bits") + bits(paper(), "bits")),
    (FIGURES, "(a score of 1), and {} of what the packaged network's", lambda: [late_score()]),
    (FIGURES, "It ends at {} of the packaged network's distance", lambda: [
        figure(10, "cifar10_paper")["rows"][-1]["distance"] / figure(10)["rows"][-1]["distance"]]),
    (FIGURES, "at a class score of {} against {}.", lambda: [
        figure(10, of)["rows"][-1]["score"] for of in ("cifar10_paper", "figures_record")]),
    (FIGURES, "2,000 of them lie at {} and {}, by", lambda: [
        small()["distance"], paper()["distance"]]),
    (CIFAR10, "have distances of {}, {} and {}; before its last stage they had {}, {} and {},",
     lambda: draws(0) + draws(1)),
    (CIFAR10, "In {} hours the second edition brings it from {} to {},", lambda: [
        small()["hours"] - first()["hours"], curve(1)[-1], curve(2)[-1]]),
    (CIFAR10, "falls by {} per cent. Why", lambda: [
        100 - 100 * small()["held_out"]["mean"] / first()["held_out"]["mean"]]),
    (CIFAR10, "is after its {} million: 2,000 samples of each lie at {} and {}.", lambda: [
        small()["images"] / 1e6, paper()["distance"], small()["distance"]]),
    (CIFAR10, "training images cost {} ± {} bits less than test images", lambda: gap(paper())),
    (CIFAR10, "Stage 8, {} hours of the same, is ahead of it by both ({} ± {}), and", lambda: [
        small()["stages"][7]["hours"], *bits(small(), "bits")]),
    ("05_sampling", "evaluations on the five spots, by {} to {}, and on the digits", lambda: [
        extremes("five spots")[0], extremes("five spots")[2]]),
    ("05_sampling", "and on the digits, by {} (at {}) to {} (at {}).", lambda: extremes("digits")),
    ("05_sampling", "nearer by {} % (at {}) to {} % (at {}) in up to 20 evaluations", lambda: [
        value * (1, 100)[k % 2 == 0] for k, value in enumerate(extremes("cifar10-small", 20))]),
    ("05_sampling", "level: {} % in favour of ours at 25, and {} % in favour of `diffusers` at "
     "50.", lambda: [100 * nearer("cifar10-small")[25], -100 * nearer("cifar10-small")[50]]),
    ("CHANGELOG.md", "second edition of `cifar10-small`, {} hours more: trained", lambda: [
        small()["hours"] - first()["hours"]]),
    ("CHANGELOG.md", "(`bench/cifar10_again.py`). {} ± {} bits/dim in place of {}, and",
     lambda: [*bits(small(), "bits"), first()["bits"]["mean"]]),
    ("CHANGELOG.md", "in our classifier's features, is {} in place of {}.", lambda: [
        curve(2)[-1], curve(1)[-1]]),
    ("bench/README.md", "(that of update {} in stage {})", lambda: [
        small()["stages"][-1]["updates"], len(small()["stages"])]),
    ("bench/README.md", "--fall 0 --keep 500 --seed {}\n", lambda: [len(small()["stages"])]),
    ("bench/README.md", "runs/again --means {}\n", lambda: [small()["stages"][-1]["updates"]]),
]


@pytest.mark.parametrize("page, sentence, values", QUOTES, ids=lambda v: v[:40] if isinstance(
    v, str) else "")
def test_a_number_in_the_text_is_that_of_the_record(page, sentence, values):
    if page.endswith(".md"): text = (ROOT / page).read_text()
    else:
        cells = json.loads((ROOT / f"nbs/{page}.ipynb").read_text())["cells"]
        text = re.sub(r'"\s*\n\s*"', "", "\n".join("".join(c["source"]) for c in cells))
    pattern = "(.+?)".join(re.escape(part) for part in sentence.split("{}"))
    if sentence.endswith("."): pattern += r"(?!\d)"         # "0.006." does not end at "0."
    found = [*re.finditer(pattern, text)]
    assert len(found) == 1, (f"{page} says {sentence!r} {len(found)} times, not once: where its "
                             "words are others now, change them in QUOTES too")
    said, true = found[0].groups(), values()
    assert len(said) == len(true)
    assert all(map(agrees, said, true)), f"{page} says {said}, the records {true}"


def test_the_table_by_spacing_is_that_of_the_record_with_each_samplers_least_in_bold():
    cells = json.loads((ROOT / "nbs/05_sampling.ipynb").read_text())["cells"]
    (table,) = ["".join(out["data"]["text/markdown"]) for c in cells for out in c.get("outputs", [])
                if "`log_snr`" in "".join(out.get("data", {}).get("text/markdown", []))]
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")]
                      for line in table.splitlines()]
    columns = [(p, k) for p in ("digits", "cifar10-small") for k in (5, 10, 25, 50)]
    assert head[2:] == [f"{p}: {k}" if k == 5 else str(k) for p, k in columns]
    def kept(row, problem, k):
        r = record("samplers.json")[problem]
        return r["rms"][f"{row[0]} {row[1]}".replace("`", "")][r["evaluations"].index(k)]
    assert len(rows) == 12
    for start in range(0, 12, 3):
        group = rows[start:start + 3]                               # of one sampler
        assert len({row[0] for row in group}) == 1
        for row in group:
            for (problem, k), cell in zip(columns, row[2:], strict=True):
                least = min(kept(other, problem, k) for other in group)
                value = kept(row, problem, k)
                assert cell == (f"**{value:.4f}**" if value == least else f"{value:.4f}")


def test_the_stages_whose_rate_stays_are_named():
    named = [k + 1 for k, stage in enumerate(small()["stages"]) if stage["fall"] == 0]
    text = (ROOT / f"nbs/{CIFAR10}.ipynb").read_text()
    ordinal = dict(zip(PARTS.values(), PARTS)) | {2: "second", 4: "fourth"}
    *most, last = (f"the {ordinal[k]}" for k in named)
    assert f"{', '.join(most)} and {last} do not".capitalize() in text
    assert f"at the end of {last}, [for a reason" in text and len(small()["stages"]) == named[-1]


@pytest.mark.parametrize("said, value, right", [
    ("3.845", 3.84451, True), ("3.845", 3.8444, False), ("+0.009", 0.0086, True),
    ("3.40", 3.4005, True), ("3.4", 3.46, False), ("forty-two", 42.2, True),
    ("forty-two", 45, False), ("ten and a half", 10.64, True), ("ten and a half", 12, False),
    ("two fifths", 0.41, True), ("a fourteenth", 0.0725, True), ("a fourteenth", 0.09, False),
    ("nearly two thirds", 0.641, True), ("nearly two thirds", 0.59, False),
    ("nearly a half", 0.51, False), ("a half", 0.465, False), ("twelve", 12.1, True)])
def test_what_is_said_is_read_as_a_reader_does(said, value, right):
    assert agrees(said, value) == right


def test_what_fractional_times_win_is_that_of_the_table_above_it():
    text = (ROOT / "bench/README.md").read_text()
    rows = re.findall(r"\|[^|]*\| (?:10|20) \| (0\.\d+) \| (0\.\d+) \| 0\.\d+ \|", text)
    lost = [float(fractional) / float(whole) - 1 for whole, fractional in rows]
    said = re.search(r"win by up to (.+) %, or lose by up to (.+) %\.", text).groups()
    assert len(lost) == 6 and agrees(said[0], -100 * min(lost))
    assert agrees(said[1], 100 * max(lost))
