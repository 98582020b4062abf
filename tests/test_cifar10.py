"""The CIFAR-10 experiment: what its notebook says about sizes, costs and the paper's recipe,
and the record of the small run."""
import json
import math
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from guards import PATIENCE, calls_of, cells_run

from ddpm_nb import (GaussianDiffusion, NoiseSchedule, UNetConfig, data, load_pretrained,
                     to_model)
from ddpm_nb.engine.recipes import recipe
from ddpm_nb.engine.runs import checkpoints, load_run
from ddpm_nb.evaluation import strata

nbformat = pytest.importorskip("nbformat")
ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "nbs/experiments/cifar10.ipynb"
RECORD = ROOT / "nbs/experiments/cifar10_small"
PAPER = RECORD.with_name("cifar10_paper")
MODEL = ROOT / "ddpm_nb/assets/cifar10-small"
run = partial(cells_run, NOTEBOOK)


@pytest.fixture(scope="module")
def cells(): return [c for c in nbformat.read(NOTEBOOK, 4).cells if c.cell_type == "code"]


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
    calls = calls_of(cells, r"plot\.(lines|show_images|show_strip|animate)$")
    assert len(calls) > 15
    for call in calls: assert "title=" in call, call


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


@pytest.mark.parametrize("script", ["trials", "again", "snapshot", "speed"])
def test_the_scripts_explain_themselves(script):
    words = [sys.executable, ROOT / "bench" / f"cifar10_{script}.py", "--help"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0 and "usage" in done.stdout


def script(name, *words):
    "One of the scripts, called: its exit code, and what it says."
    done = subprocess.run([sys.executable, ROOT / "bench" / f"{name}.py", *map(str, words)],
                          capture_output=True, text=True, timeout=PATIENCE)
    return done.returncode, done.stdout + done.stderr


def test_the_table_of_trials_is_of_one_set_of_them(tmp_path):
    "What was trained on another network is not compared with it."
    row = dict(images=9600, weights=1, last=0.1, images_per_cpu_second=1.0)
    rows = [dict(row, name=name, held_out=loss, losses=[loss, loss + 0.01])
            for name, loss in (("start", 0.2), ("batch 16", 0.3), ("gpu-hours", 0.1))]
    (tmp_path / "trials.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    for of, names in (("small", ["start", "batch 16"]), ("gpu-hours", ["gpu-hours"])):
        code, said = script("cifar10_trials", "--table", "--of", of, "--out", tmp_path)
        assert code == 0, said
        assert [line.split(" | ")[0].strip("| ") for line in said.splitlines()[2:]] == names
    assert "0.1000 ± " in script("cifar10_trials", "--table", "--out", tmp_path)[1]


def test_runs_of_another_size_are_not_added_to_a_record(tmp_path):
    record = ROOT / "nbs/experiments/ablations/runs.jsonl"
    (tmp_path / "runs.jsonl").write_bytes(record.read_bytes())
    words = "--record", tmp_path, "--out", tmp_path / "runs", "--only", "mu, L, fixed"
    code, said = script("ablations", *words, "--steps", "5")
    assert code == 1 and "runs of other sizes: give theirs, or another --record" in said
    assert (tmp_path / "runs.jsonl").read_bytes() == record.read_bytes()
    from ddpm_nb import cifar10
    try: cifar10()
    except (FileNotFoundError, ValueError) as e: pytest.skip(f"CIFAR-10 is not here: {e}")
    assert script("ablations", *words) == (0, "")          # all three are there, of its own sizes


@pytest.fixture
def again(monkeypatch):
    "The script that trained the second edition."
    monkeypatch.syspath_prepend(ROOT / "bench")
    import cifar10_again
    return cifar10_again


def test_muon_moves_matrices_as_torchs_does_kernels_as_matrices_and_the_rest_as_adam(again):
    g = torch.Generator().manual_seed(0)
    shapes = (24, 40), (40, 24), (24, 8, 5, 1), (16,)
    ours, theirs = ([torch.nn.Parameter(torch.randn(s, generator=g)) for s in shapes]
                    for g in (torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)))
    theirs[2] = torch.nn.Parameter(theirs[2].detach().reshape(24, 40))
    muon = again.Muon(ours, lr=1e-2)
    peers = [torch.optim.Muon(theirs[:3], lr=5e-2, weight_decay=0, momentum=0.95,
                              adjust_lr_fn="match_rms_adamw"),
             torch.optim.Adam(theirs[3:], lr=1e-2)]
    start = [p.detach().clone() for p in ours]
    for _ in range(25):
        for a, b in zip(ours, theirs):
            a.grad = torch.randn(a.shape, generator=g)
            b.grad = a.grad.reshape(b.shape).clone()
        for o in (muon, *peers): o.step()
    for a, b, before in zip(ours, theirs, start):
        moved = (a - before).norm()
        assert moved / math.sqrt(a.numel()) > 0.02
        assert (a - b.reshape(a.shape)).norm() < 0.04 * moved      # bfloat16's rounding


@pytest.mark.parametrize("rest", [0.0, 0.2, 1.0])
def test_centred_times_have_a_normal_logarithm_of_the_noise_level_but_for_the_rest(again, rest):
    truncnorm = pytest.importorskip("scipy.stats").truncnorm
    level = -NoiseSchedule.linear().log_snr / 2
    t = again.centred(-2 * level, -1.0, 1.6, rest)
    assert t.shape == (1000,) and t.dtype == torch.long and 0 <= t.min() and t.max() < 1000
    if rest == 1: assert t.tolist() == list(range(1000))
    cuts = torch.linspace(-4, 4, 33, dtype=torch.float64)
    law = truncnorm((level[0].item() + 1) / 1.6, (level[-1].item() + 1) / 1.6, -1.0, 1.6).cdf
    want = (1 - rest) * torch.as_tensor(law(cuts.numpy()))
    want += rest * (level[:, None] <= cuts).double().mean(0)
    got = (level[t][:, None] <= cuts).double().mean(0)
    assert (got - want).abs().max() < 0.02


@pytest.mark.parametrize("count", [3, 5, 10])
def test_as_many_samples_are_drawn_as_are_asked_for(again, count, monkeypatch):
    monkeypatch.setattr(GaussianDiffusion, "sample",
                        lambda self, model, shape, *_: torch.zeros(shape))
    d = GaussianDiffusion(NoiseSchedule.linear(T=10))
    assert len(again.drawn(None, d, count, batch=5)) == count


def test_the_error_by_t_is_that_of_eps_whatever_the_network_says(again):
    "With an eps network, L_simple; the same answers put as v change nothing."
    schedule = NoiseSchedule.linear(T=20)
    d, other = GaussianDiffusion(schedule), GaussianDiffusion(schedule, "v")
    g = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (60, 3, 4, 4), dtype=torch.uint8, generator=g)
    model = lambda x, t: 0.7 * x
    def as_v(x, t):
        bar = schedule.alpha_bars[t][:, None, None, None]
        return ((model(x, t) - (1 - bar).sqrt() * x) / bar.sqrt()).to(x)
    a, b = again.loss_by_t(model, d, images, 5), again.loss_by_t(as_v, other, images, 5)
    assert a["t"] == b["t"] == [1.5, 5.5, 9.5, 13.5, 17.5] and a["images"] == 60
    assert a["by_t"] == pytest.approx(b["by_t"], rel=1e-4)
    x0, g = to_model(images), torch.Generator().manual_seed(2020)
    t = (torch.arange(60) * 20 // 60)[torch.randperm(60, generator=g)]
    plain = d.losses(model, x0, t, torch.randn(x0.shape, generator=g))
    assert a["mean"] == pytest.approx(plain.mean().item(), rel=1e-5)


def test_the_error_of_the_loss_is_that_of_images_and_noise_and_not_of_the_spread_of_t(again):
    "Of 400 items the error of a variance is 7 %, here of 200 pairs: a fifth is two of these."
    d, n = GaussianDiffusion(NoiseSchedule.linear(20)), 400
    images = torch.zeros(n, 3, 16, 16, dtype=torch.uint8)
    found = again.loss_by_t(lambda x, t: (t / 2).view(-1, 1, 1, 1).expand_as(x), d, images)
    t = torch.arange(20)                     # (t/2 - eps)^2, the mean over 768 dimensions
    assert found["mean"] == pytest.approx((t**2 / 4 + 1).double().mean().item(), rel=0.01)
    error = math.sqrt(((t**2 + 2) / 768).mean() / n)
    assert found["standard_error"] == pytest.approx(error, rel=0.2)
    assert error < torch.tensor(found["by_t"]).std() / math.sqrt(n) / 20


@pytest.fixture
def few_images(tmp_path, monkeypatch):
    "CIFAR-10's files of 20 images each, made up."
    monkeypatch.setattr(data, "_RECORDS", 20)
    monkeypatch.setenv("DDPM_NB_CACHE", str(tmp_path / "cache"))
    folder, g = tmp_path / "cache" / "cifar-10-batches-bin", np.random.default_rng(0)
    folder.mkdir(parents=True)
    for name in (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"):
        rows = g.integers(256, size=(20, 3073), dtype=np.uint8)
        rows[:, 0] %= 10
        (folder / name).write_bytes(rows.tobytes())


def test_a_stage_that_was_interrupted_ends_as_if_it_had_not_been(again, few_images, tmp_path):
    def begin(name, more=""):
        (tmp_path / name).mkdir(exist_ok=True)
        words = "--start cifar10-small --updates 3 --batch 2 --warmup 0 --no-compile --keep 1"
        return again.stage(again.words([str(tmp_path / name), *words.split(), *more.split()]))
    straight, broken = begin("a").train(), begin("b")
    asked = (tmp_path / "a/stage.json").read_text()
    for words, said in (("--times uniform", "--times centred, not uniform"),
                        ("--start x", "--start cifar10-small, not x"),
                        ("--optimizer adam", "--optimizer muon, not adam")):
        with pytest.raises(SystemExit, match=said): begin("a", words)
        assert (tmp_path / "a/stage.json").read_text() == asked
    for _ in range(2): next(broken.steps())
    broken.save()
    (tmp_path / "b/log.jsonl").touch()
    from cifar10_snapshot import finished, told
    so_far = told(tmp_path / "b")            # where the next stage may begin from it all the same
    assert (so_far["updates"], so_far["images"], so_far["fall"]) == (2, 4, pytest.approx(1 / 2))
    with pytest.raises(SystemExit, match="b stands at 2 of 3"): finished(tmp_path / "b")
    resumed = begin("b")
    assert resumed.step == 2 and resumed.train().step == 3
    for a, b in zip(straight.model.parameters(), resumed.model.parameters()): assert a.equal(b)
    there = load_pretrained("cifar10-small")[0].parameters()
    assert not any(a.equal(b) for a, b in zip(there, straight.model.parameters()) if a.ndim > 1)


@pytest.fixture
def shipping(again, few_images, tmp_path, monkeypatch):
    "A stage of five updates, kept at 2, 4 and 5; whatever of it is drawn and measured is made up."
    import cifar10_snapshot as snapshot
    record, run = tmp_path / "record", tmp_path / "run"
    shutil.copytree(RECORD, record)
    (record / "means.jsonl").unlink(missing_ok=True)
    run.mkdir()
    words = "--start cifar10-small --updates 9 --fall 0 --batch 2 --warmup 0 --no-compile --keep 2"
    stage = again.stage(again.words([str(run), *words.split()]))
    for k, _ in enumerate(stage.steps(), 1):
        if k in (2, 4, 5): stage.save()
        if k == 5: break                                  # a rate that does not fall has no end
    (run / "log.jsonl").write_text(json.dumps(dict(
        step=5, seconds=9.0, loss=1.0, images_per_second=1.0)) + "\n")

    old = json.loads((RECORD / "record.json").read_text())
    made_up = {k: old[k] for k in ("held_out", "samples", "distance", "distance_of_real",
                                   "nearest", "bits", "bits_train")}
    monkeypatch.setattr(snapshot, "measure", lambda *_: made_up)
    monkeypatch.setattr(snapshot, "ready", lambda net: net)
    monkeypatch.setattr(snapshot, "drawn", lambda *_, **__: torch.full(
        (12, 3, 32, 32), 77, dtype=torch.uint8))
    monkeypatch.setattr(snapshot, "distance", lambda images: 1.5)
    monkeypatch.setattr(snapshot, "RECORD", record)
    monkeypatch.setattr(snapshot, "TARGET", tmp_path / "cifar10-small")
    monkeypatch.setattr(GaussianDiffusion, "sample",
                        lambda self, model, shape, *_: torch.zeros(shape))
    def do(*words):
        monkeypatch.setattr(sys, "argv", ["snapshot", str(run), "--record", str(record),
                                          "--held-out", "4", *words])
        a = snapshot.words()
        (snapshot.curve if a.curve else snapshot.means if a.means else snapshot.whole)(a)
        return json.loads((record / "record.json").read_text())
    kept = {int(c.name.rpartition("_")[2]): load_run(c)[0].state_dict() for c in checkpoints(run)}
    return SimpleNamespace(do=do, record=record, run=run, old=old, kept=kept, snapshot=snapshot)


def test_a_stage_ships_and_its_record_goes_on_with_the_one_before(shipping, tmp_path):
    "Done twice, it is the same as once."
    for _ in range(2):
        r = shipping.do("--package")
        assert r["images"] == shipping.old["images"] + 10
        assert r["stages"][:-1] == shipping.old["stages"] and r["stages"][-1]["updates"] == 5
    shipped = load_pretrained(tmp_path / "cifar10-small")[0].state_dict()
    for name, w in shipped.items(): assert w.equal(shipping.kept[5][name].half().float())
    assert not all(shipping.kept[4][name].equal(w) for name, w in shipping.kept[5].items())


def test_the_curve_goes_on_with_a_point_and_a_row_of_pictures_for_each_look(shipping):
    "Done twice, it is the same as once."
    from PIL import Image
    old = shipping.old
    shipping.do("--package")
    for _ in range(2):
        curve = shipping.do("--curve", "12", "--every", "2")["curve"]
        assert curve[:-3] == old["curve"]
        assert [row["images"] - old["images"] for row in curve[-3:]] == [4, 8, 10]
    grown, was = (Image.open(folder / "evolution.png").convert("RGB")
                  for folder in (shipping.record, RECORD))
    assert grown.crop((0, 0, *was.size)).tobytes() == was.tobytes()
    assert grown.size[1] == was.size[1] + 3 * 32
    assert grown.getpixel((0, grown.size[1] - 1)) == (77, 77, 77)


def test_means_of_the_last_checkpoints_are_looked_at_beside_the_shipped_one(shipping):
    shipping.do("--package")
    r = shipping.do("--curve", "12", "--every", "2")
    shipping.do("--means", "5", "3", "2")
    rows = [json.loads(line)
            for line in (shipping.record / "means.jsonl").read_text().splitlines()]
    assert [row["mean_of"] for row in rows] == [[5], [4, 5], [2, 4, 5]]
    assert [row["distance"] for row in rows] == [[1.5] * 3] * 3
    assert {row["stage"] for row in rows} == {len(shipping.old["stages"]) + 1}
    assert r["curve"][-1]["error"] == rows[0]["error"] != rows[1]["error"]
    for since, steps in ((5, (5,)), (3, (4, 5)), (2, (2, 4, 5))):
        for name, w in shipping.snapshot.mean_of(shipping.run, since)[0].state_dict().items():
            mean = torch.stack([shipping.kept[k][name].double() for k in steps]).mean(0)
            assert torch.allclose(w.double(), mean, rtol=1e-5, atol=1e-7)


def test_hours_are_those_at_work_whatever_the_clock_says(again, tmp_path):
    "A stage that stood still for a day has not worked for a day; compiling is work."
    from cifar10_snapshot import worked
    clock = [100, 110, 121, 86_521, 86_530, 86_541]        # compiled for 90 s, then stopped once
    log = "".join(json.dumps(dict(seconds=s)) + "\n" for s in clock)
    (tmp_path / "log.jsonl").write_text(log)
    assert worked(tmp_path, 86_545.0) == 86_545 - (86_400 - 11)
    assert worked(tmp_path, 125.0) == 125       # a checkpoint before the pause, or a line cut short
    (tmp_path / "log.jsonl").write_text(log + '{"seco')
    assert worked(tmp_path, 86_545.0) == 86_545 - (86_400 - 11)
    (tmp_path / "log.jsonl").write_text(log[:log.index("\n") + 1])
    assert worked(tmp_path, 105.0) == 105


def test_strata_partition_all_steps_and_the_estimate_is_unbiased(again):
    "The record's bits/dim are a sum over intervals: these cover every t once, and weigh it once."
    from cifar10_snapshot import bits_per_dim
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


def test_the_record_of_the_small_runs_agrees_with_itself():
    first, r = (json.loads((RECORD / f"{name}.json").read_text()) for name in ("first", "record"))
    begun = r["stages"][0]
    assert begun["images"] == first["images"] == first["step"] * begun["batch"]
    for key in ("images", "hours"):
        assert r[key] == pytest.approx(sum(s[key] for s in r["stages"]))
    assert all(s["images"] == s["updates"] * s["batch"] for s in r["stages"])
    net = UNetConfig.from_dict(r["unet"])
    assert r["weights"] == sum(p.numel() for p in recipe("cifar10", "small").replace(
        unet=net.to_dict()).network().parameters()) == first["weights"]
    assert 0 < r["bits"]["standard_error"] < 0.02 and 3 < r["bits"]["mean"] < 4.5
    assert r["bits"]["images"] == first["bits"]["images"] == 10_000
    from PIL import Image
    for name in ("first", "samples"): assert Image.open(RECORD / f"{name}.png").size == (256, 256)
    size = Image.open(RECORD / "evolution.png").size
    assert size == (10 * 32, 32 * len(r["curve"]))
    assert sum(f.stat().st_size for f in RECORD.iterdir()) < 1e6


@pytest.mark.parametrize("page, what", [
    ("09_evaluation", "bits"), ("09_evaluation", "bits_train"), ("experiments/figures", "bits"),
    ("experiments/cifar10", "bits"), ("experiments/cifar10", "bits_train")])
def test_pages_that_quote_its_bits_quote_the_record(page, what):
    b = json.loads((RECORD / "record.json").read_text())[what]
    quoted = f"{b['mean']:.3f} ± {b['standard_error']:.3f}"
    assert quoted in (ROOT / f"nbs/{page}.ipynb").read_text()


def test_what_training_images_cost_is_measured_as_sharply_as_the_papers_gap():
    "3.75 and 3.72: the error of our difference is at most half of that gap."
    r = json.loads((RECORD / "record.json").read_text())
    test, train = r["bits"], r["bits_train"]
    assert math.hypot(test["standard_error"], train["standard_error"]) < 0.015
    assert abs(test["mean"] - train["mean"]) < 0.1


def test_the_card_is_what_the_record_says(again):
    "Word for word; a rate that does not fall, or only falls, is said to be that."
    from cifar10_snapshot import card, stage_in_words
    r = json.loads((RECORD / "record.json").read_text())
    assert (MODEL / "README.md").read_text() == card(r)
    for fall, words in ((0, "warm-up, then constant;"), (1, "warm-up, then falling to 0;"),
                        (0.5, "warm-up, falling to 0 over the last 50%;")):
        assert words in stage_in_words(2, r["stages"][-1] | dict(fall=fall))


def test_the_second_edition_is_better_than_the_first_where_its_page_says_so():
    first, r = (json.loads((RECORD / f"{name}.json").read_text()) for name in ("first", "record"))
    ends = {k: [row for row in r["curve"] if row["edition"] == k][-1] for k in (1, 2)}
    assert ends[1]["images"] == first["images"] and ends[2]["images"] == r["images"]
    assert ends[2]["distance"] < 0.8 * ends[1]["distance"]
    assert r["held_out"]["mean"] < first["held_out"]["mean"]
    assert r["held_out"]["by_t"][-1] < first["held_out"]["by_t"][-1] / 2
    assert r["nearest"]["samples"] > 0.7 * r["nearest"]["test"]          # it copies nothing


def test_what_means_of_weights_are_worth_agrees_with_the_curve_and_with_the_page():
    "The same measure, run twice; the package's own weights are in half precision elsewhere."
    r = json.loads((RECORD / "record.json").read_text())
    means = [json.loads(line) for line in (RECORD / "means.jsonl").read_text().splitlines()]
    start, middle, fallen = r["between"]
    assert [row["share"] for row in r["between"]] == [0.0, 0.5, 1.0]
    last = len(r["stages"])
    at = [sum(s["images"] for s in r["stages"][:k]) for k in (4, 5, 6, last)]
    curve = {row["images"]: row for row in r["curve"]}
    plain, shipped = ([row for row in means if row["stage"] == k and len(row["mean_of"]) == 1][0]
                      for k in (6, last))
    for images, row in zip(at, (start, fallen, plain, shipped)):
        assert row["distance"][0] == pytest.approx(curve[images]["distance"], rel=0.01)
        assert row["error"] == pytest.approx(curve[images]["error"], rel=1e-3)
    for row in (plain, shipped):
        stage = r["stages"][row["stage"] - 1]
        assert row["mean_of"] == [stage["updates"]] and stage["fall"] == 0
    assert fallen["error"] < middle["error"] < start["error"]
    others = [row for row in means if row["stage"] == 6 and row is not plain]
    for better, *worse in ((middle, start, fallen), (plain, start, fallen, *others)):
        for draws in zip(*(row["distance"] for row in (better, *worse))):
            assert draws[0] < min(draws[1:])


def test_the_record_of_the_run_on_a_gpu_agrees_with_itself_and_with_the_recipe():
    r, c = (json.loads((PAPER / f"{name}.json").read_text()) for name in ("record", "cuda"))
    plan, (stage,) = recipe("cifar10", "gpu-hours"), r["stages"]
    assert r["images"] == stage["images"] == stage["updates"] * plan.train.batch_size
    assert r["hours"] == stage["hours"] < c["budget"]["minutes"] / 60
    assert UNetConfig.from_dict(r["unet"]) == UNetConfig.cifar10() and r["weights"] == 35_746_307
    assert {k: stage[k] for k in ("lr", "warmup", "ema")} == dict(
        lr=plan.train.lr, warmup=plan.train.warmup, ema=plan.train.ema_decay)
    assert stage["fall"] == pytest.approx(plan.train.cooldown / plan.train.steps, abs=1e-3)
    assert r["curve"][-1]["images"] == r["images"] and c["distance"]["of"]["images"] == 10_000
    by_bound = json.loads((PAPER / "figure5.json").read_text())["total"]     # by other draws
    assert abs(by_bound[0] - r["bits"]["mean"]) < 3 * math.hypot(
        by_bound[1], r["bits"]["standard_error"])
    assert all(max(errors) < (0.01 if name.startswith(("bf16", "fp16")) else 1e-5)
               for name, errors in c["gradients"].items())
    from PIL import Image
    size = lambda name: Image.open(PAPER / f"{name}.png").size
    assert size("samples") == (320, 320) and size("guesses") == (384, 9 * 32)
    assert size("states") == (384, 8 * 32) and size("evolution") == (320, 32 * len(r["curve"]))


def test_pages_quote_the_record_of_the_run_on_a_gpu():
    r = json.loads((PAPER / "record.json").read_text())
    page = lambda name: (ROOT / f"nbs/{name}.ipynb").read_text()
    for key in ("bits", "bits_train"):
        quoted = f"{r[key]['mean']:.3f} ± {r[key]['standard_error']:.3f}"
        assert quoted in page("09_evaluation") and quoted in page("experiments/cifar10")
    text, (stage,) = page("experiments/cifar10"), r["stages"]
    for said in (f"{stage['updates']:,} updates", f"{r['images'] / 50_000:.0f} passes",
                 f"{r['bits']['mean']:.2f} bits per dimension"): assert said in text, said
    begun, ended = (next(row for row in rows if row["step"] >= 1000) for rows in
                    (r["log"], r["log"][::-1]))
    pace = 128 * (ended["step"] - begun["step"]) / (ended["hours"] - begun["hours"]) / 3600
    said = int(re.search(r"ON_H100 = (\d+)", text)[1])
    assert abs(said - pace) < 0.01 * pace           # with its grids and checkpoints


def test_the_packaged_model_loads_samples_and_states_its_limits():
    assert sum(f.stat().st_size for f in MODEL.rglob("*") if f.is_file()) <= 12e6
    net, d = load_pretrained("cifar10-small")
    assert 3_000_000 <= sum(p.numel() for p in net.parameters()) <= 6_000_000 and d.T == 1000
    g = torch.Generator().manual_seed(0)
    x = d.sample(net, (2, 3, 32, 32), "ddim", 2, g, progress=False)
    assert x.shape == (2, 3, 32, 32) and x.isfinite().all()
    card = (MODEL / "README.md").read_text()
    for word in ("not the paper's model", "bits/dim", "standard error", "hours", "Limits", "Muon",
                 "nearest training image"):
        assert word in card, word

