"""The instrument behind chapter 5's comparison: what is compared is what is said."""
import json
from pathlib import Path
from types import SimpleNamespace

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


def test_how_far_off_each_sample_is_makes_up_the_root_mean_square(bench):
    a, b = torch.zeros(2, 3, 2), torch.tensor([1.0, 2.0])[:, None, None].expand(2, 3, 2)
    assert bench.off(a, b).tolist() == [1.0, 2.0] and abs(bench.rms(a, b) - 2.5**0.5) < 1e-12


def test_every_row_comes_near_the_solution(bench, problem):
    truth = problem.ours("dpm++", None, "even")
    for label, f in (*bench.our_rows(), *bench.their_rows()):
        assert bench.rms(f(problem, 50), truth) < 0.05, label


def test_rows_of_other_weights_are_dropped_and_those_of_the_same_are_kept(bench):
    what, record = {"n": 8, "model": "abc"}, {}
    bench.entry_of(record, "digits", what)["rms"]["adams"] = [1.0]
    assert bench.entry_of(record, "digits", what)["rms"] == {"adams": [1.0]}
    for kind in ("rms", "median"):
        assert bench.entry_of(record, "digits", {**what, "model": "abd"})[kind] == {}
    assert record["digits"]["model"] == "abd"
    with pytest.raises(SystemExit, match="digits: .* other numbers of samples.*another --out"):
        bench.entry_of(record, "digits", {"n": 2, "model": "abd"})
    assert record["digits"]["n"] == 8


def test_what_chapter_5_shows_was_measured_on_the_networks_that_are_packaged(bench):
    record = json.loads((ROOT / "nbs" / "samplers.json").read_text())
    assert list(record) == ["five spots", "digits", "cifar10-small"]
    for name, entry in record.items():
        assert entry["model"] == bench.digest(name), name
        for rows in (entry["rms"], entry["median"]):
            assert set(rows) == {label for label, _ in (*bench.our_rows(), *bench.their_rows())}
            assert all(len(row) == len(entry["evaluations"]) for row in rows.values())
        more = bench.ALSO if name in bench.MIXTURES else ()
        assert set(entry["distances"]["of"]) == {*bench.JUDGED, *more}
    near = record["digits"]["near"]
    assert list(near["median"]) == list(bench.BESIDE) and near["evaluations"] == list(bench.NEAR)


def test_the_table_beside_the_script_is_that_of_the_record(bench, capsys):
    bench.table(SimpleNamespace(out=ROOT / "nbs" / "samplers.json"))
    readme = (ROOT / "bench" / "README.md").read_text()
    assert f"\n\n{capsys.readouterr().out}\n" in readme             # all of it, and no row besides


@pytest.mark.parametrize("name", ["five spots", "two spots"])
def test_the_moments_of_a_mixture_are_those_of_many_points_drawn_from_it(bench, name):
    "A million: the distance by chance, of trace 0.5 over a million times a few, is below 1e-5."
    of, points = bench.judge(name, 1_000_000)
    assert of(points) < 1e-5 < 1e-3 < of(1.1 * points)
    wider = points + 0.04 * torch.randn_like(points)       # a width of 0.09 for 0.08
    assert of(wider) > 1e-4


def test_the_digits_are_judged_beside_those_that_were_held_out(bench):
    of, real = bench.judge("digits", 256)
    assert real.shape == (256, 1, 16, 16) and 0 < of(real) < of(0.8 * real) < of(torch.zeros_like(
        real) + 0.1 * torch.randn_like(real))


def test_what_wavers_with_a_period_is_found_there(bench):
    t = torch.arange(300, dtype=torch.float64)[:, None]
    guesses = (t / 300)**3 - t / 100 + 0.01 * torch.sin(t * 2 * torch.pi / 15 + torch.arange(4))
    power = bench.waver(guesses)
    assert len(power) == 150 and abs(sum(power) - 1) < 0.01
    assert power.index(max(power)) + 1 == 20 and sum(power[18:21]) > 0.98      # 20 periods in 300


def test_the_network_of_a_record_is_told_by_a_digest_of_its_weights(bench):
    assert len({bench.digest(name) for name in bench.MANY}) == len(bench.MANY)
    assert torch.equal(*(bench.Problem("digits", 2).noise for _ in range(2)))
