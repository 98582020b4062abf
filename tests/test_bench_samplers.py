"""The instrument behind chapter 5's comparison: what is compared is what is said."""
import json
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")      # of its schedulers


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "bench")
    import samplers
    return samplers


@pytest.fixture
def problem(bench):
    "Two spots, a few points of noise, and a count of how often the model is asked."
    p = bench.Problem("two spots", 16)
    ideal, p.calls = p.model, 0
    def model(x, t):
        p.calls += 1
        return ideal(x, t)
    p.model = model
    return p


def test_each_row_asks_the_model_as_often_as_it_says(bench, problem):
    for label, f in (*bench.our_rows(), *bench.their_rows()):
        for k in (5, 10):
            problem.calls = 0
            x = f(problem, k)
            assert x.shape == problem.noise.shape and x.isfinite().all()
            assert problem.calls == k + ("Heun" in label and k % 2 == 0), label


def test_diffusers_ddim_by_way_of_the_bench_is_ours(bench, problem):
    rows = dict((*bench.our_rows(), *bench.their_rows()))
    ours, theirs = rows["ddim even"](problem, 10), rows["diffusers DDIM"](problem, 10)
    assert bench.rms(ours, theirs) < 1e-4


def test_every_row_comes_near_the_solution(bench, problem):
    truth = problem.ours("dpm++", None, "even")
    for label, f in (*bench.our_rows(), *bench.their_rows()):
        assert bench.rms(f(problem, 50), truth) < 0.05, label


def test_rows_of_other_weights_are_dropped_and_those_of_the_same_are_kept(bench):
    what, record = {"n": 8, "model": "abc"}, {}
    bench.entry_of(record, "digits", what)["rms"]["adams"] = [1.0]
    assert bench.entry_of(record, "digits", what)["rms"] == {"adams": [1.0]}
    assert bench.entry_of(record, "digits", {**what, "model": "abd"})["rms"] == {}
    assert record["digits"]["model"] == "abd"


def test_what_chapter_5_shows_was_measured_on_the_networks_that_are_packaged(bench):
    record = json.loads((ROOT / "nbs" / "samplers.json").read_text())
    assert list(record) == ["five spots", "digits", "cifar10-small"]
    for name, entry in record.items():
        assert entry["model"] == bench.digest(name), name
        assert set(entry["rms"]) == {label for label, _ in (*bench.our_rows(), *bench.their_rows())}
        assert all(len(row) == len(entry["evaluations"]) for row in entry["rms"].values())
    assert set(record["cifar10-small"]["distances"]["of"]) == set(bench.JUDGED)


def test_the_network_of_a_record_is_told_by_a_digest_of_its_weights(bench):
    assert len({bench.digest(name) for name in bench.MANY}) == len(bench.MANY)
    assert torch.equal(*(bench.Problem("digits", 2).noise for _ in range(2)))
