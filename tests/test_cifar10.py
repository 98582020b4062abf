"""The CIFAR-10 experiment: what its notebook says about sizes, costs and the paper's recipe,
and the record of the small run."""
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ddpm_nb import GaussianDiffusion, NoiseSchedule, UNetConfig, load_pretrained, to_model
from ddpm_nb.engine.recipes import recipe
from ddpm_nb.evaluation import strata

nbformat = pytest.importorskip("nbformat")
ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "nbs/experiments/cifar10.ipynb"
RECORD = ROOT / "nbs/experiments/cifar10_small"
MODEL = ROOT / "ddpm_nb/assets/cifar10-small"


@pytest.fixture(scope="module")
def cells(): return [c for c in nbformat.read(NOTEBOOK, 4).cells if c.cell_type == "code"]


def run(cells, *markers, **given):
    "Run the notebook's imports and the cells that contain the markers."
    names = {"__name__": "notebook", **given}
    for c in cells:
        if any(m in c.source for m in ("import ddpm_nb.plotting as plot", *markers)):
            exec(compile(c.source, str(NOTEBOOK), "exec"), names)
    return names


def printed(cells) -> str:
    shown = lambda o, kind: o.get("data", {}).get(f"text/{kind}", "")
    return "\n".join(o.get("text", "") + shown(o, "plain") + shown(o, "markdown")
                     for c in cells for o in c.outputs)


class Gpu:
    def __init__(self, gib): self.total_memory = gib * 2**30


@pytest.mark.parametrize("wanted, variable, gib, size", [
    (None, None, None, "smoke"), (None, None, 24, "gpu-hours"),
    (None, None, 11.7, "gpu-hours"), (None, None, 8, "gpu-hours"), (None, None, 6, "small"),
    (None, "small", None, "small"), ("paper", "small", None, "paper"),
    ("smoke", None, 80, "smoke")])
def test_the_size_is_what_is_asked_for_or_what_the_machine_can_do(
        cells, monkeypatch, wanted, variable, gib, size):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gib is not None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Gpu(gib))
    monkeypatch.delenv("DDPM_NB_SIZE", raising=False)
    if variable: monkeypatch.setenv("DDPM_NB_SIZE", variable)
    chosen, why = run(cells, "def choose_size", SIZE=wanted)["choose_size"](wanted)
    assert chosen == size and why


def test_an_unknown_size_is_refused_with_the_list(cells, monkeypatch):
    monkeypatch.setenv("DDPM_NB_SIZE", "huge")
    with pytest.raises(ValueError, match="one of paper, gpu-hours, small, smoke, got 'huge'"):
        run(cells, "def choose_size", SIZE=None)


def test_without_the_data_the_notebook_says_so_and_goes_on(cells, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("DDPM_NB_CACHE", str(tmp_path))
    names = run(cells, "stand_in(", DOWNLOAD=False, size="paper", LOOK={})
    assert "CIFAR-10 is not here" in capsys.readouterr().out.splitlines()[0]
    assert names["size"] == "smoke" and names["real"] is False
    for x in (names["images"], names["test"]):
        assert x.dtype == torch.uint8 and x.shape[1:] == (3, 32, 32) and x.float().std() > 10


def test_counted_operations_are_those_of_the_layers_added_up(cells):
    "12.1 GFLOP, and attention's two products: five layers at 16x16, one at 4x4."
    count = run(cells, "def count(")["count"]
    whole = count(UNetConfig.cifar10())
    attention = 4 * 256 * (5 * (16 * 16) ** 2 + (4 * 4) ** 2)
    assert abs(whole["forward"] - attention - 12.1e9) < 0.05e9
    assert whole["weights"] == 35_746_307 and 2.99 < whole["training"] / whole["forward"] < 3
    # what one layer of the full resolution writes is only a part of what is kept
    plain = UNetConfig(base_channels=32, groups=8, channel_multipliers=(1, 2),
                       attention_resolutions=(), blocks_per_level=1)
    assert count(plain)["kept"] > 32 * 32 * 32 * 4


def test_the_notebook_ran_on_the_real_data_with_the_papers_recipe(cells):
    out = printed(cells)
    assert "50,000 training images, 10,000 test images" in out and "35746307" in out
    assert re.search(r"size: smoke, because", out)
    assert re.search(r"\d\.\d+ ± \d\.\d+ bits/dim on \d+ test images", out)
    assert not any(o.output_type == "error" for c in cells for o in c.outputs)


def test_the_notebook_names_no_place_of_the_machine_it_ran_on_and_is_not_too_big(cells):
    text = NOTEBOOK.read_text()
    assert NOTEBOOK.stat().st_size < 2 * 2**20
    for word in (str(ROOT), str(Path.home()) + "/", "/tmp/"): assert word not in text, word
    pictures = [o.get("data", {}) for c in cells for o in c.outputs]
    gifs = [p["image/gif"] for p in pictures if "image/gif" in p]
    assert gifs and all(len(g) * 3 / 4 < 1e6 for g in gifs)


def test_every_figure_of_the_notebook_has_a_title_or_alt_text(cells):
    for c in cells:
        if re.search(r"plot\.(lines|show_images|show_strip|animate)\(", c.source):
            assert "title=" in c.source


@pytest.mark.parametrize("size", ["paper", "small", "smoke"])
def test_at_full_size_the_protocol_is_the_papers_and_below_it_costs_minutes(cells, size):
    measure = run(cells, "MEASURE = {", size=size)["MEASURE"]
    evaluations = (measure["images"] * (measure["terms"] or 1000)
                   + measure["samples"] * measure["steps"])
    if size == "paper":
        assert measure == dict(images=10_000, terms=None, samples=50_000, sampler="ddpm",
                               steps=1_000)
    else: assert evaluations < {"small": 100_000, "smoke": 10_000}[size]
    assert measure["samples"] > 256                # the features: fewer have a singular covariance


def test_fid_is_measured_at_full_size_alone_and_where_it_cannot_be_the_page_says_so(
        cells, monkeypatch, capsys):
    names = run(cells, "def judge(", size="smoke", device="cpu")
    assert names["judge"]().name == "cifar10-classifier"
    def missing(device): raise ImportError("pip install something")
    names |= dict(size="paper", inception_extractor=missing)
    assert names["judge"]().name == "cifar10-classifier"
    assert capsys.readouterr().out == "no FID: pip install something\n"
    names["inception_extractor"] = lambda device: f"Inception on {device}"
    assert names["judge"]() == "Inception on cpu"


def test_samples_come_in_batches_all_different_and_as_many_as_asked_for(cells):
    d = GaussianDiffusion(NoiseSchedule.linear(T=10))
    names = run(cells, "def judge(", d=d, drawing=lambda x, t: 0.9 * x,
                MEASURE=dict(sampler="ddpm", steps=5))
    found = list(names["batches"](7, 3))
    assert [len(x) for x in found] == [3, 3, 1] and found[0].dtype == torch.uint8
    x = torch.cat(found)
    assert len(x.flatten(1).unique(dim=0)) == 7


def test_what_is_drawn_on_a_laptop_is_the_packaged_network_but_for_one_strip(cells):
    "Each picture of samples says whose they are."
    titles = [str(o.get("metadata", {}).get("image/png", {}).get("alt", "")) for c in cells
              for o in c.outputs if "image/png" in o.get("data", {})]
    own = [t for t in titles if re.search(r"What \d+ updates give", t)]
    assert len(own) == 1
    assert sum("the packaged network" in t for t in titles) >= 4
    assert not any("size smoke" in t for t in titles)
    assert "which are not FID's" in printed(cells)


@pytest.mark.parametrize("script", ["cifar10_trials", "cifar10_snapshot", "cifar10_speed"])
def test_the_scripts_explain_themselves(script):
    words = [sys.executable, ROOT / "bench" / f"{script}.py", "--help"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "usage" in done.stdout


def test_strata_partition_all_steps_and_the_estimate_is_unbiased():
    "The record's bits/dim are a sum over intervals: these cover every t once, and weigh it once."
    sys.path.insert(0, str(ROOT / "bench"))
    try: from cifar10_snapshot import bits_per_dim
    finally: sys.path.pop(0)
    covered = [t for low, high in strata(1000, 32) for t in range(low, high)]
    assert covered == list(range(1000)) and len(strata(1000, 32)) == 32
    d = GaussianDiffusion(NoiseSchedule.linear())
    seeded = lambda seed: torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (1, 3, 4, 4), dtype=torch.uint8, generator=seeded(0))
    class Shrink(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.by = torch.nn.Parameter(torch.tensor(0.9))
        def forward(self, x, t): return x * self.by
    model = Shrink().requires_grad_(False)
    x0 = to_model(images).expand(64, -1, -1, -1)
    exact = d.bits_per_dim(model, x0, generator=seeded(1))["total"].double()
    drawn = bits_per_dim(model, d, images.expand(2000, -1, -1, -1), batch=2000).total
    error = math.hypot(exact.std() / 8, drawn.std() / math.sqrt(2000))
    assert abs(exact.mean() - drawn.mean()) < 4 * error and error < 0.2 * exact.mean()


@pytest.mark.skipif(not (RECORD / "record.json").exists(), reason="there is no record here")
def test_the_record_of_the_small_run_agrees_with_itself():
    r = json.loads((RECORD / "record.json").read_text())
    assert r["images"] == r["step"] * r["recipe"]["train"]["batch_size"]
    assert r["log"][-1]["step"] <= r["step"]
    net = recipe("cifar10", "small").replace(unet=r["recipe"]["unet"]).network()
    assert r["weights"] == sum(p.numel() for p in net.parameters())
    assert 3_000_000 <= r["weights"] <= 6_000_000
    assert 0 < r["bits"]["standard_error"] < 0.2 and 2 < r["bits"]["mean"] < 8
    from PIL import Image
    assert Image.open(RECORD / "samples.png").size == (256, 256)
    if r["evolution"]:
        size = Image.open(RECORD / "evolution.png").size
        assert size == (12 * 32, 32 * len(r["evolution"]))
    assert sum(f.stat().st_size for f in RECORD.iterdir()) < 1e6


@pytest.mark.skipif(not MODEL.exists(), reason="the small model is not packaged yet")
def test_the_packaged_model_loads_samples_and_states_its_limits():
    assert sum(f.stat().st_size for f in MODEL.rglob("*") if f.is_file()) <= 12e6
    net, d = load_pretrained("cifar10-small")
    assert 3_000_000 <= sum(p.numel() for p in net.parameters()) <= 6_000_000 and d.T == 1000
    g = torch.Generator().manual_seed(0)
    x = d.sample(net, (2, 3, 32, 32), "ddim", 2, g, progress=False)
    assert x.shape == (2, 3, 32, 32) and x.isfinite().all()
    card = (MODEL / "README.md").read_text()
    for word in ("not the paper's model", "bits/dim", "standard error", "hours", "Limits"):
        assert word in card, word

