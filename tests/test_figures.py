"""The page of the paper's figures: that any model's name will do, and what its procedures compute.

The cells are run as they stand, with a network of one line in place of the packaged one."""
import json
import math
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from guards import PATIENCE, calls_of, cells_run, gen

from ddpm_nb import (GaussianDiffusion, NoiseSchedule, TrainConfig, Trainer, UNet, UNetConfig,
                     rate_distortion, save_pretrained)

nbformat = pytest.importorskip("nbformat")
ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "nbs/experiments/figures.ipynb"
RECORD = ROOT / "nbs/experiments/figures_record"
FIGURES = {1, 3, 4, 10, 11, 13, 14, 16, 17, 18, 19}     # which have their label on this page
SMALL = UNetConfig(base_channels=8, groups=4, channel_multipliers=(1, 2), blocks_per_level=1,
                   attention_resolutions=(), image_size=16)
run = partial(cells_run, NOTEBOOK)


@pytest.fixture(scope="module")
def cells(): return [c for c in nbformat.read(NOTEBOOK, 4).cells if c.cell_type == "code"]


def shrinking(x, t): return 0.9 * x


def images(n: int, size: int = 8) -> torch.Tensor:
    "On the decoder's grid, with something coarse in them."
    smooth = torch.rand(n, 3, 2, 2, generator=gen(0)).repeat_interleave(size // 2, 2)
    smooth = smooth.repeat_interleave(size // 2, 3)
    return (0.8 * smooth + 0.2 * torch.rand(n, 3, size, size, generator=gen(1))).mul(255).round() \
        / 127.5 - 1


# --- any model by its name ------------------------------------------------------------------------

def test_the_page_takes_a_packaged_model_a_saved_one_and_a_run(cells, tmp_path):
    load = run(cells, "def load(", MODEL="digits")["load"]
    d = GaussianDiffusion(NoiseSchedule.linear(T=10))
    saved = save_pretrained(tmp_path / "saved", UNet(SMALL), d)
    data = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8, generator=gen(0))
    config = TrainConfig(steps=2, batch_size=4, sample_every=0)
    Trainer(UNet(SMALL), d, data, config, tmp_path / "run", device="cpu", progress=False).train()
    for name in (str(saved), str(tmp_path / "run")):
        net, diffusion = load(name)
        assert net.config == SMALL and diffusion.T == 10 and not net.training
    assert load("digits")[0].config == UNetConfig.digits()


def test_without_the_data_the_page_says_so_in_one_line_and_goes_on(
        cells, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("DDPM_NB_CACHE", str(tmp_path))
    samples = images(9, 32)
    names = run(cells, "def real_images(", shape=(3, 32, 32), samples=samples)
    assert names["data"] is None and torch.equal(names["sources"], samples[:8])
    said = capsys.readouterr().out
    assert "CIFAR-10 is not here" in said and said.count("\n") == 1


def test_a_model_of_other_images_is_not_compared_with_cifar10(cells, capsys):
    samples = torch.zeros(8, 1, 16, 16)
    names = run(cells, "def real_images(", shape=(1, 16, 16), samples=samples)
    assert names["data"] is None and "not CIFAR-10's" in capsys.readouterr().out


def test_long_steps_take_the_smaller_variance_and_a_learned_one_is_left_alone(cells):
    paper = NoiseSchedule.linear()
    for variance, few in (("fixed_large", "fixed_small"), ("fixed_small",) * 2, ("learned",) * 2):
        with_steps = run(cells, "def with_steps(",
                         diffusion=GaussianDiffusion(paper, "x0", variance))["with_steps"]
        d = with_steps(50)
        assert (d.T, d.variance, d.prediction) == (50, few, "x0")
        assert d.schedule.timesteps[-1] == 999


# --- what the procedures compute ------------------------------------------------------------------

def test_coarse_and_fine_are_orthogonal_and_add_up(cells):
    parts = run(cells, "def coarse(")["parts"]
    x = torch.randn(5, 3, 16, 16, generator=gen(0), dtype=torch.float64)
    a, b = parts(x).values()
    assert torch.allclose(a + b, x) and abs((a * b).sum()) < 1e-9 * x.square().sum()
    # 16 numbers a channel: a sixteenth of the variance of white noise, give or take
    assert abs(a.square().mean() - 1 / 16) < 5 * math.sqrt(2 / (5 * 3 * 16)) / 16
    same = torch.full_like(x, 0.3)
    assert torch.allclose(parts(same)["coarse: means of 16 blocks"], same)


def test_the_intervals_are_a_partition_and_the_tables_rows_stand_alone(cells):
    names = run(cells, "marks = ", diffusion=GaussianDiffusion(NoiseSchedule.linear()))
    intervals = names["intervals"]
    assert [t for low, high in intervals for t in range(low, high)] == list(range(1000))
    assert all((k, k + 1) in intervals for k in range(0, 1000, 100))
    assert len(intervals) < 50


def test_rate_and_distortion_from_a_few_terms_are_those_of_all_terms():
    """Figure 5: the estimate has the mean of chapter 10's sum, at the table's times and at all
    intervals; 6 standard errors, which are at most 4 % of the rate."""
    found = [c for c in nbformat.read(NOTEBOOK, 4).cells if c.cell_type == "code"]
    d = GaussianDiffusion(NoiseSchedule.linear())
    names = run(found, "marks = ", "def some_terms(", "def curve(", diffusion=d, model=shrinking)
    x0 = images(2)
    exact = rate_distortion(d, shrinking, x0.repeat_interleave(8, 0), generator=gen(2))
    n = 1500
    rate, square, L_0 = names["curve"](x0.repeat_interleave(n // 2, 0), gen(3))
    for k in names["marks"]:
        i = names["edges"].index(k)
        off = (rate[:, i].mean() - exact.rate[:, k].mean()).abs()
        error = math.hypot(rate[:, i].std() / math.sqrt(n), exact.rate[:, k].std() / 4)
        assert off < 6 * error + 1e-6, k
        rms = square[:, i].mean().sqrt()
        other = exact.distortion[:, k].square().mean().sqrt()
        assert abs(rms / other - 1) < 0.05, k
    assert rate[:, 0].std() / math.sqrt(n) < 0.04 * rate[:, 0].mean()
    terms = d.bits_per_dim(shrinking, x0.repeat_interleave(8, 0), generator=gen(2))
    assert abs(L_0.mean() - terms["vb"][:, 0].mean()) < 0.02 * L_0.mean()


def test_the_mixed_latent_has_its_law_between_its_ends_too(cells):
    """Figures 8 and 9: mean and variance of the mixture. Numbers: 400 x 192; a mean off by 2 % of
    the deviation, or a variance off by 3 %, would be seen."""
    d = GaussianDiffusion(NoiseSchedule.linear()).respaced(2)
    sources, bar = images(2), d.schedule.alpha_bars[0].item()
    mixture = run(cells, "def mixture(", sources=sources)["mixture"]
    for weight in (0.0, 0.1, 0.37, 0.5, 0.75, 1.0):
        mean = math.sqrt(bar) * ((1 - weight) * sources[0] + weight * sources[1])
        variance = (1 - bar) * ((1 - weight) ** 2 + weight**2)
        off = (mixture(d, weight, 0) - mean).double()
        assert off.shape == (400, 3, 8, 8)
        assert abs(off.mean()) < 5 * math.sqrt(variance / off.numel())
        assert abs(off.square().mean() / variance - 1) < 5 * math.sqrt(2 / off.numel())
        # and no part of an image is left in what should be noise
        left = (off.mean(0) * (sources[1] - sources[0])).mean()
        size = (sources[1] - sources[0]).square().mean().sqrt()
        assert abs(left) < 5 * math.sqrt(variance / off.numel()) * size


class Projected:
    "Features by one product of matrices; `coarse`: rounded to so much where precision is halved."
    name = "projected"

    def __init__(self, coarse: float = 0.0): self.coarse = coarse

    def __call__(self, x):
        features = x.float().flatten(1) @ torch.randn(192, 16, generator=gen(7)) / 255
        if self.coarse and torch.is_autocast_enabled("cpu"):
            features = (features / self.coarse).round() * self.coarse
        return features, torch.ones(len(x), 1)


def test_neighbours_by_features_are_those_of_exact_ones(cells):
    "Figures 12 and 15: found by rough features, ranked by exact ones; too rough ones are seen."
    train, few = (torch.randint(256, (n, 3, 8, 8), dtype=torch.uint8, generator=gen(n))
                  for n in (2000, 6))
    def look(coarse):
        return run(cells, "def by_features(", data=(train, train),
                   cifar10_extractor=lambda device: Projected(coarse))["by_features"]
    far, which = look(0.0)(few)
    exact = torch.cdist(*(Projected()(x)[0].double() for x in (few, train))).topk(5, largest=False)
    assert torch.equal(which, exact.indices) and torch.allclose(far, exact.values, atol=1e-5)
    with pytest.raises(AssertionError): look(2.0)(few)


# --- the script and its record --------------------------------------------------------------------

@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    import figures
    return figures


def test_the_script_looks_at_the_first_guess_and_the_last(bench):
    assert bench.looks(50, 4) == [*range(49, 0, -4), 0]
    assert bench.looks(3, 1) == [2, 1, 0]


def test_the_script_keeps_the_guesses_of_algorithm_2(bench):
    "Figure 10: bytes of x0-hat at the kept steps, the last of which is the finished image."
    net, d = UNet(SMALL).eval(), GaussianDiffusion(NoiseSchedule.linear(T=20))
    found = bench.draw_batch(net, d, 2, 10, [9, 5, 0], seed=1)
    assert found.shape == (3, 2, 3, 16, 16) and found.dtype == torch.uint8
    def halved(x, t):
        with torch.autocast("cpu", torch.bfloat16): return net(x, t).float()
    end = d.sample(halved, (2, 3, 16, 16), "ddpm", 10, gen(1), progress=False)
    assert (found[-1].float() - (end + 1) * 127.5).abs().max() <= 0.51


def test_the_script_keeps_the_pages_pictures_of_the_model_that_was_named(bench, monkeypatch,
                                                                         tmp_path):
    "In their order, as tiles; those of another network on the page are not its own."
    from types import SimpleNamespace

    import ddpm_nb.plotting as plot
    from PIL import Image
    for name in ("show_strip", "show_images"):          # which the page's cells find replaced
        monkeypatch.setattr(plot, name, getattr(plot, name))
    sources = ['MODEL = "cifar10-small"', "import torch\nimport ddpm_nb.plotting as plot",
               "x = torch.arange(4).view(4, 1, 1, 1).expand(4, 3, 32, 32) / 4",
               "plot.show_images(x, ncols=2, title=f'{MODEL}: four')",
               "plot.show_strip([x, x], title='of another: eight')",
               "plot.show_strip([x[:3], x[1:]], title=f'{MODEL}: six')"]
    cells = [dict(cell_type="code", id=str(k), source=[s]) for k, s in enumerate(sources)]
    page = tmp_path / "nbs/experiments/figures.ipynb"
    page.parent.mkdir(parents=True)
    page.write_text(json.dumps(dict(cells=cells)))
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    bench.page(SimpleNamespace(model="mine", record=tmp_path / "record"))
    sizes = {f.name: Image.open(f).size for f in (tmp_path / "record").iterdir()}
    assert sizes == {"figure13.png": (64, 64), "figure6.png": (96, 64)}
    tile = Image.open(tmp_path / "record/figure6.png").getpixel((80, 40))
    assert tile == (223,) * 3                           # the last of the second row: 0.75


@pytest.mark.parametrize("T", [20, 100, 1000])
def test_the_parts_are_a_partition_and_times_are_dealt_evenly(bench, T):
    parts = bench.parts_of(T)
    assert sorted(t for part in parts for t in part) == list(range(T)) and parts[0] == [0]
    times = bench.dealt(parts, 1000, gen(0))
    assert times.shape == (1000, len(parts))
    for part, column in zip(parts, times.T):
        counts = torch.bincount(column, minlength=T)[part]
        assert counts.sum() == 1000 and counts.max() - counts.min() <= 1


def measured(bench, monkeypatch, d, x0, seed: int) -> dict:
    "What the script makes of images, float on the grid, with a network of one line."
    monkeypatch.setattr(bench, "network", lambda name: (shrinking, d))
    pixels = x0.add(1).mul(127.5).round().to(torch.uint8)
    parts = bench.parts_of(d.T)
    times = bench.dealt(parts, len(x0), gen(seed))
    found = bench.terms_at("", pixels, times, seed + 1)
    return bench.summed(d.T, times, torch.tensor([len(part) for part in parts]), *found.values())


def test_the_script_estimates_the_sums_of_all_terms(bench, monkeypatch):
    """Figure 5: every row of the table against chapter 10's sum of all terms, on the same two
    images; 6 standard errors, of which those of the rate are below 4 %."""
    d, x0 = GaussianDiffusion(NoiseSchedule.linear()), images(2)
    exact = rate_distortion(d, shrinking, x0.repeat_interleave(8, 0), generator=gen(2))
    found = measured(bench, monkeypatch, d, x0.repeat(1500, 1, 1, 1), 3)
    assert len(found["terms"]) == len(found["square_error"]) == 1000
    for row in found["rows"]:
        (rate, error), k = row["rate"], row["index"]
        off = abs(rate - exact.rate[:, k].mean())
        assert off < 6 * math.hypot(error, exact.rate[:, k].std() / 4) + 1e-5, k
        rms = exact.distortion[:, k].square().mean().sqrt()
        assert abs(row["rmse"][0] - rms) < 6 * row["rmse"][1] + 0.02 * rms, k
        assert found["square_error"][k] == pytest.approx(row["rmse"][0]**2, rel=1e-3)
    rate, error = found["rows"][0]["rate"]
    assert error < 0.04 * rate
    assert found["total"][0] == pytest.approx(rate + found["distortion"][0], abs=2e-6)
    terms = d.bits_per_dim(shrinking, x0.repeat_interleave(8, 0), generator=gen(2))
    assert abs(found["distortion"][0] / terms["vb"][:, 0].mean() - 1) < 0.02
    # the page's own sum from the right
    above = torch.tensor([*found["terms"][1:], found["prior"]]).double()
    assert above.sum().item() == pytest.approx(rate, rel=1e-4)


def test_the_scripts_errors_are_how_far_its_estimates_scatter(bench, monkeypatch):
    "60 runs, each of 100 images of its own: 45 % is five deviations of a spread of so many."
    d, runs = GaussianDiffusion(NoiseSchedule.linear(T=100)), []
    for seed in range(60):
        scale = torch.rand(100, 1, 1, 1, generator=gen(seed))
        x0 = (scale * torch.rand(100, 3, 8, 8, generator=gen(1000 + seed))).mul(255).round()
        runs.append(measured(bench, monkeypatch, d, x0 / 127.5 - 1, 2000 + seed))
    for key in (lambda r: r["total"], lambda r: r["distortion"], lambda r: r["rows"][0]["rate"],
                lambda r: r["rows"][3]["rmse"]):
        values, errors = torch.tensor([key(r) for r in runs]).T
        assert abs(values.std() / errors.square().mean().sqrt() - 1) < 0.45


def test_the_records_are_of_todays_packaged_weights(bench):
    "If this fails: the program in bench/ that wrote the record, then run the page anew."
    from ddpm_nb import load_pretrained
    today = bench.sum_of(load_pretrained("cifar10-small")[0])
    records = [*RECORD.glob("*.json"), RECORD.parent / "ablations" / "variances.json"]
    assert len(records) >= 3
    for path in records:
        assert json.loads(path.read_text())["weights"] == today, path.name


def test_the_record_of_figure_5_adds_up_and_agrees_with_the_other_record_of_the_bound():
    """On the same 10,000 images, by other draws: what the images differ by is common to both, so
    the errors, which include it, are far on the safe side."""
    r = json.loads((RECORD / "figure5.json").read_text())
    other = json.loads((RECORD.parent / "cifar10_small/record.json").read_text())["bits"]
    assert r["images"] == other["images"] == 10_000 and len(r["terms"]) == 1000
    (total, error), (L_0, _) = r["total"], r["distortion"]
    assert error < 0.01 and abs(total - other["mean"]) < 3 * error
    assert abs(L_0 - other["distortion"]) < 3 * error
    assert [row["index"] for row in r["rows"]] == [100 * k for k in range(10)]
    for row in r["rows"]:
        above = sum(r["terms"][row["index"] + 1:]) + r["prior"]
        assert row["rate"][0] == pytest.approx(above, abs=2e-5)
        assert row["rmse"][0] == pytest.approx(r["square_error"][row["index"]]**0.5, rel=1e-3)


def test_the_script_explains_itself():
    words = [sys.executable, ROOT / "bench/figures.py", "--help"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0 and "usage" in done.stdout


def test_the_record_of_figure_10_is_whole_and_says_what_it_is():
    r = json.loads((RECORD / "figure10.json").read_text())
    times = [row["t"] for row in r["rows"]]
    assert times == sorted(times, reverse=True) and times[0] == 1000 and len(times) > 10
    assert r["extractor"] == "cifar10-classifier" and r["n"] >= 1000 and r["minutes"] > 0
    distances, scores = ([row[key] for row in r["rows"]] for key in ("distance", "score"))
    real = [row["distance"] for row in r["real"]]
    assert len(real) >= 2 and max(real) < min(distances)
    assert distances[-1] < distances[0] / 5 and 1 <= min(scores) and max(scores) <= 10
    assert sum(f.stat().st_size for f in RECORD.iterdir()) < 100_000


# --- the page -------------------------------------------------------------------------------------

def test_the_page_ran_without_an_error_and_names_no_place_of_the_machine(cells):
    assert not any(o.output_type == "error" for c in cells for o in c.outputs)
    text = NOTEBOOK.read_text()
    assert NOTEBOOK.stat().st_size < 3 * 2**20
    for word in (str(ROOT), str(Path.home()) + "/", "/tmp/"): assert word not in text, word


def test_every_figure_without_a_page_of_its_own_has_its_label_here():
    text = "\n".join(c.source for c in nbformat.read(NOTEBOOK, 4).cells)
    assert {int(n) for n in re.findall(r"^\(fig-ddpm-(\d+)\)=$", text, re.M)} == FIGURES


def test_the_papers_network_has_its_pictures_as_its_record_has_them(cells):
    "Whole tiles, as many in a row as there are labels; none is left over, none is missing."
    from PIL import Image
    shown = dict(re.findall(r'by_the_papers\("(figure\d+\.png)", (.*)', "\n".join(
        c.source.replace("\n", " ") for c in cells if "by_the_papers(\"" in c.source)))
    there = RECORD.parent / "cifar10_paper"
    assert {f.name for f in there.glob("figure*.png")} == set(shown) and len(shown) == 6
    for name in shown:
        width, height = Image.open(there / name).size
        assert width == 11 * 32 and height % 32 == 0 and height // 32 in (4, 6, 8, 9)


def test_every_picture_says_what_model_it_is_of(cells):
    "In the title, since a picture travels without its page."
    calls = calls_of(cells, r"plot\.show_")
    assert len(calls) > 8
    for call in calls:
        assert "MODEL" in call or "The H100 run" in call, call[:80]
        assert "alt=" in call
